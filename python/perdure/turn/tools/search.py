"""glob and grep: a walk that stays inside the workspace, and a regular expression that cannot hang the
program."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import SNIFF_BYTES, Call, looks_binary
from .output import printable
from .paths import Place, open_directory, open_regular
from .types import ToolFailure

__all__ = ["SKIPPED_DIRECTORIES", "glob_files", "grep_files"]

# Never looked into, unless the search starts inside: no source a person wrote lies there.
SKIPPED_DIRECTORIES = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        "node_modules",
        "__pycache__",
        ".venv",
        ".tox",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
    }
)
MAX_DEPTH = 100
MAX_WALKED = 500_000
MAX_FOUND = 2_000
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_LINE = 400
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_GREP_CHILD = Path(__file__).with_name("_grep_child.py")


def _names(fd: int) -> list[str]:
    return sorted(os.listdir(fd), reverse=True)


def _walk(call: Call, fd: int, prefix: tuple[str, ...] = ()) -> Iterator[tuple[int, tuple[str, ...], os.stat_result]]:
    """Everything below the open directory, sorted, links not followed: (parent descriptor, path, status)."""
    walked = 0
    # Depth first with one open descriptor a level.
    stack = [(fd, prefix, _names(fd))]
    try:
        while stack:
            here, path, names = stack[-1]
            if not names:
                stack.pop()
                if here != fd:
                    os.close(here)
                continue
            name = names.pop()
            call.token.check()
            walked += 1
            if walked > MAX_WALKED:
                raise ToolFailure(f"over {MAX_WALKED:,} files here; search in a directory further down")
            try:
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
            except OSError:
                continue  # gone since the listing
            yield here, (*path, name), status
            if not stat.S_ISDIR(status.st_mode) or name in SKIPPED_DIRECTORIES or len(stack) >= MAX_DEPTH:
                continue
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=here)
            except OSError:
                continue  # not ours to read, or changed under us
            try:
                entries = _names(below)
            except OSError:
                os.close(below)
                continue
            stack.append((below, (*path, name), entries))
    finally:
        for here, _, _ in stack:
            if here != fd:
                os.close(here)


class _Pattern:
    """A glob pattern over path components; `**` stands for any number of them."""

    def __init__(self, pattern: str) -> None:
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        if pattern.startswith("/") or ".." in parts:
            raise ToolFailure("a pattern is relative and has no ..; use path for the directory to start in")
        if not parts:
            raise ToolFailure('the pattern is empty; "**/*.py" finds every Python file')
        self._parts: list[re.Pattern[str] | None] = []
        for part in parts:
            if part != "**":
                self._parts.append(re.compile(fnmatch.translate(part)))
            elif not self._parts or self._parts[-1] is not None:
                self._parts.append(None)

    def matches(self, path: tuple[str, ...]) -> bool:
        # The set of pattern positions reached so far, one path component after the other: linear, no
        # backtracking.
        reached = self._skip({0})
        for name in path:
            step = set()
            for at in reached:
                if at == len(self._parts):
                    continue
                part = self._parts[at]
                if part is None:
                    step.add(at)
                elif part.match(name):
                    step.add(at + 1)
            reached = self._skip(step)
        return len(self._parts) in reached

    def _skip(self, positions: set[int]) -> set[int]:
        return positions | {at + 1 for at in positions if at < len(self._parts) and self._parts[at] is None}


def _shown(place: Place, path: tuple[str, ...]) -> str:
    start = () if place.shown == "." else (place.shown,)
    return "/".join((*start, *(printable(part) for part in path)))


def glob_files(call: Call, *, pattern: str, path: str = ".") -> str:
    """The paths that match, relative to the workspace, sorted within each directory."""
    wanted = _Pattern(pattern)
    found: list[str] = []
    with call.workspace.locate(path) as place:
        fd = open_directory(place)
        try:
            for _, parts, status in _walk(call, fd):
                if wanted.matches(parts):
                    if len(found) == MAX_FOUND:
                        found.append(f"[... more than {MAX_FOUND:,} paths match; narrow the pattern ...]")
                        break
                    found.append(_shown(place, parts) + ("/" if stat.S_ISDIR(status.st_mode) else ""))
        finally:
            os.close(fd)
    return "\n".join(found) if found else f"[nothing matches {pattern} in {place.shown}]"


def grep_files(call: Call, *, pattern: str, path: str = ".", glob: str | None = None, ignore_case: bool = False) -> str:
    """Lines in which the regular expression is found, as path:line:text."""
    wanted = None
    if glob is not None:
        wanted = _Pattern(glob if "/" in glob else f"**/{glob}")
    matcher = _Matcher(call, pattern, ignore_case)
    skipped = {"over 8 MB": 0, "binary": 0, "unreadable": 0}
    try:
        with call.workspace.locate(path) as place:
            if place.status is None:
                raise ToolFailure(f"there is no {place.shown} in the workspace")
            if place.is_directory:
                fd = open_directory(place)
                try:
                    for parent, parts, status in _walk(call, fd):
                        if not stat.S_ISREG(status.st_mode) or (wanted and not wanted.matches(parts)):
                            continue
                        if not _search_one(matcher, parent, parts[-1], _shown(place, parts), skipped):
                            break
                finally:
                    os.close(fd)
            else:
                _search_one(matcher, place.parent, place.name, place.shown, skipped)
        found = matcher.finish()
    finally:
        matcher.close()
    lines = [f"{name}:{number}:{_cut(call.mask(text))}" for name, number, text in found["matches"]]
    if not lines:
        lines.append("[no matches]")
    if found["more"]:
        lines.append(f"[... more than {MAX_FOUND:,} matches; narrow the search ...]")
    left_out = [f"{count} {why}" for why, count in skipped.items() if count]
    if left_out:
        lines.append(f"[files not searched: {', '.join(left_out)}]")
    return "\n".join(lines)


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}[... line cut]"


def _search_one(matcher: _Matcher, parent: int, name: str, shown: str, skipped: dict[str, int]) -> bool:
    try:
        fd, status = open_regular(parent, name, shown)
    except OSError:
        skipped["unreadable"] += 1
        return True
    with os.fdopen(fd, "rb") as file:
        if status.st_size > MAX_FILE_BYTES:
            skipped["over 8 MB"] += 1
            return True
        data = file.read(MAX_FILE_BYTES)
    if looks_binary(data[:SNIFF_BYTES]):
        skipped["binary"] += 1
        return True
    return matcher.feed(shown, data)


class _Matcher:
    """A child Python process that runs the expression over what it is fed, and that can be killed.

    An expression such as (a+)+$ takes for ever on the wrong line, and nothing can interrupt `re` in its own
    process. The child opens no file: it sees only what is fed to it.
    """

    def __init__(self, call: Call, pattern: str, ignore_case: bool) -> None:
        if not sys.executable:
            raise ToolFailure("grep needs a Python interpreter, and this program does not know one; use bash")
        self._call = call
        self._deadline = None if call.timeout is None else time.monotonic() + call.timeout
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GREP_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # No secrets; but an interpreter may need to be told where its own library is.
            env={name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        order = {
            "pattern": pattern,
            "ignore_case": ignore_case,
            "most": MAX_FOUND,
            "longest": MAX_LINE + 8192,
        }
        self.feed(json.dumps(order), b"")

    def feed(self, name: str, data: bytes) -> bool:
        """False: the child wants no more."""
        label = name.encode("utf-8")
        frame = memoryview(b"%d %d\n%b%b" % (len(label), len(data), label, data))
        while frame:
            self._wait()
            try:
                frame = frame[os.write(self._in, frame[: 1 << 20]) :]
            except BlockingIOError:
                self._select(write=True)
            except BrokenPipeError:
                return False
        return True

    def finish(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = bytearray()
        while True:
            self._wait()
            try:
                chunk = os.read(self._out, 1 << 16)
            except BlockingIOError:
                self._select(write=False)
                continue
            if not chunk:
                break
            answer += chunk
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError:
            raise ToolFailure("the search ended without an answer (out of memory?); use a simpler pattern") from None
        if "error" in found:
            raise ToolFailure(f"the pattern is not a valid Python regular expression: {found['error']}")
        return found

    def _wait(self) -> None:
        self._call.token.check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise ToolFailure(
                f"the search took more than {self._call.timeout:g} s and was stopped; "
                "use a simpler pattern, or a directory or glob that covers fewer files"
            )

    def _select(self, *, write: bool) -> None:
        poll = select.poll()
        poll.register(self._in if write else self._out, select.POLLOUT if write else select.POLLIN)
        poll.poll(50)

    def close(self) -> None:
        """Kill the child if it still runs, and leave nothing of it behind."""
        process = self._process
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
