"""What the benchmarks' commands share: options, a directory to work in, the file of figures."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import perdure

sys.path.insert(0, str(Path(__file__).parent))
from place import describe, refuse_memory

RESULTS = Path(__file__).parent / "results"


def command_line(title: str | None, results: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(title or "").split("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a directory on the disk to measure (default: .)")
    parser.add_argument("--quick", action="store_true", help="small numbers: does it all still work?")
    parser.add_argument("--allow-tmpfs", action="store_true", help="measure in memory all the same")
    parser.add_argument("--out", type=Path, default=RESULTS / results, help="where the figures go, as JSON")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, once it is certain that what is measured means something."""
    options = parser.parse_args()
    refuse_memory(options.dir, options.allow_tmpfs)
    if perdure._core.build_profile != "release":
        sys.exit("perdure is a debug build; build it with `maturin develop --release`")
    return options


@contextmanager
def work_directory(options: argparse.Namespace) -> Iterator[Path]:
    """A directory of our own on the disk that is measured; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=".perdure-bench-", dir=options.dir) as directory:
        yield Path(directory).resolve()


def sync_file_system(directory: str | Path) -> None:
    """Writes what is still in memory: nobody pays at his own sync for what another one left behind."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None or syncfs(fd) != 0:
            os.sync()
    finally:
        os.close(fd)


def write(options: argparse.Namespace, sync: str, figures: Mapping[str, Any]) -> None:
    """The file of figures: where they come from, and they. `sync`: what the contenders ask of the disk."""
    report = {"perdure": perdure.__version__, "where": describe(options.dir, sync), **figures}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"figures: {options.out}", file=sys.stderr)
