"""What a turn asks of the disk, seen from outside: the system calls of a contender under strace."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare.workload import MARK

SYNCS = ("fsync", "fdatasync", "sync", "syncfs", "msync")
RENAMES = ("rename", "renameat", "renameat2")
UNLINKS = ("unlink", "unlinkat")
OPENS = ("open", "openat", "openat2")
# Not syncs of what was written before, but they would explain a turn without one.
OTHERS = ("sync_file_range", "pwritev2", "io_uring_enter")

SYNCED, NAME, NO, UNKNOWN = "synced", "name not synced", "not synced", "unknown"

_CALL = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)$")
_FD_PATH = re.compile(r"^\d+<(.*?)>")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def strace(out: Path) -> list[str] | None:
    """The command to put before a contender's, or None where there is no strace."""
    found = shutil.which("strace")
    if found is None:
        return None
    calls = ",".join(f"?{name}" for name in (*SYNCS, *RENAMES, *UNLINKS, *OPENS, *OTHERS))
    return [found, "-f", "-y", "-qq", "-e", "signal=none", "-e", f"trace={calls}", "-o", str(out)]


@dataclass
class Turn:
    """The calls of one turn, and whether the last change of a name was followed by a sync of its directory."""

    calls: Counter[str] = field(default_factory=Counter)
    name_pending: bool = False

    @property
    def syncs(self) -> int:
        return sum(self.calls[name] for name in (*SYNCS, "directory fsync", "synchronous write"))

    @property
    def file_syncs(self) -> int:
        return self.syncs - self.calls["directory fsync"]


def turns(trace: Path) -> list[Turn]:
    """The turns of a trace, parted by the marks. Read it while the directories are still there."""
    found: list[Turn] = []
    synchronous: set[str] = set()
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:  # the end of a call that another thread's call interrupted, or an exit
            continue
        name, rest = match.groups()
        if name == "fsync" and rest.startswith(str(MARK)):
            found.append(Turn())
            continue
        if name in OPENS:
            if "O_SYNC" in rest or "O_DSYNC" in rest:
                synchronous.update(_QUOTED.findall(rest))
            continue
        if found:
            _count(found[-1], name, rest)
    if synchronous:
        for turn in found:
            turn.calls["synchronous write"] += 1
    return found


def _count(turn: Turn, name: str, rest: str) -> None:
    if name == "pwritev2" and "RWF_DSYNC" not in rest and "RWF_SYNC" not in rest:
        return
    if name == "pwritev2":
        turn.calls["synchronous write"] += 1
        return
    if name in RENAMES:
        turn.calls["rename"] += 1
        turn.name_pending = True
        return
    if name in UNLINKS:
        # SQLite commits by removing its rollback journal; other files that go are waste.
        if any(path.endswith("-journal") for path in _QUOTED.findall(rest)):
            turn.calls["unlink of the rollback journal"] += 1
            turn.name_pending = True
        return
    path = _FD_PATH.match(rest)
    if name in ("fsync", "fdatasync") and path is not None and Path(path.group(1)).is_dir():
        turn.calls["directory fsync"] += 1
        turn.name_pending = False
        return
    if name in ("sync", "syncfs"):
        turn.name_pending = False
    turn.calls[name] += 1


def verdict(found: list[Turn]) -> dict[str, Any]:
    """What the turns have in common: is the text on the disk when the call returns, and its name?"""
    total: Counter[str] = Counter()
    for turn in found:
        total += turn.calls
    per_turn = {name: round(count / len(found), 2) for name, count in sorted(total.items())} if found else {}
    if not found:
        synced = UNKNOWN
    elif any(turn.file_syncs == 0 for turn in found):
        synced = NO
    elif any(turn.name_pending for turn in found):
        synced = NAME
    else:
        synced = SYNCED
    return {"synced": synced, "turns": len(found), "calls_per_turn": per_turn}


def describe(durability: dict[str, Any], facts: dict[str, Any]) -> str:
    """One sentence for people."""
    calls = durability["calls_per_turn"]
    seen = ", ".join(f"{count:g} {name}" for name, count in calls.items()) or "no sync, no rename"
    settings = ", ".join(f"{name}={value}" for name, value in facts.items())
    how = {
        SYNCED: "on the disk when the call returns",
        NAME: "the bytes are synced, the last rename or removal is not: a power cut can bring back the state before",
        NO: "not synced at every turn: a power cut can lose turns that were reported stored",
        UNKNOWN: "not traced, there is no strace here",
    }[durability["synced"]]
    traced = f"; a turn makes {seen}" if durability["turns"] else ""
    return f"{how}{traced}" + (f" ({settings})" if settings else "")
