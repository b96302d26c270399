"""Finding and reading sessions (docs/format.md, sections 3 and 6). Takes no lock, changes nothing."""

# Plain calls of the system on plain strings: this is the way of every save.
# ruff: noqa: PTH116, PTH118, PTH208

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perdure.errors import SessionCorruptError, StoreError
from perdure.stores import _plain_disk as disk
from perdure.stores import _plain_format as fmt
from perdure.stores._plain_json import ADVICE
from perdure.stores._plain_names import a3s_v1_names, candidate_stems, show_id, stem_of

logger = logging.getLogger("perdure")

# A reader holds no lock: when journal and snapshot do not fit, a writer may have been between its two reads.
_READS = 6
_PAUSE = 0.004
_HEAD_BYTES = 65536


@dataclass(slots=True)
class Stored:
    """What lies under a name: the session, its journal applied, or only its head; and the files as read."""

    session: dict[str, Any]
    data: bytes
    identity: disk.Identity
    journal: fmt.Journal
    outside_change: str | None = None

    @property
    def base(self) -> tuple[str | None, int]:
        perdure = self.session.get("perdure")
        return (perdure["lineage"], perdure["revision"]) if perdure else (None, 0)


class Reader:
    """Reads the sessions of one directory."""

    def __init__(self, directory: str, check_crc: bool) -> None:
        self._dir = directory
        self._check_crc = check_crc

    def path(self, stem: str, ending: str) -> str:
        return os.path.join(self._dir, stem + ending)

    def find(self, id: str, look: Callable[[str], Stored | None]) -> tuple[str, Stored] | None:
        """The name under which the session lies, and what `look` sees there."""
        ours = stem_of(id)
        for stem in candidate_stems(id):
            try:
                stored = look(stem)
            except SessionCorruptError as error:
                error.session_id = error.session_id or id
                raise
            if stored is None:
                continue
            other = stored.session["id"]
            if other == id:
                return stem, stored
            # This may be the other session's own name: A3S Code's for an id with a slash, or ours on a file
            # system that takes small letters and capitals for the same.
            at_home = any(stem.lower() == name.lower() for name in candidate_stems(other))
            if stem == ours and not at_home:
                path = self.path(stem, ".json")
                raise SessionCorruptError(
                    f"{path} holds session {show_id(other)}, not {show_id(id)}: it was renamed; its name "
                    f"should be {stem_of(other)}.json",
                    session_id=id,
                    path=path,
                )
        for name in a3s_v1_names(id):
            path = os.path.join(self._dir, *name.split("/"))
            if os.path.lexists(path):
                raise StoreError(
                    f"session {show_id(id)} is there in A3S Code's later layout, which perdure does not read "
                    f"in place: {path}. `perdure import` of a later perdure is going to bring it over",
                    filename=path,
                )
        return None

    def read(self, stem: str) -> Stored | None:
        """The whole session under a name, its journal applied; None: there is none, or it is deleted."""
        path = self.path(stem, ".journal")
        for left in reversed(range(_READS)):
            try:
                return self._read_once(stem, path)
            except fmt.MismatchError as error:
                if not left:
                    snapshot = self.path(stem, ".json")
                    what = f"{path} and {snapshot} do not belong together: {error}; {ADVICE}"
                    raise SessionCorruptError(what, path=path) from None
            except SessionCorruptError as error:
                if not left or error.path != path:
                    raise
            time.sleep(_PAUSE)
        raise AssertionError("unreachable")

    def _read_once(self, stem: str, journal_path: str) -> Stored | None:
        journal = fmt.read_journal(disk.read_journal_file(journal_path), journal_path)
        path = self.path(stem, ".json")
        snapshot = disk.read_file(path)
        if journal.deleted:
            return None
        if snapshot is None:
            if journal.header is not None:
                raise fmt.MismatchError("there is a journal but no snapshot")
            return None
        data, identity = snapshot
        session = fmt.read_snapshot(data, path)
        change = fmt.outside_change(session, data, self._check_crc)
        fmt.merge(session, data, journal, journal_path)
        return Stored(session, data, identity, journal, change)

    def peek(self, stem: str) -> Stored | None:
        """Like `read`, but of a file in perdure's own layout and without a journal only the head."""
        return self.read(stem) if self.modified(stem, ".journal") >= 0 else self._peek_snapshot(stem)

    def _peek_snapshot(self, stem: str) -> Stored | None:
        path = self.path(stem, ".json")
        with disk.open_regular(path) as opened:
            if opened is None:
                return None
            fd, status = opened
            first = disk.pread(fd, _HEAD_BYTES, 0)
            head = fmt.read_head(first, path)
            size = head["perdure"].get("messages_bytes") if head else None
            at = status.st_size - 3 - size if type(size) is int else -1
            if at > 2 and disk.pread(fd, 3, status.st_size - 3) == b"\n}\n":
                if at > len(first):
                    first += disk.pread(fd, at - len(first), len(first))
                if first[at - 2 : at] == b",\n" and disk.pread(fd, 15, at) == b'  "messages": [':
                    fields = fmt.read_fields(first[: at - 2] + b"\n}", path)
                    return Stored(fields, b"", disk.identity_of(status), fmt.Journal())
        return self.read(stem)

    def listed(self, stem: str) -> Stored | None:
        """The session for a listing; None: what lies there is none, or not at home under this name."""
        try:
            try:
                stored = self.peek(stem)
            except SessionCorruptError:
                # With a damaged journal it is still a session, which a listing should not hide.
                stored = self._peek_snapshot(stem) if self.modified(stem, ".journal") >= 0 else None
        except SessionCorruptError:
            return None
        except StoreError as error:
            logger.warning("left out of the listing: %s", error)
            return None
        return stored if stored and stem in candidate_stems(stored.session["id"]) else None

    def stems(self) -> list[str]:
        """The names of everything in the directory that may be a session."""
        with disk.os_errors("list", self._dir):
            try:
                names = os.listdir(self._dir)
            except FileNotFoundError:
                return []
        return [name[:-5] for name in names if name.endswith(".json")]

    def modified(self, stem: str, ending: str) -> int:
        """The modification time (ns) of a session's file, -1 if there is none."""
        try:
            return os.stat(self.path(stem, ending), follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            return -1
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return -1
            raise
