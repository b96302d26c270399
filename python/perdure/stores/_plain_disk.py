"""What `PythonFileSessionStore` does to a disk: careful reads, atomic replacement, directory syncs."""

# Plain calls of the system on plain strings: this is the way of every save.
# ruff: noqa: PTH102, PTH104, PTH108, PTH112, PTH118, PTH120

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from perdure.errors import PerdureError, SessionCorruptError, StoreError
from perdure.stores._plain_json import ADVICE

Identity = tuple[int, int, int]
"""Inode, size and modification time (ns) of a snapshot."""

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


@contextmanager
def os_errors(doing: str, path: str) -> Iterator[None]:
    """Turn an `OSError` of the system into a `StoreError` that says what was being done to which path."""
    try:
        yield
    except PerdureError:
        raise
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else path
        where = "" if name == path else f" ({name})"
        what = f"cannot {doing} {path}: {error.strerror or error}{where}"
        raise StoreError(what, errno=error.errno, filename=name) from error


def identity_of(status: os.stat_result) -> Identity:
    return (status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def open_regular(path: str) -> Iterator[tuple[int, os.stat_result] | None]:
    """A regular file, open for reading; None: there is none, and under an over-long name there cannot be.

    Anything else at the path (directory, FIFO, symbolic link, device) is `SessionCorruptError`; nothing
    blocks.
    """
    with os_errors("read", path):
        try:
            fd = os.open(path, os.O_RDONLY | _CLOEXEC | _NOFOLLOW | _NONBLOCK)
        except FileNotFoundError:
            fd = -1
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                yield None
                return
            if error.errno in (errno.ELOOP, errno.EMLINK):
                _not_regular(path, "a symbolic link, which perdure does not follow")
            if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):
                _not_regular(path, "a socket or a device")
            raise
        if fd == -1:
            yield None
            return
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                _not_regular(path, "a directory")
            if not stat.S_ISREG(status.st_mode):
                _not_regular(path, "a FIFO or a device")
            yield fd, status
        finally:
            os.close(fd)


def _not_regular(path: str, what: str) -> NoReturn:
    raise SessionCorruptError(f"{path} is {what}, not a session file; move it away", path=path)


def pread(fd: int, size: int, at: int) -> bytes:
    """`size` bytes from `at` on, fewer only at the end of the file."""
    parts = []
    while size > 0 and (part := os.pread(fd, size, at)):
        parts.append(part)
        at += len(part)
        size -= len(part)
    return b"".join(parts)


def read_file(path: str) -> tuple[bytes, Identity] | None:
    """A snapshot's bytes. One that cannot be a session is refused by its first bytes, however long it is."""
    with open_regular(path) as opened:
        if opened is None:
            return None
        fd, status = opened
        first = pread(fd, 65536, 0)
        begin = first.lstrip(b" \t\r\n")
        if begin and not begin.startswith(b"{"):
            line, column = first.count(b"\n", 0, len(first) - len(begin)) + 1, 1
            what = f"{path}:{line}: is not a session: it does not begin with an object; {ADVICE}"
            raise SessionCorruptError(what, path=path, line=line, column=column)
        return first + pread(fd, max(status.st_size - len(first), 0), len(first)), identity_of(status)


def read_journal_file(path: str) -> bytes:
    """A journal's bytes, none if there is no such file."""
    with open_regular(path) as opened:
        return b"" if opened is None else pread(opened[0], opened[1].st_size, 0)


def sync(fd: int) -> None:
    """Make what was written to a file or directory survive a power cut."""
    if sys.platform == "darwin":
        import fcntl

        # On macOS fsync leaves the bytes in the drive's cache.
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError:
            os.fsync(fd)
    else:
        os.fsync(fd)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | _CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        sync(fd)
    finally:
        os.close(fd)


def make_directory(path: str) -> None:
    """The directory and missing parents, mode 0700, every new name synced. Existing ones stay as they are."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        make_directory(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    sync_directory(parent)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace(directory: str, stem: str, data: bytes, on_moved: Callable[[Identity], None]) -> None:
    """Write `<stem>.json` as a whole or not at all.

    `on_moved` is called once the new file is in its place; what can still fail then is making that durable.
    """
    temp = os.path.join(directory, f".{stem}.{secrets.token_hex(8)}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC | _NOFOLLOW, 0o600)
    try:
        try:
            write_all(fd, data)
            sync(fd)
            identity = identity_of(os.fstat(fd))
        finally:
            os.close(fd)
        os.rename(temp, os.path.join(directory, f"{stem}.json"))
    except BaseException:
        try:
            os.unlink(temp)
        except OSError:
            pass
        raise
    on_moved(identity)
    sync_directory(directory)


def append(path: str, data: bytes, at: int) -> None:
    """Write `data` at `at` of a file, new or not, and cut it behind that. Durable; taken back on failure."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _CLOEXEC | _NOFOLLOW | _NONBLOCK, 0o600)
    try:
        os.ftruncate(fd, at)
        os.lseek(fd, at, os.SEEK_SET)
        try:
            write_all(fd, data)
            sync(fd)
        except BaseException:
            os.ftruncate(fd, at)
            sync(fd)
            raise
    finally:
        os.close(fd)


def empty_and_remove(path: str, directory: str) -> None:
    """Truncate a journal, sync, and only then take its name away."""
    fd = os.open(path, os.O_RDWR | _CLOEXEC | _NOFOLLOW | _NONBLOCK)
    try:
        os.ftruncate(fd, 0)
        sync(fd)
    finally:
        os.close(fd)
    os.unlink(path)
    sync_directory(directory)


def put_aside(path: str, torn: bytes) -> str:
    """Keep the bytes of a torn journal tail in a file of their own, synced, and give its path."""
    now = int(time.time())
    while True:
        aside = f"{path}.torn-{now}"
        try:
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC | _NOFOLLOW, 0o600)
        except FileExistsError:
            now += 1
            continue
        try:
            write_all(fd, torn)
            sync(fd)
        finally:
            os.close(fd)
        sync_directory(os.path.dirname(path))
        return aside
