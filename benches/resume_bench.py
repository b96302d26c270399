"""What it costs to go on with a session of N messages: opening it, and decoding its history. See README.md.

python benches/resume_bench.py [--dir DIR] [--rounds N] [--sizes 100 1000 10000 100000]

The rivals read the same file with `orjson.loads` and `json.loads`, which check no checksum; the floor is the raw read.
The file is in the page cache for all of them, and what a contender gives is released outside of its time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import orjson

import perdure
from perdure import FileSessionStore, SessionData

sys.path.insert(0, str(Path(__file__).parent))
from contenders import message
from measure import interleaved, ratio, slope, summary
from place import describe, refuse_memory

RESULTS = Path(__file__).parent / "results" / "resume.json"
ROUNDS = {100: 300, 1_000: 100, 10_000: 40, 100_000: 10}
FLOOR, RIVAL = "read", "orjson"
ID = "bench"


def contenders(directory: Path) -> dict[str, Callable[[], Any]]:
    """Each opens the session that lies in the directory."""
    store = FileSessionStore(directory)
    path = directory / f"{ID}.json"

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read()

    def opened() -> SessionData:
        data = store.load(ID)
        assert data is not None
        return data

    def whole() -> SessionData:
        data = opened()
        data._load_all()
        return data

    held = whole()
    return {
        FLOOR: read,
        RIVAL: lambda: orjson.loads(read()),
        "json": lambda: json.loads(read()),
        # The whole file is read, checked against its checksum and indexed; nothing is decoded.
        "open": whole,
        "open + whole history": lambda: list(opened().messages),
        "whole history of an open session": lambda: list(held.messages),
    }


def by_the_end(directory: Path) -> dict[str, Callable[[], Any]]:
    """What costs the same whatever the length, and the raw reads of the same bytes.

    Timed apart from the others: after one of those has let go of a gigabyte everything is slow for a while.
    """
    store = FileSessionStore(directory)
    path = str(directory / f"{ID}.json")

    def ends() -> tuple[bytes, bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            return os.pread(fd, 8192, 0), os.pread(fd, 65536, max(0, size - 65536))
        finally:
            os.close(fd)

    def tail() -> tuple[int, list[dict[str, Any]]]:
        data = store.load(ID)
        assert data is not None
        history = data.messages
        return len(history), list(history[-20:])

    return {"raw reads of head and end": ends, "open + len + last 20": tail}


def measure(directory: Path, count: int, rounds: int) -> dict[str, Any]:
    FileSessionStore(directory).save(SessionData(ID, messages=[message(n) for n in range(count)]))
    timed = contenders(directory)
    expected = timed[RIVAL]()["messages"]
    if not (timed["open + whole history"]() == expected == timed["json"]()["messages"] and len(expected) == count):
        sys.exit("the contenders do not read the same messages")
    del expected
    # A collection that falls due is part of making objects; one that was left over by a neighbour is not.
    seconds = interleaved(timed, rounds, prepare=lambda _: gc.collect() and None, seed=count)
    rows = {
        name: summary(values)
        | {"ratio_to_orjson": ratio(values, seconds[RIVAL]), "ratio_to_read": ratio(values, seconds[FLOOR])}
        for name, values in seconds.items()
    }
    light = by_the_end(directory)
    length, last = light["open + len + last 20"]()
    if (length, last) != (count, timed[RIVAL]()["messages"][-20:]):
        sys.exit("the end of the session is not its end")
    gc.collect()
    ends = interleaved(light, max(rounds, 100), seed=count)
    for name, values in ends.items():
        to_orjson = median(values) / median(seconds[RIVAL])
        rows[name] = summary(values) | {
            "ratio_to_orjson": dict.fromkeys(("median", "mean", "p99"), to_orjson),
            "ratio_to_read": ratio(values, ends["raw reads of head and end"]),
        }
    size = (directory / f"{ID}.json").stat().st_size
    return {"messages": count, "rounds": rounds, "file_bytes": size, "rows": rows}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"### {result['messages']:,} messages, {result['file_bytes'] / 2**20:.2f} MiB, {result['rounds']} rounds",
        "",
        "| | median ms | mean ms | p99 ms | × orjson (median) | (mean) | (p99) | × raw read (median) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result["rows"].items():
        rival = row["ratio_to_orjson"]
        lines.append(
            f"| {name} | {row['median_ms']:.3f} | {row['mean_ms']:.3f} | {row['p99_ms']:.3f} | {rival['median']:.2f} | "
            f"{rival['mean']:.2f} | {rival['p99']:.2f} | {row['ratio_to_read']['median']:.1f} |"
        )
    return "\n".join(lines)


def slopes(results: list[dict[str, Any]]) -> dict[str, float]:
    """How the median of each contender grows with the number of messages: 0 is not at all, 1 is in proportion."""
    sizes = [result["messages"] for result in results]
    if len(set(sizes)) < 2:
        return {}
    return {name: slope(sizes, [r["rows"][name]["median_ms"] for r in results]) for name in results[0]["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a directory on the disk to measure (default: .)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(ROUNDS), help="numbers of messages")
    parser.add_argument("--rounds", type=int, help="rounds for every size (default: by size)")
    parser.add_argument("--allow-tmpfs", action="store_true", help="measure in memory all the same")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go, as JSON")
    options = parser.parse_args()
    refuse_memory(options.dir, options.allow_tmpfs)
    if perdure._core.build_profile != "release":
        sys.exit("perdure is a debug build; build it with `maturin develop --release`")

    where = describe(options.dir) | {"sync": "none: files are read, from the page cache"}
    print(f"perdure {perdure.__version__}, {where['python']}, {where['kernel']}, {where['cpus']} × {where['cpu']}")
    print(f"{where['file_system']} on {where['device']} ({where['mount_options']}); orjson {orjson.__version__}")
    print(f"a message is {len(json.dumps(message(0), ensure_ascii=False).encode())} bytes\n")
    results = []
    for count in options.sizes:
        with tempfile.TemporaryDirectory(prefix=".perdure-bench-", dir=options.dir) as directory:
            result = measure(Path(directory), count, options.rounds or ROUNDS.get(count, 20))
        print(table(result), end="\n\n", flush=True)
        results.append(result)
    growth = slopes(results)
    for name, value in growth.items():
        print(f"slope of {name}: {value:.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "perdure": perdure.__version__,
        "orjson": orjson.__version__,
        "where": where,
        "results": results,
        "slopes": growth,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
