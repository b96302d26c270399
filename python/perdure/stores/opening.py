"""From options to a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from perdure._core import FileSessionStore
from perdure.errors import ConfigError
from perdure.stores.client import StoreClient
from perdure.stores.memory import MemorySessionStore

if TYPE_CHECKING:
    from perdure.config import AgentConfig
    from perdure.options import ResolvedOptions
    from perdure.secrets import SecretMasker

__all__ = ["open_store"]


def open_store(
    options: ResolvedOptions,
    workspace: Path,
    *,
    memory: MemorySessionStore,
    masker: SecretMasker,
    config: AgentConfig | None = None,
) -> StoreClient | None:
    """The store that the options name, or None if they name none. `config`: where its URL may have come from.

    Raises `ConfigError` for an unknown URL, `StoreError` for a directory that cannot be opened.
    """

    def client(store: object, *, owned: bool) -> StoreClient:
        return StoreClient(store, timeout=options.store_timeout, masker=masker, owned=owned)

    def directory(path: str | os.PathLike[str]) -> StoreClient:
        store = FileSessionStore(
            workspace / Path(path).expanduser(),
            journal=options.journal,
            durability=options.durability,
            lock_timeout=options.lock_timeout,
        )
        return client(store, owned=True)

    def refuse(what: str) -> NoReturn:
        # A URL may hold a password: nothing of it but its scheme is shown.
        if config is not None and store == config.storage_url:
            raise ConfigError(f"storage_url: {what}", path=config.path, option="storage_url")
        raise ConfigError(f"session_store: {what}", option="session_store")

    if options.file_session_store is not None:
        return directory(options.file_session_store)
    store = options.session_store
    if store is None:
        return None
    if not isinstance(store, str):
        return client(store, owned=False)
    try:
        url = urlsplit(store)
    except ValueError:
        refuse("this is not a URL")
    if url.scheme == "memory":
        # One for all sessions of the agent: one that dies with its session could not be resumed.
        return client(memory, owned=False)
    if url.scheme == "file":
        if not _is_plain(url):
            refuse("a file URL is file:///path, without host, query and fragment (%3F and %23 stand for ? and #)")
        return directory(unquote(url.path))
    return refuse(
        f"there is no store for {url.scheme or 'this'}:// URLs in this version; there are file:///path and memory://, "
        "or pass a store object"
    )


def _is_plain(url: SplitResult) -> bool:
    return url.netloc in ("", "localhost") and bool(url.path.strip("/")) and not url.query and not url.fragment
