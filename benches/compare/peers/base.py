"""What a contender has to offer. Any method but `prepare` may be `async`: it is then awaited on one event loop."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class Session(ABC):
    """One stored session."""

    def prepare(self, messages: list[Message]) -> Any:
        """The messages of a turn in the types that the peer is used with; not timed."""
        return messages

    @abstractmethod
    def save(self, turn: Any) -> Any:
        """Timed: adds what `prepare` gave to the session and stores it, in the way the peer does by default."""

    @abstractmethod
    def stored(self) -> Any:
        """The number of messages that a new reader finds."""

    def close(self) -> Any:
        """Lets go of the session, which stays stored."""
        return None


class Peer(ABC):
    """A store in a directory of its own."""

    packages: tuple[str, ...] = ()
    # Why it cannot be measured with many sessions at once, if so.
    one_at_a_time: str | None = None

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def open(self, name: str, messages: list[Message]) -> Any:
        """A new `Session` that holds these messages, stored. Not timed: the quickest way that the peer has."""

    def facts(self) -> Any:
        """Settings that decide about durability, as the peer's own connection reports them."""
        return {}

    def close(self) -> Any:
        return None


PRAGMAS = ("journal_mode", "synchronous")


def pragmas(connection: sqlite3.Connection) -> dict[str, Any]:
    """Settings of this very connection: `synchronous` is not kept in the database."""
    return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}


async def engine_pragmas(engine: Any) -> dict[str, Any]:
    """The same through an async SQLAlchemy engine."""
    async with engine.connect() as connection:
        return {name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in PRAGMAS}
