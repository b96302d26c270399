"""read, write, edit, ls."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .output import SLACK, printable
from .paths import Place, Workspace, describe_kind, open_directory, open_regular
from .types import ToolFailure
from .worker import CancelToken

__all__ = ["Call", "edit_file", "list_directory", "looks_binary", "read_file", "write_file"]

MAX_EDIT_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 5_000
SNIFF_BYTES = 8192

# One change at a time in a process: two edits of one file at once would lose one of them.
_writing = threading.Lock()


@dataclass(frozen=True)
class Call:
    """What a built-in tool has to work with."""

    workspace: Workspace
    max_output: int
    mask: Callable[[str], str]
    timeout: float | None = None
    token: CancelToken = field(default_factory=CancelToken)
    environment: Callable[[], dict[str, str]] = lambda: dict(os.environ)


def looks_binary(sample: bytes) -> bool:
    """Whether the beginning of a file says that it is no text. UTF-16 counts as binary."""
    return b"\0" in sample[:SNIFF_BYTES]


def read_file(call: Call, *, path: str, offset: int = 1, limit: int = 2000) -> str:
    """Lines `offset` to `offset + limit - 1` as they are, or as many whole ones as fit."""
    if offset < 1 or limit < 1:
        raise ToolFailure("offset and limit start at 1")
    with call.workspace.locate(path) as place:
        _must_be_there(place)
        fd, status = open_regular(place.parent, place.name, place.shown)
    with os.fdopen(fd, "rb", buffering=256 * 1024) as file:
        sample = file.read(SNIFF_BYTES)
        if looks_binary(sample):
            raise ToolFailure(f"{place.shown} is a binary file of {status.st_size:,} bytes; it is not shown")
        if not sample:
            return "[the file is empty]"
        file.seek(0)
        return _lines(call, file, place.shown, offset, limit)


def _lines(call: Call, file: Any, shown: str, offset: int, limit: int) -> str:
    room = call.max_output
    cap = 4 * (room + SLACK)
    out: list[str] = []
    used = 0
    number = 0
    while True:
        call.token.check()
        raw: bytes = file.readline(cap)
        if not raw:
            break
        number += 1
        whole = raw.endswith(b"\n") or len(raw) < cap
        if not whole:
            _skip_line(call, file)
        if number < offset:
            continue
        if number >= offset + limit:
            return "".join(out) + _more(offset, number)
        # Masked before anything is cut off, so that no half of a secret is left.
        line = call.mask(raw.decode("utf-8", "replace"))
        if used + len(line) > room or not whole:
            if out:
                return "".join(out) + _more(offset, number)
            note = f"[line {number} is too long and cut here"
            return f"{line[:room]}\n{note}; continue with offset={number + 1}]"
        out.append(line)
        used += len(line)
    if not out:
        raise ToolFailure(f"{shown} has {number} lines; offset {offset} is past the end")
    return "".join(out)


def _skip_line(call: Call, file: Any) -> None:
    while True:
        call.token.check()
        rest: bytes = file.readline(1 << 20)
        if not rest or rest.endswith(b"\n"):
            return


def _more(offset: int, next_line: int) -> str:
    return f"\n[lines {offset} to {next_line - 1}; there is more, continue with offset={next_line}]"


def write_file(call: Call, *, path: str, content: str) -> str:
    """Write the whole file at once: either the old content is there or the new one."""
    data = _encode(content, "content")
    with _writing, call.workspace.locate(path, make_parents=True) as place:
        _replace(call, place, data)
        verb = "created" if place.status is None else "overwrote"
    return f"{verb} {place.shown} ({len(data):,} bytes)"


def edit_file(call: Call, *, path: str, old: str, new: str, replace_all: bool = False) -> str:
    """Replace `old`, which must be there exactly once unless `replace_all`."""
    if not old:
        raise ToolFailure("old cannot be empty; use write for a new file")
    if old == new:
        raise ToolFailure("old and new are the same; nothing to change")
    _encode(new, "new")
    with _writing, call.workspace.locate(path) as place:
        _must_be_there(place)
        text, status = _read_text(place)
        count = text.count(old)
        if count == 0 and "\r\n" in text and "\n" in old:
            # A reader of the file's text does not see how its lines end; the file keeps its own line ends.
            old = old.replace("\r\n", "\n").replace("\n", "\r\n")
            new = new.replace("\r\n", "\n").replace("\n", "\r\n")
            count = text.count(old)
        if count == 0:
            raise ToolFailure(
                f"old does not occur in {place.shown}; it must match exactly, white space included. Read the file first"
            )
        if count > 1 and not replace_all:
            raise ToolFailure(
                f"old occurs {count} times in {place.shown}; give more of the text around it, or replace_all=true"
            )
        data = text.replace(old, new).encode("utf-8")
        _replace(call, place, data, expected=status)
    return f"edited {place.shown} ({count} {'place' if count == 1 else 'places'})"


def _read_text(place: Place) -> tuple[str, os.stat_result]:
    fd, status = open_regular(place.parent, place.name, place.shown)
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_EDIT_BYTES + 1)
    if len(data) > MAX_EDIT_BYTES:
        raise ToolFailure(f"{place.shown} is over {MAX_EDIT_BYTES:,} bytes; edit it with bash")
    if looks_binary(data):
        raise ToolFailure(f"{place.shown} is a binary file; it cannot be edited as text")
    try:
        return data.decode("utf-8"), status
    except UnicodeDecodeError as error:
        raise ToolFailure(
            f"{place.shown} is not UTF-8 (byte {error.start}); editing it as text would damage it"
        ) from None


def _encode(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ToolFailure(f"{what} holds a lone surrogate at character {error.start}, which UTF-8 cannot") from None


def _must_be_there(place: Place) -> None:
    if place.status is None:
        raise ToolFailure(f"there is no {place.shown} in the workspace")
    if place.is_directory:
        raise ToolFailure(f"{place.shown} is a directory; use ls or glob")


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _replace(call: Call, place: Place, data: bytes, expected: os.stat_result | None = None) -> None:
    """A temp file beside the target, synced, renamed over it. Mode and, where allowed, owner are kept."""
    status = place.status
    if status is not None:
        if not stat.S_ISREG(status.st_mode):
            raise ToolFailure(f"{place.shown} is {describe_kind(status.st_mode)}; it cannot be written")
        # A rename needs no permission on the file itself; a file made read-only shall stay as it is.
        if not os.access(place.name, os.W_OK, dir_fd=place.parent):
            raise ToolFailure(f"{place.shown} is read-only; change its mode first if you may")
    temp = f".perdure-{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temp, flags, 0o666 if status is None else 0o600, dir_fd=place.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if status is not None:
                _keep_owner_and_mode(fd, status)
            os.fsync(fd)
        if expected is not None:
            now = os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
            if _identity(now) != _identity(expected):
                raise ToolFailure(f"{place.shown} was changed by somebody else meanwhile; read it again")
        call.token.check()
        os.rename(temp, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)
    except BaseException:
        os.unlink(temp, dir_fd=place.parent)
        raise


def _keep_owner_and_mode(fd: int, status: os.stat_result) -> None:
    mine = os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.fchown(fd, status.st_uid, status.st_gid)
        except PermissionError:
            pass  # only root may give files away; the content matters more
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def list_directory(call: Call, *, path: str = ".") -> str:
    """One entry a line, sorted: directories with a slash, links with their target, files with their size."""
    with call.workspace.locate(path) as place:
        fd = open_directory(place)
        try:
            names = sorted(os.listdir(fd))  # noqa: PTH208 (an open directory has no path)
            lines = []
            for name in names[:MAX_ENTRIES]:
                call.token.check()
                lines.append(_entry(fd, name))
        finally:
            os.close(fd)
    if not names:
        return f"[{place.shown} is empty]"
    if len(names) > MAX_ENTRIES:
        lines.append(f"[... {len(names) - MAX_ENTRIES:,} more entries; use glob with a pattern ...]")
    return "\n".join(lines)


def _entry(fd: int, name: str) -> str:
    shown = printable(name)
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return f"{shown}/"
        if stat.S_ISLNK(status.st_mode):
            return f"{shown} -> {printable(os.readlink(name, dir_fd=fd))}"
        if stat.S_ISREG(status.st_mode):
            return f"{shown} ({status.st_size:,} bytes)"
        return f"{shown} ({describe_kind(status.st_mode)})"
    except OSError as error:
        return f"{shown} ({error.strerror})"
