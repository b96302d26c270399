"""The lock of one session, as docs/format.md section 5 says: `flock` on `<name>.lock`. POSIX only."""

# Plain calls of the system on plain strings: this is the way of every save.
# ruff: noqa: PTH108, PTH116

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from perdure.errors import SessionLockedError, StoreError
from perdure.stores._plain_names import show_id

# Threads of one process wait for each other here, so that `flock` only ever decides between processes.
_mutexes: WeakValueDictionary[tuple[int, int, str], threading.Lock] = WeakValueDictionary()
_mutexes_guard = threading.Lock()
_held: set[int] = set()


def _after_fork_in_child() -> None:
    # The child shares the parent's locks as long as these are open in it. Closing gives up nothing of the
    # parent's; unlocking would.
    global _mutexes_guard
    for fd in _held:
        os.close(fd)
    _held.clear()
    _mutexes.clear()
    _mutexes_guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@contextmanager
def session_lock(path: str, session_id: str, timeout: float) -> Iterator[None]:
    """Hold the lock file at `path`; its directory has to be there.

    Raises `SessionLockedError` if another process still holds it after `timeout` seconds.
    """
    directory, name = os.path.split(path)
    status = os.stat(directory or ".")
    key = (status.st_dev, status.st_ino, name)
    with _mutexes_guard:
        mutex = _mutexes.get(key)
        if mutex is None:
            mutex = _mutexes[key] = threading.Lock()
    with mutex:
        fd = _acquire(path, session_id, timeout)
        try:
            yield
        finally:
            _release(fd, path)


def _acquire(path: str, session_id: str, timeout: float) -> int:
    if sys.platform == "win32":
        raise StoreError("PythonFileSessionStore needs flock, which Windows lacks; use FileSessionStore")
    import fcntl

    deadline, pause = time.monotonic() + timeout, 0.001
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        _held.add(fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StoreError(f"{path} is not a regular file; move it away", filename=path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _locked(fd, path, session_id) from None
                time.sleep(min(pause, left))
                pause = min(pause * 2, 0.05)
            else:
                if _still_there(fd, path):
                    _sign(fd)
                    return fd
            _close(fd)
        except BaseException:
            _close(fd)
            raise


def _still_there(fd: int, path: str) -> bool:
    """Whether the locked file is the one at the path; the one before us may have removed it."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _sign(fd: int) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(owner).encode() + b"\n", 0)
    except OSError:
        # On a full disk the lock holds all the same, it only does not tell whose it is.
        pass


def _locked(fd: int, path: str, session_id: str) -> SessionLockedError:
    owner: Any = None
    try:
        owner = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError):
        pass
    owner = owner if isinstance(owner, dict) else {}
    pid, host, since = owner.get("pid"), owner.get("host"), owner.get("since")
    who = f"process {pid} on {host} (since {since})" if owner else "another process"
    return SessionLockedError(
        f"session {show_id(session_id)} is locked by {who}: close it there, or wait with lock_timeout "
        f"(lock file {path})",
        session_id=session_id,
        pid=pid if isinstance(pid, int) else None,
        host=host if isinstance(host, str) else None,
        since=since if isinstance(since, int) else None,
    )


def _release(fd: int, path: str) -> None:
    if fd not in _held:
        return  # this is a forked child that has closed it already
    try:
        # Removed while it is held: whoever waits on it finds that it is gone and makes a new one.
        if _still_there(fd, path):
            os.unlink(path)
    except OSError:
        pass
    if sys.platform != "win32":
        import fcntl

        # Said aloud, since a child forked in between may still have the file open.
        fcntl.flock(fd, fcntl.LOCK_UN)
    _close(fd)


def _close(fd: int) -> None:
    if fd in _held:
        _held.discard(fd)
        os.close(fd)
