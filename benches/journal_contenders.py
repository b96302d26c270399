"""Who takes part in journal_bench.py. Each has `change()` (not timed), `save()` (timed) and `cut()` (not timed)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from contenders import NEW_MESSAGES, PurePython, message
from perdure import Agent, FileSessionStore, Session, SessionData, SessionOptions

ID = "bench"
BATCH = 1_000


def store_session(directory: Path, count: int, id: str = ID) -> None:
    """A session of `count` messages, as one whole file."""
    with FileSessionStore(directory) as store:
        data = SessionData(id)
        for start in range(0, count, BATCH):
            data.append(*(message(n) for n in range(start, min(start + BATCH, count))))
        store.save(data)


def open_session(directory: Path, id: str = ID, **options: Any) -> Session:
    """A stored session with automatic saves."""
    settings = SessionOptions(file_session_store=str(directory), auto_save=True, **options)
    return Agent.create("{}").resume_session(id, settings)


def allowed_growth(count: int) -> int:
    """Messages by which a session may outgrow its size before it is cut back."""
    return max(5 * NEW_MESSAGES, count // 50)


class Turns:
    """A session that a turn of two messages is added to, and that is cut back to its size now and then."""

    def __init__(self, count: int) -> None:
        self.count = self.length = count
        self.new: list[dict[str, Any]] = []

    def change(self) -> None:
        if self.length >= self.count + allowed_growth(self.count):
            self.cut()
            self.length = self.count
        self.new = [message(self.length + n) for n in range(NEW_MESSAGES)]
        self.length += NEW_MESSAGES

    def cut(self) -> None:
        """Back to the first `count` messages, stored so."""

    def save(self) -> None:
        """Adds the new messages and stores them."""
        raise NotImplementedError

    def close(self) -> None:
        """The end of the measurement."""


class SessionAppend(Turns):
    """`Session.append` with automatic saves: what a program calls."""

    journal, durability = True, "full"

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(count)
        self.directory = directory
        store_session(directory, count)
        self.session = open_session(directory, journal=self.journal, durability=self.durability)
        # The same engine: it counts for all stores of a directory.
        self.store = FileSessionStore(directory, journal=self.journal, durability=self.durability)
        self.change()
        self.save()

    def cut(self) -> None:
        self.session.rewind(self.count)

    def save(self) -> None:
        self.session.append(*self.new)

    def close(self) -> None:
        self.session.close()

    @property
    def path(self) -> Path:
        return self.directory / f"{ID}.journal"

    def folds(self) -> int:
        """Whole files written so far."""
        return self.store.stats().snapshots

    def last_line(self) -> bytes | None:
        """The journal's last line if it holds a turn, not a cut; None after a fold."""
        lines = self.tail(16 * 1024).splitlines(keepends=True)
        return lines[-1] if lines and b'"text"' in lines[-1] else None

    def tail(self, count: int) -> bytes:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - count))
            return file.read()

    def fill(self) -> None:
        """Makes the journal so long that the fold is near, by lines of many messages that are cut off again."""
        snapshot = (self.directory / f"{ID}.json").stat().st_size
        batch = [message(self.count + n) for n in range(BATCH)]
        while True:
            room = self.fold_limit() - self.path.stat().st_size - 16 * 1024
            count = min(BATCH, int(room * self.count / snapshot))
            if count < 4 * NEW_MESSAGES:
                break
            self.session.append(*batch[:count])
            self.session.rewind(self.count)
        self.length = self.count

    def fold_limit(self) -> int:
        """The size that a journal outgrows when it is folded (docs/durability.md)."""
        return max(2 * (self.directory / f"{ID}.json").stat().st_size, 64 * 1024)


class SessionAppendProcess(SessionAppend):
    """The same with `durability="process"`: lines are not synced, folds are."""

    durability = "process"


class SessionAppendSnapshot(SessionAppend):
    """The same in snapshot mode: the whole file at every save."""

    journal = False


class StoreSave(Turns):
    """`SessionData.append` and `FileSessionStore.save` in journal mode, without a `Session` around them."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(count)
        store_session(directory, count)
        self.store = FileSessionStore(directory, journal=True)
        data = self.store.load(ID)
        assert data is not None
        self.data = data
        self.change()
        self.save()

    def cut(self) -> None:
        self.data.truncate(self.count)
        self.store.save(self.data)

    def save(self) -> None:
        self.data.append(*self.new)
        self.store.save(self.data)

    def close(self) -> None:
        self.store.release(self.data)


class PythonStore(Turns):
    """`PythonFileSessionStore.save_dict`: `json.dumps` of every message at every save."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(count)
        self.store = PurePython(directory, count)

    def cut(self) -> None:
        self.store.cut(self.count)

    def save(self) -> None:
        self.store.session["messages"].extend(self.new)
        self.store.save()


class Floor:
    """One write of a journal line's very bytes at the end of an open file, and with `sync` the fdatasync of it."""

    def __init__(self, path: Path, rival: SessionAppend, *, sync: bool = True) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.end, self.rival, self.sync = 0, rival, sync
        line = rival.last_line()
        assert line is not None
        self.line = line
        self.save()

    def change(self) -> None:
        """What the rival wrote last, unless that was a fold or a cut."""
        self.line = self.rival.last_line() or self.line

    def save(self) -> None:
        self.end += os.pwrite(self.fd, self.line, self.end)
        if self.sync:
            os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
