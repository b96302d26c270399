"""How late an event loop is while a session of 10 MB saves, against the same loop with nothing to do. See README.md.

python benches/stall_bench.py [--dir DIR] [--messages N] [--saves N] [--quick]
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from command import command_line, parse, work_directory, write
from contenders import NEW_MESSAGES, message, write_durably
from journal_contenders import BATCH, ID, store_session
from measure import quantile, summary
from perdure import AsyncAgent, AsyncSession, FileSessionStore, SessionOptions

TICK = 0.001
MESSAGES, SAVES = 11_000, 120
SYNCED = "whole files: fsync, rename, fsync of the directory; journal lines: fdatasync"
IDLE, RAW = "idle", "raw write of the same bytes, on a thread"


class Ticker:
    """A task that sleeps for a millisecond again and again and notes how late it wakes, while it is told to."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.noting = False
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            noting, started = self.noting, time.perf_counter()
            await asyncio.sleep(TICK)
            # A tick counts if what is measured was under way when it began. It may end after it: that is the stall.
            if noting:
                self.late.append(time.perf_counter() - started - TICK)

    async def during(self, work: Awaitable[object]) -> list[float]:
        """How late the ticks were while this was under way."""
        self.late.clear()
        self.noting = True
        # The tick that is under way began before; the next one is the first that counts.
        await asyncio.sleep(2 * TICK)
        self.late.clear()
        await work
        self.noting = False
        await asyncio.sleep(2 * TICK)
        return list(self.late)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Saving:
    """An `AsyncSession` of many messages with automatic saves."""

    journal = False

    def __init__(self, directory: Path, count: int) -> None:
        self.directory, self.count = directory, count
        store_session(directory, count)
        self.store = FileSessionStore(directory, journal=self.journal)

    async def open(self) -> Saving:
        agent = await AsyncAgent.create("{}")
        options = SessionOptions(file_session_store=str(self.directory), auto_save=True, journal=self.journal)
        self.session: AsyncSession = await agent.resume_session(ID, options)
        self.filler = [message(self.count + n) for n in range(5 * BATCH)]
        return self

    async def prepare(self) -> None:
        """Before a save; not measured."""
        await self.session.rewind(self.count)

    async def save(self) -> None:
        """A save that writes the whole file."""
        before = self.store.stats().snapshots
        while self.store.stats().snapshots == before:
            await self.session.append(*(message(self.count + n) for n in range(NEW_MESSAGES)))


class Folding(Saving):
    """In journal mode: the journal is filled, so that a turn folds it."""

    journal = True

    async def prepare(self) -> None:
        snapshot, journal = self.directory / f"{ID}.json", self.directory / f"{ID}.journal"
        await self.session.rewind(self.count)
        each = snapshot.stat().st_size / self.count
        while True:
            # Up to a few turns before the limit.
            room = 2 * snapshot.stat().st_size - 16 * 1024 - (journal.stat().st_size if journal.exists() else 0)
            if room < 16 * each:
                return
            await self.session.append(*self.filler[: int(room / each)])
            await self.session.rewind(self.count)


class Raw:
    """The raw calls for a whole file on ready bytes, on a thread: no save that leaves the loop alone can do less."""

    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self.directory = directory
        self.bytes = b"".join(json.dumps(message(n), ensure_ascii=False).encode() + b"\n" for n in range(count))

    async def prepare(self) -> None:
        """Nothing."""

    async def save(self) -> None:
        await asyncio.to_thread(write_durably, str(self.directory), "raw.json", [self.bytes])


async def measure(directory: Path, count: int, saves: int) -> dict[str, list[float]]:
    """Every round measures each once, in a random order; idle for as long as the last save took."""
    saving = {
        "snapshot mode, a save": await Saving(directory / "snapshot", count).open(),
        "journal mode, a fold": await Folding(directory / "journal", count).open(),
    }
    kinds: dict[str, Saving | Raw] = {RAW: Raw(directory / "raw", count), **saving}
    late: dict[str, list[float]] = {name: [] for name in (IDLE, *kinds)}
    ticker, names, order, pause = Ticker(), list(late), random.Random(1), 0.01
    gc.collect()
    gc.freeze()
    for number in range(-2, saves):
        order.shuffle(names)
        for name in names:
            if name == IDLE:
                found = await ticker.during(asyncio.sleep(pause))
            else:
                await kinds[name].prepare()
                started = time.perf_counter()
                found = await ticker.during(kinds[name].save())
                pause = time.perf_counter() - started
            if number >= 0:
                late[name] += found
    gc.unfreeze()
    await ticker.stop()
    for one in saving.values():
        await one.session.close()
    return late


def ratio(values: list[float], rival: list[float]) -> dict[str, float]:
    """Ticks do not come in pairs: there are as many as the time allows."""
    return {
        "median": statistics.median(values) / statistics.median(rival),
        "mean": statistics.fmean(values) / statistics.fmean(rival),
        "p99": quantile(values, 0.99) / quantile(rival, 0.99),
    }


def main() -> None:
    parser = command_line(__doc__, "stall.json")
    parser.add_argument("--messages", type=int, help="messages of the session")
    parser.add_argument("--saves", type=int, help="saves of each kind")
    options = parse(parser)
    count = options.messages or (500 if options.quick else MESSAGES)
    saves = options.saves or (2 if options.quick else SAVES)
    with work_directory(options) as directory:
        late = asyncio.run(measure(directory, count, saves))
        size = (directory / "snapshot" / f"{ID}.json").stat().st_size
    rows: dict[str, Any] = {}
    for name, values in late.items():
        row = rows[name] = {"ticks": len(values), **summary(values), "max_ms": max(values) * 1e3}
        row["ratio_to_idle"], row["ratio_to_raw"] = ratio(values, late[IDLE]), ratio(values, late[RAW])
        to_idle, to_raw = row["ratio_to_idle"]["p99"], row["ratio_to_raw"]["p99"]
        print(
            f"{name}: late by {row['median_ms']:.3f} ms, p99 {row['p99_ms']:.3f}, at most {row['max_ms']:.3f} "
            f"({len(values)} ticks); p99 {to_idle:.2f} × idle, {to_raw:.2f} × raw"
        )
    write(options, SYNCED, {"messages": count, "bytes": size, "saves": saves, "rows": rows})


if __name__ == "__main__":
    main()
