"""Text for a terminal."""

from __future__ import annotations

import io
import unicodedata
from datetime import datetime, timedelta, timezone

import pytest

from perdure.cli.term import Style, ago, clean, cut, one_line, size, table, width


def test_no_control_or_format_character_that_a_terminal_acts_on_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = {c for c in clean(everything) if unicodedata.category(c) in ("Cc", "Cs")}
    assert left == {"\n", "\t"}
    assert clean("a\x1b]0;title\x07b\x9b31m") == "a\\x1b]0;title\\x07b\\x9b31m"
    assert clean("\u202egnp.exe") == "\\u202egnp.exe"


def test_line_breaks_of_windows_are_line_breaks_and_a_lone_return_is_seen() -> None:
    assert clean("a\r\nb\rc") == "a\nb\\x0dc"


def test_text_of_every_script_stays() -> None:
    words = "naïve 日本語 עברית हिन्दी 👩🏽‍🚀"
    assert clean(words) == words


def test_one_line() -> None:
    assert one_line("  a\n\n b\tc\x1b ") == "a b c\\x1b"


@pytest.mark.parametrize(("words", "columns"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("", 0)])
def test_width(words: str, columns: int) -> None:
    assert width(words) == columns


@pytest.mark.parametrize(
    ("words", "columns", "shown"),
    [("abcdef", 6, "abcdef"), ("abcdef", 4, "abc…"), ("日本語", 4, "日…"), ("日本語", 5, "日本…"), ("ab", 0, "")],
)
def test_cut(words: str, columns: int, shown: str) -> None:
    assert cut(words, columns) == shown
    assert width(shown) <= columns


def test_a_table_is_aligned_and_fits() -> None:
    lines = table(("ID", "N", "TEXT"), [("日本", "7", "x" * 50), ("abc", "100", "y")], right=(1,), limit=30)
    assert lines == ["ID      N  TEXT", "日本    7  " + "x" * 18 + "…", "abc   100  y"]
    assert max(map(width, lines)) == 30
    assert table(("ID",), [("z" * 500,)], right=(), limit=None)[1] == "z" * 500


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (999_400, "999 kB"), (999_600, "1.0 MB")],
)
def test_size(count: int, shown: str) -> None:
    assert size(count) == shown


def test_ago() -> None:
    now = datetime(2026, 1, 2, tzinfo=timezone.utc)
    for seconds, shown in [(0, "now"), (59, "59 s ago"), (60, "1 min ago"), (7200, "2 h ago"), (5 * 86400, "5 d ago")]:
        assert ago(now - timedelta(seconds=seconds), now) == shown
    assert ago(now - timedelta(days=90), now).startswith("2025-10-0")
    assert ago(now + timedelta(days=1), now) == "in the future"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal_whose_owner_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Style(_Terminal()).red("x") == "\x1b[31mx\x1b[0m"
    assert Style(io.StringIO()).red("x") == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert Style(_Terminal()).red("x") == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style(_Terminal()).red("x") == "x"
