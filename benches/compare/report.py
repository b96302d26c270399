"""The results as Markdown. `table(results)` needs nothing but the file that run.py wrote."""

from __future__ import annotations

from typing import Any

# In this order; nobody is ranked with those who do more or less at a turn.
GROUPS = {
    "synced": "On the disk when the call returns",
    "name not synced": "Bytes synced, the last rename or removal not: a power cut can bring back the turn before",
    "not synced": "Not synced: a power cut can lose turns that were reported stored",
    "unknown": "Not traced: what is on the disk when the call returns is not known",
}


def table(results: dict[str, Any]) -> str:
    """Cost of a turn, what is written, many sessions, durability, and who is missing."""
    parts = [
        _heading(results),
        "**Cost of a turn**, median in ms (× floor), by the number of messages that are there already:",
        _grouped(results, _medians),
        "**Mean / p99** in ms:",
        _grouped(results, _tails),
        _session_title(results),
        _grouped(results, _session),
        "**What is timed, and what a turn asks of the disk:**",
        _durability(results),
    ]
    missing = _missing(results)
    if missing:
        parts += ["**Not measured, or failed:**", missing]
    return "\n\n".join(parts)


def _heading(results: dict[str, Any]) -> str:
    where = results["where"]
    return (
        f"perdure {results['perdure'] or 'not there'}, {where['python']}, {where['kernel']}, "
        f"{where['cpus']} × {where['cpu']}, {where['file_system']}, load {where['load'][0]:.1f}. "
        "Machines differ in milliseconds; compare the ratios."
    )


def _here(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in results["contenders"].items() if entry["missing"] is None}


def _grouped(results: dict[str, Any], rows: Any) -> str:
    """One table; a line of its own says what those below it have in common."""
    head, make = rows(results)
    lines = [f"| {' | '.join(['', *head])} |", f"| --- |{' ---: |' * len(head)}"]
    for group, title in GROUPS.items():
        names = [name for name, entry in _here(results).items() if entry["durability"]["synced"] == group]
        if not names:
            continue
        lines.append(f"| *{title}* |{' |' * len(head)}")
        for name in names:
            entry = results["contenders"][name]
            lines.append(f"| {entry['title']}{_version(entry)} | {' | '.join(make(entry))} |")
    return "\n".join(lines)


def _version(entry: dict[str, Any]) -> str:
    versions = list(entry["packages"].values())
    return f" {versions[0]}" if versions else ""


def _medians(results: dict[str, Any]) -> tuple[list[str], Any]:
    sizes = results["sizes"]

    def make(entry: dict[str, Any]) -> list[str]:
        return [_cell(entry["turns"].get(str(size))) for size in sizes]

    return [f"{size:,}" for size in sizes], make


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "—"
    ratio = row.get("ratio_to_floor")
    return _number(row["median_ms"]) + (f" ({_number(ratio['median'])} ×)" if ratio else "")


def _tails(results: dict[str, Any]) -> tuple[list[str], Any]:
    sizes = results["sizes"]

    def make(entry: dict[str, Any]) -> list[str]:
        rows = [entry["turns"].get(str(size)) for size in sizes]
        return [f"{_number(row['mean_ms'])} / {_number(row['p99_ms'])}" if row else "—" for row in rows]

    return [f"{size:,}" for size in sizes], make


def _session_title(results: dict[str, Any]) -> str:
    settings = results["settings"]
    return (
        f"**A session of {settings['session_turns']:,} turns from its start**: bytes written by calls, and pages sent "
        "to the disk, against the bytes of its messages; mean of a turn. "
        f"**{settings['sessions']} sessions at once**: turns a second (× floor):"
    )


def _session(results: dict[str, Any]) -> tuple[list[str], Any]:
    def make(entry: dict[str, Any]) -> list[str]:
        session, many = entry.get("session"), entry.get("many")
        cells = ["—", "—", "—"]
        if session:
            ratios = [session["written_ratio"], session["disk_ratio"]]
            cells = [f"{_number(ratio)} ×" if ratio is not None else "—" for ratio in ratios]
            cells.append(f"{_number(session['mean_ms'])} ms")
        if not many:
            return [*cells, "—"]
        ratio = f" ({many['ratio_to_floor']:.2f} ×)" if many["ratio_to_floor"] is not None else ""
        failed = f", {many['failed_turns']} turns failed" if many["failed_turns"] else ""
        return [*cells, f"{many['turns_per_second']:,.0f}{ratio}{failed}"]

    return ["written", "to the disk", "mean", "turns a second"], make


def _durability(results: dict[str, Any]) -> str:
    lines = [
        f"| {entry['title']} | {entry['timed']} | {entry['durability']['text']} |" for entry in _here(results).values()
    ]
    return "\n".join(["| | timed | durability |", "| --- | --- | --- |", *lines])


def _missing(results: dict[str, Any]) -> str:
    lines = []
    for entry in results["contenders"].values():
        if entry["missing"] is not None:
            lines.append(f"- {entry['title']}: {entry['missing']}")
        for part, reason in entry.get("failed", {}).items():
            lines.append(f"- {entry['title']}, {part}: {reason}")
        if entry.get("many", {}).get("error"):
            lines.append(f"- {entry['title']}, some turns with many sessions at once: {entry['many']['error'].strip()}")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three figures that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
