"""The same saves under pytest-benchmark, for profiling and for comparing two commits.

    pytest benches                       figures for each contender on its own
    pytest benches --benchmark-disable   a quick check that every contender still works

Ratios come from save_bench.py, which interleaves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from contenders import CONTENDERS, NEW_MESSAGES, message


@pytest.mark.parametrize("count", [10, 1_000])
@pytest.mark.parametrize("name", CONTENDERS)
def test_save(benchmark: Any, tmp_path: Path, name: str, count: int) -> None:
    contender: Any = CONTENDERS[name](tmp_path / "sessions", count)  # type: ignore[call-arg]

    def setup() -> None:
        contender.change()

    benchmark.pedantic(contender.save, setup=setup, rounds=20, warmup_rounds=2)
    # What was measured is there: every message, the last one too.
    stored = json.loads((tmp_path / "sessions" / "bench.json").read_bytes())
    messages = stored["messages"]
    assert len(messages) >= count + NEW_MESSAGES
    assert messages == [message(number) for number in range(len(messages))]


def test_contenders_write_about_the_same(tmp_path: Path) -> None:
    sizes = {}
    for number, (name, kind) in enumerate(CONTENDERS.items()):
        contender: Any = kind(tmp_path / str(number), 100)  # type: ignore[call-arg]
        contender.change()
        contender.save()
        sizes[name] = (tmp_path / str(number) / "bench.json").stat().st_size
    assert max(sizes.values()) < 1.05 * min(sizes.values()), sizes
    assert sizes["FileSessionStore"] == sizes["append + FileSessionStore"]
    # The floor writes the bytes of a session that was never saved: null instead of a lineage of 34 bytes.
    assert abs(sizes["FileSessionStore"] - sizes["floor"]) == 30


def test_the_table_is_made_of_one_interleaved_run(tmp_path: Path) -> None:
    import save_bench

    result = save_bench.measure(tmp_path, 5, 2)
    table = save_bench.table(result)
    assert result["rounds"] == 2
    assert result["rows"]["floor"]["ratio_to_floor"] == {"median": 1, "mean": 1, "p99": 1, "median_of_pairs": 1}
    assert all(f"| {name} |" in table for name in CONTENDERS)


def test_memory_is_refused(tmp_path: Path) -> None:
    from place import file_system, refuse_memory

    shared = Path("/dev/shm")
    if not shared.is_dir() or file_system(shared)[0] != "tmpfs":
        pytest.skip("no tmpfs here")
    with pytest.raises(SystemExit, match="fsync does nothing"):
        refuse_memory(shared, allow=False)
    refuse_memory(shared, allow=True)
