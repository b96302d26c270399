"""What a save costs in journal mode, from Python, against the write of the very bytes. See README.md.

python benches/journal_bench.py [--dir DIR] [--sizes 10 100 1000 10000 100000] [--rounds N] [--quick]
"""

from __future__ import annotations

import gc
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent))
from command import command_line, parse, sync_file_system, work_directory, write
from journal_contenders import (
    Floor,
    PythonStore,
    SessionAppend,
    SessionAppendProcess,
    SessionAppendSnapshot,
    StoreSave,
    Turns,
)
from measure import ratio, summary

SIZES = [10, 100, 1_000, 10_000, 100_000]
ROUNDS = 3_000
# Every contender, the slow ones too: fewer rounds.
FIELD_ROUNDS = {10: 100, 100: 100, 1_000: 60, 10_000: 20, 100_000: 10}
WARM_UP = 20
LARGEST_FOR_PYTHON = 10_000
# Sizes between which the slope is taken, both included.
SLOPE = (100, 100_000)
STATISTICS = ("median", "mean", "p99")
SYNCED = "journal lines: pwrite, fdatasync; whole files: fsync, rename, fsync of the directory"


class Contender(Protocol):
    def change(self) -> None: ...
    def save(self) -> None: ...


@dataclass
class Timed:
    """A contender and what its saves took."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)

    def turn(self) -> float:
        self.contender.change()
        started = time.perf_counter()
        self.contender.save()
        taken = time.perf_counter() - started
        self.seconds.append(taken)
        return taken

    def forget(self) -> None:
        """The warm-up is over."""
        self.seconds.clear()


def run(timed: Iterable[Timed], rounds: int, seed: int) -> None:
    """Every round asks every contender once, in a random order: no one pays each time for the same neighbour."""
    timed, order = list(timed), random.Random(seed)
    for number in range(-WARM_UP, rounds):
        order.shuffle(timed)
        for one in timed:
            one.turn()
        if number == -1:
            for one in timed:
                one.forget()


class Pair:
    """A session in journal mode and the floor under it, in one directory. Folds are kept apart from other turns."""

    def __init__(self, directory: Path, count: int, kind: type[SessionAppend]) -> None:
        self.count = count
        self.journal = kind(directory / "sessions", count)
        self.floor = Floor(directory / "sessions" / "floor.raw", self.journal, sync=kind.durability == "full")
        self.timed = {"floor": Timed(self.floor), "journal": Timed(self.journal)}

    def folds(self, count: int, seed: int) -> list[float]:
        """Seconds of the next `count` turns that fold. Each journal is filled up to its limit first, untimed."""
        order, pair, found = random.Random(seed), [*self.timed.values()], list[float]()
        while len(found) < count:
            self.journal.fill()
            before = self.journal.folds()
            while self.journal.folds() == before:
                order.shuffle(pair)
                taken = {id(one): one.turn() for one in pair}
            found.append(taken[id(self.timed["journal"])])
        return found

    def turns_between_folds(self) -> float:
        """How many turns fit into a journal."""
        return self.journal.fold_limit() / len(self.floor.line)

    def close(self) -> None:
        self.journal.close()
        self.floor.close()


class CountingFolds(Timed):
    """Notes which of the turns, cuts included, wrote the whole file."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair.journal)
        self.pair = pair
        self.at: list[int] = []
        self.in_cuts = 0

    def turn(self) -> float:
        journal = self.pair.journal
        before = journal.folds()
        journal.change()
        after_cut = journal.folds()
        started = time.perf_counter()
        journal.save()
        taken = time.perf_counter() - started
        self.in_cuts += after_cut - before
        if journal.folds() > after_cut:
            self.at.append(len(self.seconds))
        self.seconds.append(taken)
        return taken

    def forget(self) -> None:
        super().forget()
        self.at.clear()
        self.in_cuts = 0


def against_the_floor(
    directory: Path, sizes: list[int], rounds: int, kind: type[SessionAppend]
) -> tuple[list[dict[str, Any]], float | None]:
    """All sizes live at once and take turns: what grows with the size is then not the weather. Rows, and the slope."""
    pairs = []
    for count in sizes:
        print(f"durability={kind.durability}: a session of {count:,} messages", file=sys.stderr, flush=True)
        pair = Pair(directory / f"{kind.durability}-{count}", count, kind)
        pair.timed["journal"] = CountingFolds(pair)
        pairs.append(pair)
    gc.collect()
    gc.freeze()
    sync_file_system(directory)
    run([one for pair in pairs for one in pair.timed.values()], rounds, seed=1)
    rows = [_row(pair) for pair in pairs]
    gc.unfreeze()
    for pair in pairs:
        pair.close()
    shutil.rmtree(directory)
    medians = {row["messages"]: row["journal"]["median_ms"] for row in rows}
    between = {count: medians[count] for count in medians if SLOPE[0] <= count <= SLOPE[1]}
    return rows, slope(between) if len(between) > 1 else None


def slope(points: Mapping[int, float]) -> float:
    """The exponent with which the values grow with the size: by least squares through all logarithms."""
    sizes, values = zip(*points.items(), strict=True)
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, values)]).slope


def beside(seconds: list[float], floor: list[float]) -> dict[str, Any]:
    """What it took, and as multiples of the floor's own."""
    return {**summary(seconds), "ratio_to_floor": ratio(seconds, floor)}


def _row(pair: Pair) -> dict[str, Any]:
    journal, floor = pair.timed["journal"], pair.timed["floor"]
    assert isinstance(journal, CountingFolds)
    rounds, floors = len(journal.seconds), list(floor.seconds)
    row = {
        "messages": pair.count,
        "rounds": rounds,
        "snapshot_bytes": (pair.journal.directory / "bench.json").stat().st_size,
        "line_bytes": len(pair.floor.line),
        "floor": beside(floors, floors),
        "journal": beside(journal.seconds, floors),
    }
    folded = [journal.seconds[at] for at in journal.at]
    plain = [seconds for at, seconds in enumerate(journal.seconds) if at not in set(journal.at)]
    if len(folded) >= 2:
        between, amortised = pair.turns_between_folds(), False
        # A fold in a cut is not in a turn's time; it is made up for.
        mean = (sum(journal.seconds) + journal.in_cuts * statistics.fmean(folded)) / rounds
    else:
        amortised = True
        folded += pair.folds(2 - len(folded), seed=pair.count)
        between = pair.turns_between_folds()
        without = statistics.fmean(plain)
        mean = without + (statistics.fmean(folded) - without) / between
    row["folds"] = {
        "measured": len(folded),
        "in_cuts": journal.in_cuts,
        "mean_ms": statistics.fmean(folded) * 1e3,
        "turns_between": between,
        "amortised": amortised,
        "mean_with_folds_ms": mean * 1e3,
        "mean_without_folds_ms": statistics.fmean(plain) * 1e3,
        "ratio_with_folds": mean / statistics.fmean(floors),
    }
    return row


FIELD: dict[str, Callable[[Path, int], Turns]] = {
    "Session.append, journal": SessionAppend,
    "SessionData.append, FileSessionStore.save, journal": StoreSave,
    "Session.append, snapshot": SessionAppendSnapshot,
    "PythonFileSessionStore": PythonStore,
}


def all_contenders(directory: Path, count: int, rounds: int) -> dict[str, Any]:
    """Everybody in one run, so that each can be compared with each."""
    print(f"all contenders: {count:,} messages", file=sys.stderr, flush=True)
    kinds = {name: kind for name, kind in FIELD.items() if kind is not PythonStore or count <= LARGEST_FOR_PYTHON}
    contenders = {name: kind(directory / str(number), count) for number, (name, kind) in enumerate(kinds.items())}
    journal = contenders["Session.append, journal"]
    assert isinstance(journal, SessionAppend)
    floor = Floor(directory / "0" / "floor.raw", journal)
    timed = {"floor": Timed(floor), **{name: Timed(contender) for name, contender in contenders.items()}}
    gc.collect()
    gc.freeze()
    run(timed.values(), rounds, seed=count)
    gc.unfreeze()
    rows: dict[str, dict[str, Any]] = {name: beside(one.seconds, timed["floor"].seconds) for name, one in timed.items()}
    if "PythonFileSessionStore" in timed:
        for name, one in timed.items():
            rows[name]["python_store_to_it"] = ratio(timed["PythonFileSessionStore"].seconds, one.seconds)
    for contender in contenders.values():
        contender.close()
    floor.close()
    shutil.rmtree(directory)
    return {"messages": count, "rounds": rounds, "rows": rows}


def show(title: str, rows: list[dict[str, Any]], steepness: float | None) -> None:
    print(f"### {title}")
    for row in rows:
        to_floor, folds = row["journal"]["ratio_to_floor"], row["folds"]
        print(
            f"{row['messages']:>7,} messages: floor {row['floor']['median_ms']:.4f} ms, "
            f"journal {row['journal']['median_ms']:.4f} ms; × floor "
            + ", ".join(f"{name} {to_floor[name]:.2f}" for name in STATISTICS)
            + f", mean with folds {folds['ratio_with_folds']:.2f}{' (amortised)' if folds['amortised'] else ''}"
        )
    if steepness is not None:
        print(f"slope of the median between {SLOPE[0]:,} and {SLOPE[1]:,} messages: {steepness:.3f}")


def show_field(result: Mapping[str, Any]) -> None:
    print(f"### all contenders, {result['messages']:,} messages")
    for name, row in result["rows"].items():
        python = row.get("python_store_to_it")
        beside = f", the pure-Python store takes {python['median']:.1f} × as long" if python else ""
        print(f"{name}: {row['median_ms']:.3f} ms, {row['ratio_to_floor']['median']:.2f} × floor{beside}")


def main() -> None:
    parser = command_line(__doc__, "journal.json")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of messages")
    parser.add_argument("--rounds", type=int, help="rounds of each part (default: many, fewer for the whole field)")
    options = parse(parser)
    sizes = options.sizes or ([10, 1_000] if options.quick else SIZES)
    rounds = options.rounds or (20 if options.quick else ROUNDS)
    figures: dict[str, Any] = {"slope_between": SLOPE}
    with work_directory(options) as directory:
        for kind in (SessionAppend, SessionAppendProcess):
            name = str(kind.durability)
            rows, steepness = against_the_floor(directory / name, sizes, rounds, kind)
            figures[name] = {"results": rows, "slope": steepness}
            show(f"durability={name}", rows, steepness)
        figures["field"] = []
        for count in sizes:
            number = options.rounds or (3 if options.quick else FIELD_ROUNDS.get(count, 20))
            figures["field"].append(all_contenders(directory / "field", count, number))
            show_field(figures["field"][-1])
    write(options, SYNCED, figures)


if __name__ == "__main__":
    main()
