"""Paths that cannot leave the workspace.

Every component is opened relative to the directory before it and without following links; links are read and
followed by hand. So whatever is swapped under a running call, no file outside of the workspace is ever
opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import ConfigError

from .output import printable
from .types import ToolFailure

__all__ = ["Place", "Workspace", "describe_kind", "open_directory", "open_regular"]

_MAX_LINKS = 40
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
# Where there is O_PATH, a directory that may be entered but not listed can be passed through.
_PASS = _DIRECTORY | getattr(os, "O_PATH", 0)
# O_NONBLOCK: a FIFO that takes the file's place between check and open must not hang the call.
_FILE = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


@dataclass(frozen=True)
class Place:
    """Where a path leads once all links are followed: an open directory and a name in it.

    `name` is "." for a directory (`parent` is then that directory itself); `status` is None if nothing is
    there. `shown` is the path relative to the workspace, for messages.
    """

    parent: int
    name: str
    status: os.stat_result | None
    shown: str

    @property
    def is_directory(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


def describe_kind(mode: int) -> str:
    """What a file that is not a regular one is, in words."""
    for test, words in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return words
    return "a regular file" if stat.S_ISREG(mode) else "not a regular file"


def open_directory(place: Place) -> int:
    """A descriptor of the directory that can be listed. The caller closes it."""
    if not place.is_directory:
        kind = "missing" if place.status is None else describe_kind(place.status.st_mode)
        raise ToolFailure(f"{place.shown} is {kind}, not a directory")
    return os.open(".", _DIRECTORY, dir_fd=place.parent)


def open_regular(parent: int, name: str, shown: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading, and nothing else; never blocks. The caller closes it."""
    before = os.stat(name, dir_fd=parent, follow_symlinks=False)
    # Checked before the open as well: opening a device or a FIFO can have an effect of its own.
    if not stat.S_ISREG(before.st_mode):
        raise ToolFailure(f"{shown} is {describe_kind(before.st_mode)}, not a regular file")
    fd = os.open(name, _FILE, dir_fd=parent)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ToolFailure(f"{shown} is {describe_kind(status.st_mode)}, not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status


class Workspace:
    """A directory that tools may not leave.

    Raises `ConfigError` if it is not an existing directory, or if the system cannot open files relative to a
    directory (Windows).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if os.open not in os.supports_dir_fd:
            raise ConfigError(
                "the built-in tools need a POSIX system; pass tools=[] or only Python functions here",
                option="tools",
            )
        text = os.fspath(path)
        self._given = Path(text).absolute()
        self.root = Path(os.path.realpath(text))
        if not self.root.is_dir():
            what = "is not a directory" if self.root.exists() else "does not exist"
            raise ConfigError(f"the workspace {text!r} {what}", option="workspace")

    def _outside(self, path: str) -> ToolFailure:
        return ToolFailure(f"{printable(path)} is outside of the workspace; use a path relative to {self.root}")

    def _below_root(self, path: str) -> list[str] | None:
        """The components of an absolute path below the workspace, or None. The walk judges `..` in it."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for root in (self.root, self._given):
            prefix = list(root.parts[1:])
            if parts[: len(prefix)] == prefix:
                return parts[len(prefix) :]
        return None

    @contextmanager
    def locate(self, path: str, *, make_parents: bool = False) -> Iterator[Place]:
        """Follow a path to its end, through links that stay inside. Raises `ToolFailure` where it leaves.

        make_parents  missing directories on the way are created
        """
        if "\0" in path:
            raise ToolFailure("a path cannot contain a NUL character")
        try:
            os.fsencode(path)
        except UnicodeEncodeError as error:
            raise ToolFailure(f"the path has a lone surrogate at character {error.start}") from None
        if path == "":
            raise ToolFailure('a path cannot be empty; "." is the workspace')
        if path.startswith("/"):
            below = self._below_root(path)
            if below is None:
                raise self._outside(path)
            pending = deque(below)
        else:
            pending = deque(path.split("/"))
        descriptors: list[int] = []
        try:
            descriptors.append(os.open(self.root, _PASS))
            yield self._walk(path, pending, descriptors, make_parents)
        finally:
            for fd in descriptors:
                os.close(fd)

    def _walk(self, path: str, pending: deque[str], descriptors: list[int], make_parents: bool) -> Place:
        names: list[str] = []  # of descriptors[1:]
        steps_back = 0
        while True:
            while pending and pending[0] in ("", "."):
                pending.popleft()
            if not pending:
                fd = descriptors[-1]
                return Place(fd, ".", os.fstat(fd), printable("/".join(names) or "."))
            part = pending.popleft()
            if part == "..":
                if len(descriptors) == 1:
                    raise self._outside(path)
                os.close(descriptors.pop())
                names.pop()
                continue
            here = descriptors[-1]
            shown = printable("/".join([*names, part]))
            is_last = all(rest in ("", ".") for rest in pending)
            try:
                status = os.stat(part, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                if is_last:
                    return Place(here, part, None, shown)
                if not make_parents:
                    raise ToolFailure(f"there is no {shown} in the workspace") from None
                try:
                    os.mkdir(part, dir_fd=here)
                except FileExistsError:
                    pass
                status = os.stat(part, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                steps_back += 1
                if steps_back > _MAX_LINKS:
                    raise ToolFailure(f"{printable(path)} leads through too many symbolic links")
                self._follow(path, os.readlink(part, dir_fd=here), pending, descriptors, names)
                continue
            if not stat.S_ISDIR(status.st_mode):
                if is_last:
                    return Place(here, part, status, shown)
                raise ToolFailure(f"{shown} is {describe_kind(status.st_mode)}, not a directory")
            try:
                descriptors.append(os.open(part, _PASS, dir_fd=here))
            except OSError as error:
                steps_back += 1
                if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT) or steps_back > _MAX_LINKS:
                    raise
                pending.appendleft(part)  # it changed under us; look again
                continue
            names.append(part)

    def _follow(self, path: str, target: str, pending: deque[str], descriptors: list[int], names: list[str]) -> None:
        parts = target.split("/")
        if target.startswith("/"):
            below = self._below_root(target)
            if below is None:
                raise self._outside(path)
            parts = below
            while len(descriptors) > 1:
                os.close(descriptors.pop())
            names.clear()
        pending.extendleft(reversed(parts))
