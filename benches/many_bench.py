"""Durable turns a second of many sessions at once, against raw threads that write the very bytes. See README.md.

python benches/many_bench.py [--dir DIR] [--sessions 1 4 16 64] [--turns N] [--runs N] [--quick]
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parent))
from command import command_line, parse, sync_file_system, work_directory, write
from contenders import NEW_MESSAGES, message, write_durably
from journal_contenders import open_session, store_session
from perdure import AsyncAgent, FileSessionStore, PerdureError, SessionData, SessionOptions

SESSIONS = [1, 4, 16, 64]
TURNS, RUNS = 100, 5
MESSAGES = 100  # of each session before the first turn
FLOOR = "raw threads"
SYNCED = "journal lines: pwrite, fdatasync; whole files: fsync, rename, fsync of the directory"


def turn(length: int) -> list[dict[str, Any]]:
    return [message(length + n) for n in range(NEW_MESSAGES)]


def in_threads(count: int, work: Callable[[int], None]) -> float:
    """Seconds from the moment when all threads are there until the last one is done."""
    ready, failed = threading.Barrier(count + 1), list[BaseException]()

    def one(number: int) -> None:
        ready.wait()
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - started
    if failed:
        raise failed[0]
    return taken


class Many:
    """A number of stored sessions, each with messages. `run` makes turns in all of them; gives the seconds."""

    def __init__(self, directory: Path, sessions: int) -> None:
        self.directory, self.sessions = directory, sessions
        self.made = 0  # turns of each session so far
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def run(self, turns: int) -> float:
        raise NotImplementedError

    def close(self) -> None:
        """The end of the measurement."""

    def stored(self) -> list[int]:
        """Messages of each session, as a new reader finds them."""
        raise NotImplementedError

    def new_turns(self, turns: int) -> list[list[dict[str, Any]]]:
        """The messages of the coming turns, made before the clock starts; all sessions say the same."""
        start = MESSAGES + self.made * NEW_MESSAGES
        self.made += turns
        return [turn(start + number * NEW_MESSAGES) for number in range(turns)]


class Stored(Many):
    """Sessions of perdure's in journal mode, opened by `_session`."""

    def open(self) -> None:
        for number in range(self.sessions):
            store_session(self.directory, MESSAGES, id=f"s{number}")
        self.store = FileSessionStore(self.directory, journal=True)

    def stored(self) -> list[int]:
        store = FileSessionStore(self.directory)
        return [len(store.load(f"s{number}") or ()) for number in range(self.sessions)]


class SaveMany(Stored):
    """`SessionData.append` for each, then one `save_many` for all."""

    def open(self) -> None:
        super().open()
        loaded = [self.store.load(f"s{number}") for number in range(self.sessions)]
        self.datas: list[SessionData] = [data for data in loaded if data is not None]

    def run(self, turns: int) -> float:
        new = self.new_turns(turns)
        started = time.perf_counter()
        for messages in new:
            for data in self.datas:
                data.append(*messages)
            for receipt in self.store.save_many(self.datas):
                if isinstance(receipt, PerdureError):
                    raise receipt
        return time.perf_counter() - started

    def close(self) -> None:
        self.store.close()


class Threads(Stored):
    """A thread a session, each with its own `Session.append`."""

    def open(self) -> None:
        super().open()
        self.open_sessions = [open_session(self.directory, f"s{n}", journal=True) for n in range(self.sessions)]

    def run(self, turns: int) -> float:
        new = self.new_turns(turns)

        def work(number: int) -> None:
            append = self.open_sessions[number].append
            for messages in new:
                append(*messages)

        return in_threads(self.sessions, work)

    def close(self) -> None:
        for session in self.open_sessions:
            session.close()


class Tasks(Stored):
    """A task of one event loop a session, each with its own `AsyncSession.append`."""

    def open(self) -> None:
        super().open()
        self.loop = asyncio.new_event_loop()
        self.open_sessions = self.loop.run_until_complete(self._open())

    async def _open(self) -> list[Any]:
        agent = await AsyncAgent.create("{}")
        options = SessionOptions(file_session_store=str(self.directory), auto_save=True, journal=True)
        return [await agent.resume_session(f"s{number}", options) for number in range(self.sessions)]

    def run(self, turns: int) -> float:
        new = self.new_turns(turns)

        async def work(session: Any) -> None:
            for messages in new:
                await session.append(*messages)

        async def all_of_them() -> float:
            started = time.perf_counter()
            await asyncio.gather(*(work(session) for session in self.open_sessions))
            return time.perf_counter() - started

        return self.loop.run_until_complete(all_of_them())

    def close(self) -> None:
        async def close() -> None:
            await asyncio.gather(*(session.close() for session in self.open_sessions))

        self.loop.run_until_complete(close())
        self.loop.close()


class RawThreads(Many):
    """A thread a file: pwrite of a ready journal line at its end, fdatasync. Threads are new in each run."""

    def open(self) -> None:
        self.directory.mkdir()
        self.line = journal_line(self.directory / "sample")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fds = [os.open(self.directory / f"{n}.raw", flags, 0o600) for n in range(self.sessions)]
        self.ends = [0] * self.sessions

    def append(self, number: int) -> None:
        self.ends[number] += os.pwrite(self.fds[number], self.line, self.ends[number])
        os.fdatasync(self.fds[number])

    def run(self, turns: int) -> float:
        self.made += turns

        def work(number: int) -> None:
            for _ in range(turns):
                self.append(number)

        return in_threads(self.sessions, work)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def stored(self) -> list[int]:
        files = (self.directory / f"{number}.raw" for number in range(self.sessions))
        return [MESSAGES + NEW_MESSAGES * file.stat().st_size // len(self.line) for file in files]


class RawPool(RawThreads):
    """The same on a pool of as many threads that stay; every turn waits for all files, as `save_many` does."""

    def open(self) -> None:
        super().open()
        self.pool = ThreadPoolExecutor(self.sessions)

    def run(self, turns: int) -> float:
        self.made += turns
        started = time.perf_counter()
        for _ in range(turns):
            list(self.pool.map(self.append, range(self.sessions)))
        return time.perf_counter() - started

    def close(self) -> None:
        self.pool.shutdown()
        super().close()


class WholeFiles(Many):
    """A thread a session, each with `dumps` of the whole session, written, synced, renamed, the directory synced."""

    def open(self) -> None:
        self.directory.mkdir()
        self.held = [{"id": f"s{n}", "messages": [message(i) for i in range(MESSAGES)]} for n in range(self.sessions)]

    @staticmethod
    def dumps(session: dict[str, Any]) -> bytes:
        raise NotImplementedError

    def run(self, turns: int) -> float:
        new = self.new_turns(turns)

        def work(number: int) -> None:
            session = self.held[number]
            for messages in new:
                session["messages"].extend(messages)  # type: ignore[attr-defined]
                write_durably(str(self.directory), f"{number}.json", [self.dumps(session)])

        return in_threads(self.sessions, work)

    def stored(self) -> list[int]:
        files = (self.directory / f"{number}.json" for number in range(self.sessions))
        return [len(json.loads(file.read_bytes())["messages"]) for file in files]


class Json(WholeFiles):
    """`json`."""

    @staticmethod
    def dumps(session: dict[str, Any]) -> bytes:
        return json.dumps(session, ensure_ascii=False).encode()


class Orjson(WholeFiles):
    """`orjson`."""

    dumps = staticmethod(orjson.dumps)


CONTENDERS: dict[str, type[Many]] = {
    FLOOR: RawThreads,
    "raw pool": RawPool,
    "save_many": SaveMany,
    "Session.append, threads": Threads,
    "AsyncSession.append, tasks": Tasks,
    "orjson, threads": Orjson,
    "json, threads": Json,
}
# They write the whole file, which takes longer with each turn: fewer turns, so that sessions stay about as long.
SLOW = {"orjson, threads": 10, "json, threads": 10}


def journal_line(directory: Path) -> bytes:
    """A journal's line of one turn."""
    store_session(directory, MESSAGES)
    with open_session(directory, journal=True) as session:
        session.append(*turn(MESSAGES))
        line = (directory / "bench.journal").read_bytes().splitlines(keepends=True)[-1]
    shutil.rmtree(directory)
    return line


@contextmanager
def unfrozen() -> Iterator[None]:
    """No collection has to walk over what the contenders hold."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure(directory: Path, sessions: int, turns: int, runs: int) -> dict[str, Any]:
    """Every run asks every contender once, in a random order."""
    print(f"{sessions} sessions", file=sys.stderr, flush=True)
    directory.mkdir()
    there = {name: kind(directory / str(n), sessions) for n, (name, kind) in enumerate(CONTENDERS.items())}
    rates: dict[str, list[float]] = {name: [] for name in there}
    names, order = list(there), random.Random(sessions)
    with unfrozen():
        for number in range(-1, runs):  # one run of warming up
            order.shuffle(names)
            for name in names:
                sync_file_system(directory)
                count = max(1, turns // SLOW.get(name, 1))
                taken = there[name].run(count)
                if number >= 0:
                    rates[name].append(sessions * count / taken)
    rows = {}
    for name, contender in there.items():
        contender.close()
        expected = [MESSAGES + contender.made * NEW_MESSAGES] * sessions
        if contender.stored() != expected:
            sys.exit(f"{name} stored {contender.stored()} messages, not {expected}")
        shares = [rate / floor for rate, floor in zip(rates[name], rates[FLOOR], strict=True)]
        rows[name] = {
            "turns": max(1, turns // SLOW.get(name, 1)),
            "runs": rates[name],
            "turns_per_second": statistics.median(rates[name]),
            "share_of_raw": {
                "median": statistics.median(shares),
                "mean": statistics.fmean(rates[name]) / statistics.fmean(rates[FLOOR]),
                "min": min(shares),
                "max": max(shares),
            },
        }
        if isinstance(contender, Stored):
            stats = contender.store.stats()
            rows[name]["folds_per_session"] = (stats.snapshots - sessions) / sessions
    shutil.rmtree(directory)
    return {"sessions": sessions, "turns": turns, "runs": runs, "messages": MESSAGES, "rows": rows}


def show(result: dict[str, Any]) -> None:
    print(f"### {result['sessions']} sessions, {result['runs']} runs of {result['turns']} turns each")
    for name, row in result["rows"].items():
        share = row["share_of_raw"]
        folds = f", {row['folds_per_session']:.1f} folds a session" if "folds_per_session" in row else ""
        print(
            f"{name}: {row['turns_per_second']:,.0f} turns a second, {share['median']:.0%} of {FLOOR} "
            f"({share['min']:.0%} to {share['max']:.0%}){folds}"
        )


def main() -> None:
    parser = command_line(__doc__, "many.json")
    parser.add_argument("--sessions", type=int, nargs="+", help="how many at once")
    parser.add_argument("--turns", type=int, help="turns of each session in a run")
    parser.add_argument("--runs", type=int, help="runs of every contender")
    options = parse(parser)
    sessions = options.sessions or ([4] if options.quick else SESSIONS)
    turns, runs = options.turns or (4 if options.quick else TURNS), options.runs or (2 if options.quick else RUNS)
    results = []
    with work_directory(options) as directory:
        for count in sessions:
            results.append(measure(directory / str(count), count, turns, runs))
            show(results[-1])
    write(options, SYNCED, {"results": results})


if __name__ == "__main__":
    main()
