"""`PythonFileSessionStore`: the file format in pure Python, for comparison with `FileSessionStore`.

It follows docs/format.md on its own, on plain dicts and the standard library's `json`, and shares no code
with the Rust core: differential tests hold one against the other, and the benchmarks use it as the plain
rival that encodes every message at every save. It is as safe as the core's snapshot mode, only slower.
"""

# Plain calls of the system on plain strings: this is the way of every save.
# ruff: noqa: PTH100, PTH108

from __future__ import annotations

import builtins
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from perdure.errors import (
    SessionConflictError,
    SessionCorruptError,
    SessionExistsError,
    StoreError,
)
from perdure.stores import _plain_disk as disk
from perdure.stores import _plain_format as fmt
from perdure.stores import _plain_listing as listing
from perdure.stores._force import save_with
from perdure.stores._plain_lock import session_lock
from perdure.stores._plain_names import candidate_stems, check_id, id_of, show_id, stem_of
from perdure.stores._plain_reader import Reader, Stored
from perdure.stores._plain_session import Base, PlainSession, Seen, base_of, new_session_dict
from perdure.types import SaveReceipt, SessionInfo

if TYPE_CHECKING:
    from perdure._core import SessionData, SessionDelta

__all__ = ["PlainSession", "PythonFileSessionStore", "new_session_dict"]

logger = logging.getLogger("perdure")


class PythonFileSessionStore:
    """Sessions as files of format 1 in one directory, in snapshot mode, in pure Python. POSIX only.

    directory     made (mode 0700) by the first save; nothing is touched before
    lock_timeout  seconds to wait for a session that another process is writing
    check_crc     False: skip the CRC of files that carry one (pure Python computes about 10 MB/s)

    A loaded file's own spelling of numbers and escapes is not kept, only its values: `json` does not tell it.
    Every `save_dict` writes the whole file, also if nothing has changed. Safe to use from any thread and
    after a fork.
    """

    revisions = True
    threadsafe = True

    def __init__(self, directory: str | os.PathLike[str], *, lock_timeout: float = 0, check_crc: bool = True) -> None:
        self.directory = Path(directory)
        self._dir = os.path.abspath(self.directory)  # a later chdir must not move the store
        self._lock_timeout = lock_timeout
        self._files = Reader(self._dir, check_crc)
        self._seen: WeakKeyDictionary[SessionData, Seen] = WeakKeyDictionary()
        if os.path.lexists(self._dir) and not Path(self._dir).is_dir():
            raise StoreError(f"{self._dir} is not a directory; sessions need one", filename=self._dir)

    def __repr__(self) -> str:
        return f"PythonFileSessionStore({self._dir!r})"

    # --- plain dicts

    def save_dict(self, d: dict[str, Any], *, create: bool = False) -> SaveReceipt:
        """Write the session as a whole; durable when it returns.

        A dict without a `perdure` key is a fresh session, and so is any with `create=True` (a copy: it gets a
        lineage of its own and revision 1). `d["perdure"]` is set to what was written. Raises
        `SessionExistsError`, `SessionConflictError`, `SessionLockedError`, `SessionCorruptError` (what is
        stored is damaged), `SerializationError` (before anything is written), `InvalidSessionIdError`,
        `StoreError`.
        """
        base = None if create else base_of(d)
        lineage = (base and base[0]) or secrets.token_hex(16)
        count = d["perdure"].get("message_count") if base and base[1] else 0
        known = count if type(count) is int else 0

        def saved(perdure: dict[str, Any], identity: disk.Identity) -> None:
            d["perdure"] = perdure
            if isinstance(d, PlainSession):
                d.seen = Seen(identity)

        seen = d.seen if isinstance(d, PlainSession) else None
        return self._save(d, base, seen, lineage, known, saved)

    def load_dict(self, id: str) -> PlainSession | None:
        """The session with this id, or None. A journal beside the file is read too.

        Raises `SessionCorruptError`, `SerializationError` (a number that Python cannot hold), `StoreError`,
        `InvalidSessionIdError`. A file that others changed but that is whole loads with a warning.
        """
        found = self._files.find(check_id(id), self._files.read)
        if found is None:
            return None
        stem, stored = found
        if stored.outside_change is not None:
            path = self._files.path(stem, ".json")
            logger.warning("%s was changed outside perdure (%s); loaded as it is", path, stored.outside_change)
        if stored.journal.torn:
            path, size = self._files.path(stem, ".journal"), len(stored.journal.torn)
            logger.warning("%s: its last %d bytes were never written completely and do not count", path, size)
        session = PlainSession(stored.session)
        if not stored.journal.lines:
            # With a journal, folding it changes the file but not the session.
            session.seen = Seen(stored.identity, hashlib.sha256(stored.data).digest())
        return session

    def delete(self, id: str) -> bool:
        """Remove the session for good; False: there is none.

        Raises `SessionLockedError`, `SessionCorruptError` (look at the file first), `StoreError`.
        """
        check_id(id)
        if not Path(self._dir).is_dir():
            return False
        with disk.os_errors("delete a session in", self._dir):
            stem = self._stem_to_write(id)
            while True:
                with self._lock(stem, id):
                    found = self._files.find(id, self._files.read)
                    if found is None:
                        self._sweep(stem)
                        return False
                    if found[0] == stem:
                        self._bury(id, stem, found[1])
                        return True
                stem = found[0]

    def exists(self, id: str) -> bool:
        """Whether there is a session with this id. A damaged file raises what `load_dict` would."""
        return self._files.find(check_id(id), self._files.peek) is not None

    def list(self) -> builtins.list[str]:
        """The ids of all sessions, sorted. Files that are not sessions are left out."""
        return sorted({stored.session["id"] for stem in self._files.stems() if (stored := self._files.listed(stem))})

    def infos(self, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[SessionInfo], str | None]:
        """At most `limit` sessions, the last written first, and the cursor of the next page (None: no more).

        Reads heads only, and only those of the page. `ValueError`: a limit below 1, or a cursor from
        elsewhere.
        """
        if limit < 1:
            raise ValueError(f"limit: at least 1, not {limit}")
        after = None if cursor is None else listing.place_of(cursor)
        places: builtins.list[tuple[listing.Place, str]] = []
        for stem in self._files.stems():
            times = [self._files.modified(stem, ending) for ending in (".json", ".journal")]
            if max(times) >= 0:
                places.append(((-max(times), id_of(stem) or stem), stem))
        page: builtins.list[SessionInfo] = []
        last: listing.Place = (0, "")
        for place, stem in sorted(places):
            if after is not None and place <= after:
                continue
            stored = self._files.listed(stem)
            if stored is None:
                continue
            if len(page) == limit:
                return page, listing.cursor_after(last)
            page.append(listing.info_of(stored.session, stored.identity[1] + stored.journal.good, -place[0]))
            last = place
        return page, None

    # --- the store protocol

    def save(self, data: SessionData | dict[str, Any], /, *, create: bool = False, force: bool = False) -> SaveReceipt:
        """`save_dict` for a `SessionData`; moves its base. One that has not changed is not written.

        `create`: as a new session with a lineage of its own, whatever `data` came from. `force`: over
        whatever is stored. A plain dict is given to `save_dict`.
        """
        if isinstance(data, dict):
            if force:
                raise TypeError("save(force=True) takes a SessionData; load a dict again and change that")
            return self.save_dict(data, create=create)
        seen = None if create or force else self._seen.get(data)

        def store(delta: SessionDelta, settle: Callable[[], None]) -> SaveReceipt:
            def saved(_: dict[str, Any], identity: disk.Identity) -> None:
                settle()
                self._seen[data] = Seen(identity)

            base: Base | None = None
            if delta.base_revision is not None:
                base = (delta.lineage if delta.base_revision else None, delta.base_revision)
            session = delta.session.to_dict()
            return self._save(session, base, seen, delta.lineage, delta.first_index, saved)

        receipt = save_with(data, store, self.load, create=create, force=force)
        if receipt is not None:
            return receipt
        found = self._files.find(check_id(data.id), self._files.peek)
        if found is None or found[1].base != (data.lineage, data.revision):
            revision = None if found is None else found[1].base[1]
            raise self._conflict(data.id, data.revision, revision, "somebody else saved or deleted it")
        return SaveReceipt(data.revision, 0, 0, 0.0, self._files.path(found[0], ".json"))

    def load(self, id: str) -> SessionData | None:
        """`load_dict` as a `SessionData`."""
        from perdure._core import SessionData

        session = self.load_dict(id)
        if session is None:
            return None
        data = SessionData.from_dict(session)
        if session.seen is not None:
            self._seen[data] = session.seen
        return data

    # --- saving

    def _save(
        self,
        d: dict[str, Any],
        base: Base | None,
        seen: Seen | None,
        lineage: str,
        known: int,
        saved: Callable[[dict[str, Any], disk.Identity], None],
    ) -> SaveReceipt:
        """Write `d`, made from `base`; its messages from `known` on count as new.

        `saved` is called once the new file is in its place, before that is made durable.
        """
        started = time.perf_counter()
        id = check_id(d.get("id"))
        built = fmt.build_snapshot(d, lineage, (base[1] if base else 0) + 1, known)
        with disk.os_errors("save a session in", self._dir):
            if base is None:
                disk.make_directory(self._dir)
            elif not Path(self._dir).is_dir():
                raise self._conflict(id, base[1], None, f"the directory {self._dir} is gone")
            stem = self._stem_to_write(id)
            while True:
                with self._lock(stem, id):
                    found = self._files.find(id, self._files.peek)
                    now = found[0] if found else stem_of(id)
                    if now == stem:
                        self._compare(id, base, seen, found[1] if found else None, stem)
                        self._commit(stem, built, found[1].journal if found else None, saved)
                        break
                stem = now  # the file went or came between the look and the lock
        return SaveReceipt(
            revision=built.perdure["revision"],
            bytes_written=len(built.data),
            new_bytes=built.new_bytes,
            seconds=time.perf_counter() - started,
            location=self._files.path(stem, ".json"),
        )

    def _compare(
        self,
        id: str,
        base: Base | None,
        seen: Seen | None,
        stored: Stored | None,
        stem: str,
    ) -> None:
        """Compare and swap: raise unless what is stored is what the session was made from."""
        if base is None:
            if stored is not None:
                raise SessionExistsError(
                    f"session {show_id(id)} exists already: {self._files.path(stem, '.json')}; load it, or "
                    "take another id",
                    session_id=id,
                )
            self._sweep(stem)
            self._refuse_twin(id, stem)
            return
        if stored is None:
            raise self._conflict(id, base[1], None, "it was deleted since it was loaded")
        if stored.base != base:
            another = base[0] is not None and stored.base[0] != base[0]
            what = "another session was stored in its place" if another else "somebody else saved it"
            raise self._conflict(id, base[1], stored.base[1], what)
        if seen is not None and seen.identity != stored.identity:
            again = disk.read_file(self._files.path(stem, ".json")) if seen.digest is not None else None
            if again is None or hashlib.sha256(again[0]).digest() != seen.digest:
                raise self._conflict(id, base[1], stored.base[1], "its file was changed outside perdure")

    def _conflict(self, id: str, expected: int, found: int | None, what: str) -> SessionConflictError:
        state = "nothing is stored" if found is None else f"revision {found} is stored"
        return SessionConflictError(
            f"session {show_id(id)}: {what} ({state}, revision {expected} was expected); load it again and "
            "repeat the change, or save it under another id",
            session_id=id,
            expected=expected,
            found=found,
        )

    def _refuse_twin(self, id: str, stem: str) -> None:
        """The file name may be taken: by A3S Code, or where letters and capitals are the same to the file system."""
        path = self._files.path(stem, ".json")
        if not os.path.lexists(path):
            return
        try:
            stored = self._files.read(stem)
        except SessionCorruptError:
            stored = None
        holder = f"session {show_id(stored.session['id'])}" if stored else "something else"
        raise SessionExistsError(
            f"session {show_id(id)} cannot be created: its file {path} holds {holder}; take another id",
            session_id=id,
        )

    def _commit(
        self,
        stem: str,
        built: fmt.Built,
        journal: fmt.Journal | None,
        saved: Callable[[dict[str, Any], disk.Identity], None],
    ) -> None:
        path = self._files.path(stem, ".journal")
        if journal is not None and journal.torn:
            self._put_aside(path, journal.torn)
        # The session stands on what is in place now, also if making it durable fails after that and raises.
        disk.replace(self._dir, stem, built.data, lambda identity: saved(built.perdure, identity))
        if self._files.modified(stem, ".journal") >= 0:
            try:
                disk.empty_and_remove(path, self._dir)
            except OSError as error:
                # The snapshot has everything and is durable; the journal is known to be older than it.
                logger.warning("%s: cannot be removed: %s; it no longer counts", path, error.strerror)

    def _bury(self, id: str, stem: str, stored: Stored) -> None:
        """Delete for good: a tombstone first, so that a crash from then on cannot bring the session back."""
        journal, path = stored.journal, self._files.path(stem, ".journal")
        if journal.torn:
            self._put_aside(path, journal.torn)
        perdure = stored.session.get("perdure")
        disk.append(path, fmt.tombstone(journal, id, perdure, stored.data, int(time.time())), journal.good)
        disk.sync_directory(self._dir)
        self._finish_delete(stem)

    def _put_aside(self, path: str, torn: bytes) -> None:
        aside = disk.put_aside(path, torn)
        logger.warning("%s: %d bytes that were never written completely were moved to %s", path, len(torn), aside)

    def _sweep(self, stem: str) -> None:
        """With the lock held and no session under this name: finish a delete, put a torn journal aside."""
        path = self._files.path(stem, ".journal")
        journal = fmt.read_journal(disk.read_journal_file(path), path)
        if journal.deleted:
            self._finish_delete(stem)
        elif journal.header is None and os.path.lexists(path):
            if journal.torn:
                self._put_aside(path, journal.torn)
            disk.empty_and_remove(path, self._dir)

    def _finish_delete(self, stem: str) -> None:
        for ending in (".json", ".journal"):
            try:
                os.unlink(self._files.path(stem, ending))
            except FileNotFoundError:
                pass
            disk.sync_directory(self._dir)

    def _lock(self, stem: str, id: str) -> AbstractContextManager[None]:
        return session_lock(self._files.path(stem, ".lock"), id, self._lock_timeout)

    def _stem_to_write(self, id: str) -> str:
        """The name that was found, else ours. To be looked at again once its lock is held."""
        stems = candidate_stems(id)
        found = self._files.find(id, self._files.peek) if len(stems) > 1 else None
        return found[0] if found else stems[0]
