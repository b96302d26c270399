"""Which configuration and which sessions a command works on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure._core import FileSessionStore, SessionData
from perdure.agent import Agent
from perdure.config import AgentConfig, load_config
from perdure.errors import ConfigError, SessionNotFoundError, StoreError
from perdure.options import SessionOptions, check_session_id

__all__ = ["DEFAULT_DIRECTORY", "Place", "find_place"]

DEFAULT_CONFIG = "agent.hcl"
DEFAULT_DIRECTORY = ".a3s/sessions"


@dataclass(frozen=True, slots=True)
class Place:
    """A configuration, and where sessions lie: a directory (absolute), or a store URL if that is None.

    `given` tells whether `--store` named the directory.
    """

    config: AgentConfig
    directory: Path | None
    url: str | None
    given: bool

    @property
    def shown(self) -> str:
        """Where sessions lie, for people; of a URL only the kind, since it may hold a password."""
        return str(self.directory) if self.directory is not None else f"{(self.url or '').partition(':')[0]} store"

    @property
    def agent(self) -> Agent:
        return Agent(self.config)

    def options(self, **more: Any) -> SessionOptions:
        """Options that name this place."""
        if self.directory is not None:
            return SessionOptions(file_session_store=self.directory, **more)
        return SessionOptions(session_store=self.url, **more)

    def is_there(self) -> bool:
        """Whether there is anything to look in. Opening a store would make a directory that is not there.

        Raises `StoreError` for a directory named with `--store` that does not exist, or a path that is none;
        `ConfigError` for sessions that live in the memory of one process.
        """
        if self.url is not None and self.url.startswith("memory:"):
            raise ConfigError(
                "the configuration keeps sessions in memory only, so that none is left when a program ends; "
                "name a directory with --store",
                path=self.config.path,
                option="storage_backend",
            )
        if self.directory is None or self.directory.is_dir():
            return True
        if self.directory.exists():
            raise StoreError(f"{self.directory} is not a directory", filename=str(self.directory))
        if self.given:
            raise StoreError(f"there is no directory {self.directory}", filename=str(self.directory))
        return False

    def load(self, id: str) -> SessionData:
        """A stored session as it is, nothing repaired. Raises as `Agent.resume_session` does."""
        check_session_id(id)
        if not self.is_there():
            raise SessionNotFoundError(f"no session {id!r}: there is no directory {self.shown}", session_id=id)
        stored = None
        if self.directory is not None:
            with FileSessionStore(self.directory) as store:
                stored = store.load(id)
        # Another store is reached by resuming, in memory; and a directory's error then names close ids.
        return self.agent.resume_session(id, self.options()).data if stored is None else stored


def find_place(arguments: argparse.Namespace) -> Place:
    """What `--config` and `--store` say, else `agent.hcl` in the current directory, else `.a3s/sessions`.

    Relative paths are relative to the current directory. Raises `ConfigError`.
    """
    path: str | None = arguments.config
    if path is None and Path(DEFAULT_CONFIG).exists():
        path = DEFAULT_CONFIG
    config = load_config(Path(path)) if path is not None else AgentConfig()
    if arguments.store is not None:
        return Place(config, Path(arguments.store).expanduser().absolute(), None, given=True)
    directory, url = config.store()
    if directory is None and url is None:
        directory = DEFAULT_DIRECTORY
    return Place(config, Path(directory).expanduser().absolute() if directory else None, url, given=False)
