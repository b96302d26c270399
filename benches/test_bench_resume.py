"""The benchmark of resuming still works, and its figures are of one interleaved run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import resume_bench
from contenders import message
from measure import WARM_UP, interleaved, quantile, ratio, slope


def test_the_table_is_made_of_one_interleaved_run(tmp_path: Path) -> None:
    result = resume_bench.measure(tmp_path, 5, 2)
    assert result["rounds"] == 2
    assert result["rows"]["orjson"]["ratio_to_orjson"] == {"median": 1, "mean": 1, "p99": 1, "median_of_pairs": 1}
    assert result["rows"]["read"]["ratio_to_read"] == {"median": 1, "mean": 1, "p99": 1, "median_of_pairs": 1}
    assert all(f"| {name} |" in resume_bench.table(result) for name in result["rows"])
    assert resume_bench.slopes([result]) == {}
    assert set(resume_bench.slopes([result, result | {"messages": 50}])) == set(result["rows"])


def test_contenders_read_the_session(tmp_path: Path) -> None:
    resume_bench.measure(tmp_path, 5, 1)
    timed = resume_bench.contenders(tmp_path)
    expected = [message(n) for n in range(5)]
    assert timed["orjson"]()["messages"] == timed["json"]()["messages"] == expected
    assert timed["open + whole history"]() == timed["whole history of an open session"]() == expected
    light = resume_bench.by_the_end(tmp_path)
    assert light["open + len + last 20"]() == (5, expected)
    raw = (tmp_path / "bench.json").read_bytes()
    assert light["raw reads of head and end"]() == (raw[:8192], raw[-65536:])
    assert timed["open"]().messages == expected
    assert timed["read"]() == (tmp_path / "bench.json").read_bytes()


def test_every_round_runs_every_contender_once() -> None:
    calls: list[str] = []
    rounds: list[int] = []
    seconds = interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"},  # type: ignore[misc]
        20,
        prepare=lambda name: calls.append(f"before {name}"),
        before_round=lambda: rounds.append(len(calls)),
    )
    assert {name: len(values) for name, values in seconds.items()} == {"a": 20, "b": 20, "c": 20}
    assert rounds == [6 * n for n in range(20 + WARM_UP)]
    orders = {tuple(calls[start + 1 : start + 6 : 2]) for start in rounds}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) > 2
    assert all(calls[at] == f"before {calls[at + 1]}" for at in range(0, len(calls), 2))


def test_statistics() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2
    assert quantile(list(map(float, range(101))), 0.99) == 99
    assert ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == {"median": 2, "mean": 2.5, "p99": 3, "median_of_pairs": 2}
    assert slope([100, 1000], [5.0, 5.0]) == 0
    assert slope([100, 1000, 10_000], [1.0, 7.0, 100.0]) == pytest.approx(1)
