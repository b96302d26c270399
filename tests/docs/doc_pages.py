"""Just enough Markdown to read the documentation: marked tables, fenced blocks, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` is what stands behind the fence, `note` the comment right before it."""

    page: Path
    line: int
    language: str
    note: str | None
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def tables(page: Path) -> dict[str, list[dict[str, str]]]:
    """The tables that a comment `<!-- table: NAME -->` stands before, as rows by column title."""
    found: dict[str, list[dict[str, str]]] = {}
    for match in re.finditer(r"<!-- table: (.+?) -->\n((?:\|.*\n)+)", page.read_text(encoding="utf-8")):
        head, _, *rows = ([cell.strip() for cell in _cells(line)] for line in match.group(2).splitlines())
        assert match.group(1) not in found, f"two tables {match.group(1)!r}"
        for row in rows:
            assert len(row) == len(head), f"{page.name}, table {match.group(1)}: {row}"
        found[match.group(1)] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))


def blocks(page: Path) -> list[Block]:
    """All fenced blocks, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"^(`{3,})(\S*)$", lines[number])
        if fence is None:
            number += 1
            continue
        end = lines.index(fence.group(1), number + 1)
        note = re.fullmatch(r"<!-- (.+) -->", lines[number - 1]) if number else None
        text = "".join(f"{line}\n" for line in lines[number + 1 : end])
        found.append(Block(page, number + 1, fence.group(2), note.group(1) if note else None, text))
        number = end + 1
    return found


def prose(page: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
