"""Bounded text: what a tool gives back is never longer than the limit, and a cut never lays a secret bare."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["SLACK", "HeadTail", "bounded", "printable", "well_formed"]

# How much is read beyond a cut and thrown away after masking. A secret that straddles the cut of the raw
# bytes is not recognised any more; its rest lies within this many characters of the cut. Secrets longer than
# this may show in part.
SLACK = 8192
# Notes about what was left out come on top of a limit.
_NOTE_ROOM = 300


def well_formed(text: str) -> str:
    """The text without lone surrogates, which no model server takes."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def printable(name: str) -> str:
    """A file name on one line: control characters escaped, bytes that are not UTF-8 as U+FFFD."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def _note(left_out: int, unit: str) -> str:
    return f"\n[... {left_out:,} {unit} left out ...]\n"


def bounded(text: str, limit: int) -> str:
    """At most `limit` characters of an already masked text, and a note between its head and its tail."""
    if len(text) <= limit + _NOTE_ROOM:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    return text[:head] + _note(len(text) - limit, "characters") + (text[-tail:] if tail else "")


class HeadTail:
    """Collects a byte stream of any length in bounded memory: its beginning and its end.

    Keeps about 4 * limit + 2 * SLACK bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Up to four bytes a character, so that half the limit is there in characters too.
        self._room = 2 * limit + SLACK
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.total = 0

    def feed(self, chunk: bytes) -> None:
        self.total += len(chunk)
        missing = self._room - len(self._head)
        if missing > 0:
            self._head += chunk[:missing]
            chunk = chunk[missing:]
        if not chunk:
            return
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes - len(self._tail[0]) >= self._room:
            self._tail_bytes -= len(self._tail.popleft())

    def text(self, mask: Callable[[str], str]) -> str:
        """What was collected, masked, at most `limit` characters and a note."""
        tail = b"".join(self._tail)
        if len(self._head) + len(tail) == self.total:
            return bounded(mask((bytes(self._head) + tail).decode("utf-8", "replace")), self.limit)
        # The middle is gone, and a secret may have been cut in two at the edges of the hole. What a shorter
        # piece gives after masking too is not touched by that.
        half = self.limit // 2
        head, end = bytes(self._head), tail[-self._room :]
        first = _common(_masked(mask, head), _masked(mask, head[:-SLACK]))[:half]
        last = _masked(mask, end)[::-1]
        last = _common(last, _masked(mask, end[SLACK:])[::-1])[:half][::-1]
        return first + _note(max(0, self.total - len(first.encode()) - len(last.encode())), "bytes") + last


def _common(one: str, other: str) -> str:
    """The longest common beginning."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return one[:at]
    return min(one, other, key=len)


def _masked(mask: Callable[[str], str], raw: bytes) -> str:
    return mask(raw.decode("utf-8", "replace"))
