"""What goes to a terminal: text made harmless, colours, widths and tables. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TextIO

__all__ = ["Style", "ago", "clean", "columns", "cut", "one_line", "size", "table", "width"]

# Control characters can move the cursor, rewrite what stands on the screen or make a terminal answer as if
# somebody typed. The marks that turn the direction of text can show a line as what it is not. Lone
# surrogates cannot be printed.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def clean(text: str) -> str:
    """The text with everything escaped that a terminal could act on; line breaks and tabs stay."""
    return _UNSAFE.sub(_escaped, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The text, harmless, on one line: white space of any length is one space."""
    return clean(" ".join(text.split()))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """The text, cut to that many columns; a cut shows as `…`."""
    if width(text) <= columns:
        return text
    kept, left = [], columns - 1
    for character in text:
        left -= _columns_of(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + "…" if columns > 0 else ""


def columns(stream: TextIO) -> int | None:
    """The terminal's width; None if the stream goes elsewhere, where nothing has to be cut."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int], limit: int | None) -> list[str]:
    """Aligned lines. The columns in `right` are flush right; the last one is cut so that lines fit in `limit`."""
    widths = [max(width(row[at]) for row in (head, *rows)) for at in range(len(head))]
    if limit is not None:
        taken = sum(widths[:-1]) + 2 * (len(widths) - 1)
        widths[-1] = max(min(widths[-1], limit - taken), 8)
    lines = []
    for row in (head, *rows):
        cells = []
        for at, (text, room) in enumerate(zip(row, widths, strict=True)):
            text = cut(text, room)
            space = " " * (room - width(text))
            cells.append(space + text if at in right else text + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{value / 1000:.1f} TB"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long ago that was, for people."""
    seconds = ((now or datetime.now(timezone.utc)) - moment).total_seconds()
    if seconds < -60:
        return "in the future"
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (30 * 86400, 86400, "d")):
        if seconds < limit:
            return "now" if seconds < 5 else f"{int(seconds // unit)} {name} ago"
    return moment.astimezone().strftime("%Y-%m-%d")


class Style:
    """Colours for one stream: none if it is not a terminal or the user wants none (NO_COLOR, TERM=dumb)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        to = sys.stdout if stream is None else stream
        self.on = to.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def dim(self, text: str) -> str:
        return self._paint("2", text)

    def red(self, text: str) -> str:
        return self._paint("31", text)

    def green(self, text: str) -> str:
        return self._paint("32", text)

    def yellow(self, text: str) -> str:
        return self._paint("33", text)

    def cyan(self, text: str) -> str:
        return self._paint("36", text)
