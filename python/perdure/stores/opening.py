"""From options to a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from perdure._core import FileSessionStore
from perdure.errors import ConfigError
from perdure.stores.client import StoreClient
from perdure.stores.memory import MemorySessionStore

if TYPE_CHECKING:
    from perdure.options import ResolvedOptions
    from perdure.secrets import SecretMasker

__all__ = ["open_store"]


def open_store(
    options: ResolvedOptions, workspace: Path, *, memory: MemorySessionStore, masker: SecretMasker
) -> StoreClient | None:
    """The store that the options name, or None if they name none.

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

    if options.file_session_store is not None:
        return directory(options.file_session_store)
    store = options.session_store
    if store is None:
        return None
    if not isinstance(store, str):
        return client(store, owned=False)
    url = urlsplit(store)
    if url.scheme == "memory":
        # One for all sessions of the agent: one that dies with its session could not be resumed.
        return client(memory, owned=False)
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        return directory(unquote(url.path))
    raise ConfigError(
        f"session_store: there is no store for {url.scheme or 'this'}:// URLs in this version; "
        "there are file:///path and memory://, or pass a store object",
        option="session_store",
    )
