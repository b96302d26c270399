"""Look over a directory of session files: what is damaged, left over or out of place. Changes nothing.

`perdure check` is the command for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perdure._core import FileSessionStore, SessionData
from perdure.errors import PerdureError, SerializationError, SessionCorruptError, StoreError
from perdure.stores._plain_format import Journal, outside_change, read_journal
from perdure.stores._plain_names import candidate_stems, show_id, stem_of
from perdure.turn.repair import dangling_tool_calls

__all__ = ["Finding", "check_directory"]

_TEMP = re.compile(r"\.(.+)\.([0-9a-f]{16})\.tmp")
_TORN = re.compile(r"(.+)\.journal\.torn-.+")
_FIRST = 65536


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check_directory` found.

    kind        what it is, for programs: `damaged`, `not-a-session`, `unreadable`, `not-a-file`, `wrong-name`,
                `duplicate-id`, `changed-outside`, `orphan-journal`, `orphan-temp`, `torn-copy` are to be acted on;
                `torn-tail`, `deleted`, `dangling-tool-call`, `lock`, `temp`, `empty-journal`, `foreign` are notes
    path        the file
    message     what is wrong and what to do, without the path; never the content of a message
    act         whether a person has to do something; False: a note, perdure deals with it by itself
    session_id  the session that it concerns, where known
    line, column  the place in the file, 1-based, column in bytes, where known
    """

    kind: str
    path: str
    message: str
    act: bool
    session_id: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        return f"{place}: {self.message}"


def check_directory(dir: str | os.PathLike[str]) -> list[Finding]:
    """Everything worth saying about the files of a directory, sorted by file name; an empty list: all is well.

    Takes no lock and writes nothing; sessions that are being written meanwhile are read like any reader does.
    Each session is read whole, one at a time. Raises `StoreError` if `dir` is no directory or cannot be listed.
    """
    return _Check(Path(dir)).run()


class _Check:
    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._findings: list[Finding] = []
        self._stems: dict[str, str] = {}  # id to the stem under which it was found

    def run(self) -> list[Finding]:
        try:
            # Absolute, like the paths in the errors of the store.
            self._dir = self._dir.resolve(strict=True)
            names = sorted(entry.name for entry in self._dir.iterdir())
        except OSError as error:
            message = f"cannot check {self._dir}: {error.strerror}"
            raise StoreError(message, errno=error.errno, filename=str(self._dir)) from error
        # After the listing: the store would make a directory that is not there.
        self._store = FileSessionStore(self._dir)
        try:
            for name in names:
                self._file(name, names)
        finally:
            self._store.close()
        return self._findings

    def _found(self, kind: str, name: str, message: str, *, act: bool, **more: str | int | None) -> None:
        self._findings.append(Finding(kind, str(self._dir / name), message, act, **more))  # type: ignore[arg-type]

    def _file(self, name: str, names: list[str]) -> None:
        try:
            mode = (self._dir / name).lstat().st_mode
        except OSError:
            return  # gone since the directory was listed
        hidden = name.startswith(".")
        temp, torn = _TEMP.fullmatch(name), _TORN.fullmatch(name)
        ours = temp or torn or (not hidden and name.endswith((".json", ".journal", ".lock")))
        if not stat.S_ISREG(mode):
            if ours:
                what = "a symbolic link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no file"
                self._found("not-a-file", name, f"is {what}, where a session's file could be; move it away", act=True)
            elif name == "v1" and stat.S_ISDIR(mode):
                message = "sessions of a later A3S Code lie in here; perdure does not read them in place"
                self._found("foreign", name, message, act=False)
            elif not hidden:
                self._found("foreign", name, "is not of perdure; it is left alone", act=False)
        elif temp:
            self._temp(name, temp[1], temp[2])
        elif torn:
            message = (
                "holds the bytes of a save that a crash broke off and that was never acknowledged; "
                "delete it when you have looked at it"
            )
            self._found("torn-copy", name, message, act=True)
        elif not ours:
            if not hidden:
                self._found("foreign", name, "is not of perdure; it is left alone", act=False)
        elif name.endswith(".json"):
            self._session(name, name[:-5])
        elif name.endswith(".journal"):
            self._journal(name, f"{name[:-8]}.json" in names)
        else:
            self._lock(name)

    # Sessions

    def _session(self, name: str, stem: str) -> None:
        try:
            raw = self._read(name)
            if raw is None:
                return
            session_id = SessionData.from_json(raw).id
        except SessionCorruptError as error:
            kind = "damaged" if _looks_like_session(stem, error, name, self._dir) else "not-a-session"
            self._corrupt(error, name, kind)
            return
        except OSError as error:
            self._found("unreadable", name, f"cannot be read: {error.strerror or error}", act=True)
            return
        if stem not in candidate_stems(session_id):
            message = (
                f"holds session {show_id(session_id)} and is not found under this name; "
                f"rename it to {stem_of(session_id)}.json"
            )
            self._found("wrong-name", name, message, act=True, session_id=session_id)
            return
        if session_id in self._stems:
            message = (
                f"holds session {show_id(session_id)}, as {self._stems[session_id]}.json does; only "
                f"{stem_of(session_id)}.json is used: move the other one away"
            )
            self._found("duplicate-id", name, message, act=True, session_id=session_id)
            return
        self._stems[session_id] = stem
        self._loaded(name, session_id, raw)

    def _loaded(self, name: str, session_id: str, raw: bytes) -> None:
        """What comes to light when the session is loaded as a program would load it, its journal included."""
        stem = name[:-5]
        try:
            with _own_warnings() as warnings:
                data = self._store.load(session_id)
        except SessionCorruptError as error:
            self._corrupt(error, name, "damaged", session_id)
            return
        except PerdureError as error:
            self._found("unreadable", name, _without_path(error, name), act=True, session_id=session_id)
            return
        if data is None:
            if (self._dir / name).exists():
                message = "is deleted, but a crash broke the deletion off; the next delete or save clears it away"
                self._found("deleted", name, message, act=False, session_id=session_id)
            return
        if warnings is None:
            changed = _changed_slowly(raw)
        else:
            changed = any("changed outside perdure" in warning for warning in warnings)
        if changed:
            message = (
                "was changed outside perdure: its checksum does not fit. If you edited it, save the session once; "
                "if not, compare it with a backup"
            )
            self._found("changed-outside", name, message, act=True, session_id=session_id)
        self._torn_tail(f"{stem}.journal", session_id)
        try:
            for index, call in dangling_tool_calls(data.messages):
                message = (
                    f"messages[{index}]: tool call {show_id(call['id'])} has no result; "
                    "the next resume adds one that says it was interrupted"
                )
                self._found("dangling-tool-call", name, message, act=False, session_id=session_id)
        except SerializationError as error:
            self._found("damaged", name, _without_path(error, name), act=True, session_id=session_id)

    def _torn_tail(self, name: str, session_id: str) -> None:
        try:
            journal = self._parsed(name)
        except PerdureError:
            return  # a writer is at work: what counted was fit to be loaded a moment ago
        if journal is not None and journal.torn:
            message = (
                f"ends in {len(journal.torn)} bytes of a save that a crash broke off and that was never acknowledged; "
                "they are left out, and the next save puts them into a file beside it"
            )
            self._found("torn-tail", name, message, act=False, session_id=session_id)

    def _corrupt(self, error: SessionCorruptError, name: str, kind: str, session_id: str | None = None) -> None:
        # With a journal, either of the two files can be the damaged one.
        if error.path is not None and Path(error.path).parent == self._dir:
            name = Path(error.path).name
        advice = (
            "put a backup back, or move it away" if kind == "damaged" else "move it away if it does not belong here"
        )
        # The core's errors may bring their own advice; here is what to do in a directory of many.
        message = f"{_without_path(error, name).partition('; the file is left as it is')[0]}; {advice}"
        self._found(
            kind,
            name,
            message,
            act=True,
            session_id=session_id or error.session_id,
            line=error.line,
            column=error.column,
        )

    def _read(self, name: str) -> bytes | None:
        """The bytes, or the first ones only if they cannot be the beginning of a session."""
        try:
            with (self._dir / name).open("rb") as file:
                first = file.read(_FIRST)
                begin = first.lstrip(b" \t\r\n")
                return first if begin and not begin.startswith(b"{") else first + file.read()
        except FileNotFoundError:
            return None

    # What lies beside

    def _parsed(self, name: str) -> Journal | None:
        raw = self._read(name)
        return None if raw is None else read_journal(raw, str(self._dir / name))

    def _journal(self, name: str, has_snapshot: bool) -> None:
        if has_snapshot:
            return  # checked together with it
        try:
            journal = self._parsed(name)
        except PerdureError as error:
            self._found("orphan-journal", name, f"has no {name[:-8]}.json: {_without_path(error, name)}", act=True)
            return
        except OSError as error:
            self._found("unreadable", name, f"cannot be read: {error.strerror or error}", act=True)
            return
        if journal is None or (self._dir / f"{name[:-8]}.json").exists():
            return
        if journal.deleted:
            message = "belongs to a session that is deleted; a crash left it behind, and it can be deleted"
            self._found("deleted", name, message, act=False)
        elif journal.header is None:
            self._found("empty-journal", name, "is empty and belongs to no session; it can be deleted", act=False)
        else:
            message = (
                f"is a journal of session {show_id(journal.header['id'])} without its {name[:-8]}.json: "
                "put that file back from a backup, or move this one away"
            )
            self._found("orphan-journal", name, message, act=True, session_id=journal.header["id"])

    def _owner(self, stem: str) -> dict[str, object]:
        """What the lock file says about its last holder."""
        try:
            owner = json.loads((self._dir / f"{stem}.lock").read_bytes()[:4096])
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _temp(self, name: str, stem: str, token: str) -> None:
        if self._owner(stem).get("temp") == token:
            # Whoever takes this lock next looks for the file that the lock names.
            message = "is a save in progress, or one that a crash broke off; the next save of the session removes it"
            self._found("temp", name, message, act=False)
        elif (self._dir / name).exists():
            message = "is left of a save that a crash broke off and that was never acknowledged; delete it"
            self._found("orphan-temp", name, message, act=True)

    def _lock(self, name: str) -> None:
        owner = self._owner(name[:-5])
        who = f"process {owner['pid']} on {show_id(str(owner.get('host')))}" if "pid" in owner else "a process"
        message = (
            f"a session is open in {who}, or was when that ended; "
            "it stands in nobody's way, since the system lets go of a lock with its process"
        )
        self._found("lock", name, message, act=False)


def _looks_like_session(stem: str, error: SessionCorruptError, name: str, directory: Path) -> bool:
    """Whether a file that is no whole session was one once, rather than something else that ends in .json."""
    if (directory / f"{stem}.journal").exists():
        return True
    try:
        with (directory / name).open("rb") as file:
            first = file.read(_FIRST)
    except OSError:
        return True
    if not first.strip():
        return True  # what a crash of the system or a full disk leaves of a file
    return b'"messages"' in first or b'"perdure"' in first or (b'"id"' in first and "not a session" not in str(error))


def _changed_slowly(raw: bytes) -> bool:
    """The same in plain Python, for a program that has turned the warnings of logger `perdure` off."""
    try:
        return outside_change(json.loads(raw), raw, True) is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _without_path(error: Exception, name: str) -> str:
    """The error's text without the place in front, which a finding has of its own."""
    text = str(error)
    return re.sub(rf"^(?:<session>|\S*{re.escape(name)})(?::\d+)*:? ", "", text, count=1)


@contextmanager
def _own_warnings() -> Iterator[list[str] | None]:
    """Collect what this thread warns of on logger `perdure`, instead of logging it; None: warnings are off."""
    logger, thread = logging.getLogger("perdure"), threading.get_ident()
    if not logger.isEnabledFor(logging.WARNING):
        yield None
        return
    caught: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        caught.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield caught
    finally:
        logger.removeFilter(keep)
