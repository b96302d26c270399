"""What one save costs: perdure, plain writers and the floor, interleaved, as ratios. See README.md.

python benches/save_bench.py [--dir DIR] [--rounds N] [--sizes 10 100 1000 10000]
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import perdure

sys.path.insert(0, str(Path(__file__).parent))
from contenders import CONTENDERS, NEW_MESSAGES, Contender, message
from measure import interleaved, ratio, summary
from place import describe, refuse_memory

RESULTS = Path(__file__).parent / "results" / "save.json"
ROUNDS = {10: 100, 100: 100, 1_000: 60, 10_000: 20}


def interleaved_saves(contenders: dict[str, Contender], count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each save; the sessions keep their size."""
    added = 0

    def keep_size() -> None:
        nonlocal added
        if added > count // 50:
            added = 0
            for contender in contenders.values():
                contender.cut(count)
        added += NEW_MESSAGES

    return interleaved(
        {name: contender.save for name, contender in contenders.items()},
        rounds,
        prepare=lambda name: contenders[name].change(),
        before_round=keep_size,
        seed=count,
    )


def measure(directory: Path, count: int, rounds: int) -> dict[str, Any]:
    contenders = {}
    for number, (name, kind) in enumerate(CONTENDERS.items()):
        contenders[name] = kind(directory / f"{count}-{number}", count)  # type: ignore[call-arg]
    gc.collect()
    gc.freeze()  # the histories of plain dicts would make every collection slow, for every contender
    seconds = interleaved_saves(contenders, count, rounds)
    gc.unfreeze()
    floor, python = seconds["floor"], seconds["PythonFileSessionStore"]
    rows = {}
    for name, values in seconds.items():
        faster = ratio(python, values)
        del faster["median_of_pairs"]
        rows[name] = summary(values) | {"ratio_to_floor": ratio(values, floor), "python_store_to_it": faster}
    size = (directory / f"{count}-0" / "bench.json").stat().st_size
    return {"messages": count, "rounds": rounds, "file_bytes": size, "rows": rows}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"### {result['messages']:,} messages, {result['file_bytes'] / 2**20:.2f} MiB, {result['rounds']} rounds",
        "",
        "| | median ms | mean ms | p99 ms | × floor (median) | × floor (mean) | × floor (p99) | × faster than Python |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result["rows"].items():
        floor, python = row["ratio_to_floor"], row["python_store_to_it"]
        lines.append(
            f"| {name} | {row['median_ms']:.2f} | {row['mean_ms']:.2f} | {row['p99_ms']:.2f} | {floor['median']:.2f} | "
            f"{floor['mean']:.2f} | {floor['p99']:.2f} | {python['median']:.1f}× |"
        )
    return "\n".join(lines)


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

    where = describe(options.dir)
    print(f"perdure {perdure.__version__}, {where['python']}, {where['kernel']}, {where['cpus']} × {where['cpu']}")
    print(f"{where['file_system']} on {where['device']} ({where['mount_options']}); {where['sync']}")
    print(f"a message is {len(json.dumps(message(0), ensure_ascii=False).encode())} bytes\n")
    results = []
    for count in options.sizes:
        with tempfile.TemporaryDirectory(prefix=".perdure-bench-", dir=options.dir) as directory:
            result = measure(Path(directory), count, options.rounds or ROUNDS.get(count, 50))
        print(table(result), end="\n\n", flush=True)
        results.append(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"perdure": perdure.__version__, "where": where, "results": results}
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
