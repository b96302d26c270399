"""Perdure and its peers, side by side: what a turn costs, what it writes, many sessions at once. See README.md.

python benches/compare/run.py [--dir DIR] [--only NAMES] [--sizes 10 100 1000 10000] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compare.contenders import CONTENDERS
from compare.environments import Missing, interpreter
from compare.measure import Entry, Field, Settings, probe
from compare.process import Process
from compare.report import table
from place import describe, refuse_memory

RESULTS = Path(__file__).resolve().parents[1] / "results" / "compare.json"
ROUNDS = {10: 100, 100: 100, 1_000: 50, 10_000: 20}
QUICK = Settings(
    rounds={10: 5, 100: 5},
    warm_up=1,
    session_turns=20,
    session_block=10,
    sessions=8,
    many_turns=4,
    many_runs=2,
    probe_turns=4,
)


def compare(names: list[str], directory: Path, settings: Settings) -> dict[str, Any]:
    """Runs it all below `directory`."""
    results: dict[str, Any] = {}
    entries = []
    with ExitStack() as stack:
        for name in names:
            contender = CONTENDERS[name]
            result = results[name] = {"title": contender.title, "timed": contender.timed, "missing": None, "turns": {}}
            try:
                python = interpreter(contender.environment)
                result |= probe(contender, python, directory / "probe", settings)
            except Missing as error:
                result["missing"] = str(error)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            process = stack.enter_context(Process(contender, python, directory / "home"))
            entries.append(Entry(contender, process, result))
        field = Field(entries, directory, settings)
        for count in settings.rounds:
            print(f"turns in sessions of {count:,} messages", file=sys.stderr, flush=True)
            field.turns(count)
        print(f"sessions of {settings.session_turns} turns", file=sys.stderr, flush=True)
        field.session()
        print(f"{settings.sessions} sessions at once", file=sys.stderr, flush=True)
        field.many()
    return results


def perdure_version() -> str | None:
    """Of the perdure in this interpreter, which is the one measured; a debug build is refused."""
    try:
        import perdure
    except ImportError:
        return None
    if perdure._core.build_profile != "release":
        sys.exit("perdure is a debug build; build it with `maturin develop --release`")
    return perdure.__version__


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a directory on the disk to measure (default: .)")
    parser.add_argument("--only", help=f"contenders, with commas between: {', '.join(CONTENDERS)}")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of messages")
    parser.add_argument("--rounds", type=int, help="rounds for every size (default: by size)")
    parser.add_argument("--quick", action="store_true", help="small numbers: does it all still work?")
    parser.add_argument("--allow-tmpfs", action="store_true", help="measure in memory all the same")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON (quick: nowhere by default)")
    options = parser.parse_args(arguments)
    options.names = options.only.split(",") if options.only else list(CONTENDERS)
    unknown = [name for name in options.names if name not in CONTENDERS]
    if unknown:
        parser.error(f"--only: no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    if any(size < 4 or size % 2 for size in options.sizes or []):
        parser.error("--sizes: even numbers from 4 on, a turn is two messages")
    return options


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    refuse_memory(options.dir, options.allow_tmpfs)
    settings = QUICK if options.quick else Settings(rounds=ROUNDS)
    if options.sizes or options.rounds:
        sizes = options.sizes or list(settings.rounds)
        rounds = {size: options.rounds or settings.rounds.get(size, 20) for size in sizes}
        settings = Settings(**{**vars(settings), "rounds": rounds})
    report: dict[str, Any] = {
        "perdure": perdure_version(),
        "where": describe(options.dir),
        "settings": vars(settings),
        "sizes": list(settings.rounds),
    }
    # What each contender syncs is in its own entry.
    del report["where"]["sync"]
    with tempfile.TemporaryDirectory(prefix=".perdure-bench-", dir=options.dir) as directory:
        report["contenders"] = compare(options.names, Path(directory).resolve(), settings)
    print(table(report))
    out = options.out or (None if options.quick else RESULTS)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
