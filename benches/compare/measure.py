"""The three measurements. In each, every round asks every contender once, in a random order of its own."""

from __future__ import annotations

import ctypes
import os
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import syscalls
from compare.contenders import Contender
from compare.environments import Missing
from compare.process import Process
from compare.workload import NEW_MESSAGES, messages, text_bytes

FLOOR = "floor"
MANY_MESSAGES = 10  # messages of each session before the many start


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    rounds: dict[int, int]
    warm_up: int = 3
    session_turns: int = 500
    session_block: int = 25
    sessions: int = 64
    many_turns: int = 8
    many_runs: int = 5
    probe_turns: int = 10


@dataclass
class Entry:
    """A contender that takes part: its process, and its part of the results."""

    contender: Contender
    process: Process
    result: dict[str, Any]
    failed: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.contender.name


def probe(contender: Contender, python: str, directory: Path, settings: Settings) -> dict[str, Any]:
    """Version, settings and system calls of a contender. Raises `Missing`."""
    out = directory / f"{contender.name}.trace"
    before = syscalls.strace(out)
    with Process(contender, python, directory / "home", before) as process:
        result = process.ask("hello")
        process.ask("start", directory=str(directory / contender.name))
        process.ask("open", count=MANY_MESSAGES)
        process.ask("turns", count=settings.probe_turns, mark=True)
        check = process.ask("check")
        if check["stored"] != check["expected"]:
            raise Missing(f"it stored {check['stored']} of {check['expected']} messages")
        facts = process.ask("facts")
    turns = syscalls.turns(out) if before is not None else []
    durability = syscalls.verdict(turns)
    durability["settings"] = facts
    durability["text"] = syscalls.describe(durability, facts)
    return {**result, "durability": durability}


class Field:
    """All contenders of a run."""

    def __init__(self, entries: list[Entry], directory: Path, settings: Settings, seed: int = 1) -> None:
        self.entries, self.directory, self.settings = entries, directory, settings
        self.order = random.Random(seed)

    def _each(self, part: str, entries: list[Entry], ask: Callable[[Entry], None]) -> list[Entry]:
        """Asks each; who fails is out of this part, with the reason in the results."""
        left = []
        for entry in entries:
            try:
                ask(entry)
            except Missing as error:
                entry.result.setdefault("failed", {})[part] = str(error)
                print(f"{entry.name}, {part}: {error}", file=sys.stderr, flush=True)
            else:
                left.append(entry)
        return left

    def _round(self, part: str, entries: list[Entry], ask: Callable[[Entry], None]) -> list[Entry]:
        """The same in a random order; what one leaves to the file system is written before the next one starts."""
        entries = list(entries)
        self.order.shuffle(entries)

        def one(entry: Entry) -> None:
            ask(entry)
            sync_file_system(self.directory)

        left = self._each(part, entries, one)
        return [entry for entry in self.entries if entry in left]

    def _start(self, part: str) -> list[Entry]:
        def start(entry: Entry) -> None:
            entry.process.ask("start", directory=str(self.directory / part / entry.name))

        return self._each(part, self.entries, start)

    def _finish(self, part: str, entries: list[Entry]) -> list[Entry]:
        """What was measured has to be there."""

        def finish(entry: Entry) -> None:
            check = entry.process.ask("check")
            entry.process.ask("stop")
            if check["stored"] != check["expected"]:
                raise Missing(f"it stored {check['stored']} of {check['expected']} messages")

        return self._each(part, entries, finish)

    def turns(self, count: int) -> None:
        """The cost of a turn in a session of `count` messages."""
        part = f"turns {count}"
        seconds: dict[str, list[float]] = {entry.name: [] for entry in self.entries}
        entries = self._start(part)
        # It grows by a tenth at most; then it is made anew, which is not timed.
        grown, allowed = 0, max(2 * NEW_MESSAGES, count // 10)
        entries = self._each(part, entries, lambda entry: _ask(entry, "open", count=count))
        rounds = self.settings.rounds[count]
        for number in range(-self.settings.warm_up, rounds):
            if grown >= allowed:
                grown = 0
                entries = self._each(part, entries, lambda entry: _ask(entry, "open", count=count))
                sync_file_system(self.directory)
            grown += NEW_MESSAGES

            def turn(entry: Entry, counts: bool = number >= 0) -> None:
                taken = entry.process.ask("turn")["seconds"]
                if counts:
                    seconds[entry.name].append(taken)

            entries = self._round(part, entries, turn)
        entries = self._finish(part, entries)
        floor = seconds.get(FLOOR)
        for entry in entries:
            row = summary(seconds[entry.name], floor)
            entry.result["turns"][str(count)] = {"rounds": rounds, **row}

    def session(self) -> None:
        """A session from its first turn on: what is written, and what a turn takes with everything in it."""
        settings, part = self.settings, "session"
        seconds: dict[str, list[float]] = {entry.name: [] for entry in self.entries}
        wrote: dict[str, dict[str, int]] = {entry.name: {} for entry in self.entries}
        entries = self._start(part)
        entries = self._each(part, entries, lambda entry: _ask(entry, "open", count=NEW_MESSAGES))
        left = settings.session_turns
        while left > 0:
            block = min(left, settings.session_block)
            left -= block

            def turns(entry: Entry, count: int = block) -> None:
                answer = entry.process.ask("turns", count=count)
                seconds[entry.name] += answer["seconds"]
                for name, value in answer["wrote"].items():
                    wrote[entry.name][name] = wrote[entry.name].get(name, 0) + value

            entries = self._round(part, entries, turns)
        entries = self._finish(part, entries)
        size = text_bytes(messages(NEW_MESSAGES, settings.session_turns * NEW_MESSAGES))
        for entry in entries:
            written = wrote[entry.name]
            entry.result["session"] = {
                "turns": settings.session_turns,
                "text_bytes": size,
                **summary(seconds[entry.name], seconds.get(FLOOR)),
                "written_bytes": written.get("wchar"),
                "written_ratio": written["wchar"] / size if written else None,
                "disk_bytes": written.get("write_bytes"),
                "disk_ratio": written["write_bytes"] / size if written else None,
            }

    def many(self) -> None:
        """Turns a second, all contenders with many sessions at once."""
        settings, part = self.settings, "many"
        runs: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in self.entries}
        entries = self._start(part)
        arguments = {"sessions": settings.sessions, "count": MANY_MESSAGES, "turns": settings.many_turns}
        for _ in range(settings.many_runs):

            def run(entry: Entry) -> None:
                answer = entry.process.ask("many", **arguments)
                if "missing" in answer:
                    raise Missing(answer["missing"])
                # A turn that failed may have stored one of its messages.
                extra = answer["stored"] - answer["expected"]
                if not 0 <= extra <= answer["failed"] * NEW_MESSAGES:
                    raise Missing(f"it stored {answer['stored']} of {answer['expected']} messages")
                runs[entry.name].append(answer)

            entries = self._round(part, entries, run)
        floors = [answer["done"] / answer["seconds"] for answer in runs.get(FLOOR, [])]
        for entry in self._each(part, entries, lambda entry: _ask(entry, "stop")):
            rates = [answer["done"] / answer["seconds"] for answer in runs[entry.name]]
            failed = [answer for answer in runs[entry.name] if answer["failed"]]
            entry.result["many"] = {
                "sessions": settings.sessions,
                "by": runs[entry.name][0]["by"],
                "turns_per_second": statistics.median(rates),
                "runs": rates,
                "ratio_to_floor": statistics.median(rates) / statistics.median(floors) if floors else None,
                "failed_turns": sum(answer["failed"] for answer in failed),
                "error": failed[0]["error"] if failed else None,
            }


def _ask(entry: Entry, command: str, **arguments: Any) -> None:
    entry.process.ask(command, **arguments)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def summary(values: list[float], floor: list[float] | None) -> dict[str, Any]:
    """Median, mean and p99 in milliseconds, each as a ratio to the floor's own."""
    row: dict[str, Any] = {
        "median_ms": statistics.median(values) * 1e3,
        "mean_ms": statistics.fmean(values) * 1e3,
        "p99_ms": quantile(values, 0.99) * 1e3,
        "min_ms": min(values) * 1e3,
    }
    if floor:
        row["ratio_to_floor"] = {
            "median": statistics.median(values) / statistics.median(floor),
            "mean": statistics.fmean(values) / statistics.fmean(floor),
            "p99": quantile(values, 0.99) / quantile(floor, 0.99),
        }
    return row


def sync_file_system(directory: Path) -> None:
    """Writes what is still in memory: nobody pays at his own fsync for what another one left behind."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None or syncfs(fd) != 0:
            os.sync()
    finally:
        os.close(fd)
