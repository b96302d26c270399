"""Bytes written over a whole session, everything counted, against the bytes of its text. See README.md.

python benches/amplification_bench.py [--dir DIR] [--turns 500 2000] [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from command import command_line, parse, work_directory, write
from contenders import NEW_MESSAGES, message
from perdure import Agent, FileSessionStore, SessionOptions

TURNS = [500, 2_000]
SYNCED = "journal lines: pwrite, fdatasync; whole files: fsync, rename, fsync of the directory"


def written_by_process() -> int:
    """Bytes that this process has handed to write calls so far, as the kernel counts them."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def session(directory: Path, turns: int, *, journal: bool) -> dict[str, Any]:
    """A session from its first turn to `close()`. Runs in a process of its own, which writes nothing else."""
    new = [[message(NEW_MESSAGES * turn + n) for n in range(NEW_MESSAGES)] for turn in range(turns)]
    messages = [item for turn in new for item in turn]
    agent = Agent.create("{}")
    before = written_by_process()
    options = SessionOptions(file_session_store=str(directory), session_id="whole", auto_save=True, journal=journal)
    with agent.session(".", options) as opened:
        for turn in new:
            opened.append(*turn)
    wrote = written_by_process() - before
    store = FileSessionStore(directory)
    stats = store.stats()
    assert (store.load("whole") or [None]).messages[-1] == messages[-1]  # type: ignore[union-attr]
    return {
        "written_bytes": wrote,
        "stats": {
            "saves": stats.saves,
            "lines": stats.lines,
            "snapshots": stats.snapshots,
            "bytes_written": stats.bytes_written,
            "new_bytes": stats.new_bytes,
            "write_amplification": stats.write_amplification,
        },
        "message_bytes": sum(len(json.dumps(item, ensure_ascii=False).encode()) for item in messages),
        "text_bytes": sum(len(item["content"][0]["text"].encode()) for item in messages),
        "at_rest_bytes": sum(file.stat().st_size for file in directory.iterdir()),
    }


def measure(directory: Path, turns: int, *, journal: bool) -> dict[str, Any]:
    """In a child, so that nothing else is counted."""
    command = [sys.executable, __file__, "--child", str(turns), "--dir", str(directory)]
    done = subprocess.run([*command, *(["--journal"] if journal else [])], stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    counted, wrote = row["stats"]["bytes_written"], row["written_bytes"]
    # Lock files are a line each and no save; anything more would be something that the store does not tell of.
    row["uncounted_bytes"] = wrote - counted
    row["ratio_to_messages"] = wrote / row["message_bytes"]
    row["ratio_to_text"] = wrote / row["text_bytes"]
    return {"turns": turns, "mode": "journal" if journal else "snapshot", **row}


def child(options: argparse.Namespace) -> None:
    print(json.dumps(session(options.dir, options.child, journal=options.journal)))


def main() -> None:
    parser = command_line(__doc__, "amplification.json")
    parser.add_argument("--turns", type=int, nargs="+", help="lengths of the session")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--journal", action="store_true", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.child is not None:
        child(options)
        return
    results = []
    with work_directory(options) as directory:
        for turns in options.turns or ([40] if options.quick else TURNS):
            for journal in (True, False):
                row = measure(directory / f"{turns}-{journal}", turns, journal=journal)
                results.append(row)
                print(
                    f"{row['mode']}, {turns:,} turns: {row['written_bytes']:,} bytes written, "
                    f"{row['ratio_to_messages']:.2f} × its messages, {row['ratio_to_text']:.2f} × their text; "
                    f"{row['stats']['snapshots']} whole files; {row['uncounted_bytes']} bytes not in stats()"
                )
    write(options, SYNCED, {"results": results})


if __name__ == "__main__":
    main()
