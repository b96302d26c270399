"""What a page of a listing costs, against the raw calls for it. See README.md.

python benches/infos_bench.py [--dir DIR] [--rounds N] [--sizes 1000 10000 100000]

The floor reads the directory, asks for the state of every file in it, and reads 4 KiB of each snapshot on the page. It
is told which those are: it sorts nothing, opens no journal and makes nothing of what it read. Everything is in the page
cache, for all of them. In the second directory one session in twenty has a journal, and the page is of such sessions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from command import command_line, parse, sync_file_system, work_directory, write
from contenders import message
from measure import interleaved, ratio, summary
from perdure import FileSessionStore, PythonFileSessionStore, SessionData

ROUNDS = {1_000: 200, 10_000: 60, 100_000: 10}
PAGE, MESSAGES, STEPS, JOURNALS = 50, 4, 4, 20
HEAD = 4096
FLOOR = "readdir, stat of all, 4 KiB of each on the page"
LIST_FLOOR = "readdir, 4 KiB of each"
SYNCED = "none: files are read, from the page cache"


def fill(directory: Path, count: int, journals: int) -> None:
    """Writes sessions, some of them in the middle of a turn. Those are the newest."""
    store = FileSessionStore(directory, durability="process")
    for number in range(journals):
        data = SessionData(session_id(number), messages=[message(n) for n in range(MESSAGES)])
        store.save(data)
        for step in range(STEPS):
            data.append(message(MESSAGES + step))
            delta = data.delta()
            assert delta is not None
            store.append(delta, step=True)
            data.settle(delta)
    first = session_id(journals)
    store.save(SessionData(first, messages=[message(n) for n in range(MESSAGES)]))
    store.close()
    # The others are copies: the id is in nothing that a checksum covers.
    raw = (directory / f"{first}.json").read_bytes()
    for number in range(journals + 1, count):
        id = session_id(number)
        (directory / f"{id}.json").write_bytes(raw.replace(first.encode(), id.encode(), 1))
    for number in range(journals):
        os.utime(directory / f"{session_id(number)}.journal")
    sync_file_system(directory)


def session_id(number: int) -> str:
    return f"session-{number:08}"


@dataclass
class Timed:
    """One contender, and the raw calls that it is measured against."""

    call: Callable[[], Any]
    floor: str


def contenders(directory: Path, journals: int) -> dict[str, Timed]:
    """All that list this directory."""
    path = str(directory)
    rust, python = FileSessionStore(directory), PythonFileSessionStore(directory)
    page, _ = rust.infos(PAGE)
    on_page = [f"{path}/{info.id}.json" for info in page]
    check([info.id for info in page], python, directory, journals)

    def head(name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY)
        try:
            return os.pread(fd, HEAD, 0)
        finally:
            os.close(fd)

    def raw_page() -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
        for name in on_page:
            head(name)

    def raw_list() -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    head(entry.path)

    suffix = f", {journals:,} with a journal" if journals else ""
    floor, list_floor = FLOOR + suffix, LIST_FLOOR + suffix
    return {
        floor: Timed(raw_page, floor),
        f"infos{suffix}": Timed(lambda: rust.infos(PAGE), floor),
        f"infos, pure Python{suffix}": Timed(lambda: python.infos(PAGE), floor),
        list_floor: Timed(raw_list, list_floor),
        f"list{suffix}": Timed(rust.list, list_floor),
    }


def check(page: list[str], python: PythonFileSessionStore, directory: Path, journals: int) -> None:
    """The contenders list the same, and the journals are what the page is about."""
    theirs, _ = python.infos(PAGE)
    if page != [info.id for info in theirs]:
        sys.exit("the two stores list different sessions")
    with_journal = sum((directory / f"{id}.journal").exists() for id in page)
    if with_journal != min(journals, PAGE):
        sys.exit(f"{with_journal} sessions on the page have a journal, not {min(journals, PAGE)}")


def measure(directory: Path, count: int, rounds: int) -> dict[str, Any]:
    timed: dict[str, Timed] = {}
    for name, journals in (("plain", 0), ("journals", max(count // JOURNALS, 1))):
        fill(directory / name, count, journals)
        timed |= contenders(directory / name, journals)
    seconds = interleaved({name: each.call for name, each in timed.items()}, rounds, seed=count)
    rows = {
        name: summary(seconds[name]) | {"ratio_to_floor": ratio(seconds[name], seconds[timed[name].floor])}
        for name in timed
    }
    return {"sessions": count, "page": PAGE, "rounds": rounds, "rows": rows}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"### {result['sessions']:,} sessions, a page of {result['page']}, {result['rounds']} rounds",
        "",
        "| | median ms | mean ms | p99 ms | × floor (median) | (mean) | (p99) | (median of pairs) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result["rows"].items():
        floor = row["ratio_to_floor"]
        lines.append(
            f"| {name} | {row['median_ms']:.2f} | {row['mean_ms']:.2f} | {row['p99_ms']:.2f} | {floor['median']:.2f} | "
            f"{floor['mean']:.2f} | {floor['p99']:.2f} | {floor['median_of_pairs']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, "infos.json")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of sessions")
    parser.add_argument("--rounds", type=int, help="rounds for every size (default: by size)")
    options = parse(parser)
    results = []
    for count in options.sizes or ([20] if options.quick else list(ROUNDS)):
        with work_directory(options) as directory:
            result = measure(directory, count, options.rounds or (3 if options.quick else ROUNDS.get(count, 20)))
        print(table(result), end="\n\n", flush=True)
        results.append(result)
    write(options, SYNCED, {"results": results})


if __name__ == "__main__":
    main()
