"""The parts of the benchmarks of journal mode: do they measure what they say?"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import amplification_bench
import journal_bench
import many_bench
import stall_bench
from callgrind import check
from contenders import NEW_MESSAGES, message
from journal_contenders import ID, Floor, SessionAppend, SessionAppendProcess, allowed_growth
from perdure import FileSessionStore


@pytest.mark.parametrize("name", journal_bench.FIELD)
def test_every_contender_stores_every_turn(tmp_path: Path, name: str) -> None:
    contender = journal_bench.FIELD[name](tmp_path / "sessions", 20)
    for _ in range(12):  # more than it may grow by
        contender.change()
        contender.save()
    data = FileSessionStore(tmp_path / "sessions", journal=True).load(ID)
    assert data is not None and len(data) == contender.length < 20 + allowed_growth(20) + NEW_MESSAGES
    assert list(data.messages) == [message(number) for number in range(len(data))]
    contender.close()


def test_the_floor_writes_a_line_of_the_journal(tmp_path: Path) -> None:
    journal = SessionAppend(tmp_path / "sessions", 10)
    floor = Floor(tmp_path / "floor.raw", journal)
    journal.change()
    journal.save()
    floor.change()
    before = floor.end
    floor.save()
    line = (tmp_path / "floor.raw").read_bytes()[before:]
    assert line == (tmp_path / "sessions" / "bench.journal").read_bytes().splitlines(keepends=True)[-1]
    assert [item["role"] for item in json.loads(line)["messages"]] == ["user", "assistant"]
    journal.close()
    floor.close()


@pytest.mark.parametrize("kind", [SessionAppend, SessionAppendProcess])
def test_folds_are_found_and_counted(tmp_path: Path, kind: type[SessionAppend]) -> None:
    natural, _ = journal_bench.against_the_floor(tmp_path / "natural", [10], 150, kind)
    folds = natural[0]["folds"]
    assert folds["measured"] + folds["in_cuts"] >= 2 and not folds["amortised"]
    assert folds["mean_with_folds_ms"] > folds["mean_without_folds_ms"]
    few, _ = journal_bench.against_the_floor(tmp_path / "few", [200], 5, kind)
    folds = few[0]["folds"]
    assert folds["measured"] == 2 and folds["amortised"]
    share = (folds["mean_ms"] - folds["mean_without_folds_ms"]) / folds["turns_between"]
    assert folds["mean_with_folds_ms"] == pytest.approx(folds["mean_without_folds_ms"] + share)
    assert folds["turns_between"] == pytest.approx(200, rel=0.2)  # twice the messages, two a turn, a little around them


def test_the_slope_is_that_of_all_points() -> None:
    assert journal_bench.slope({10: 1.0, 100: 10.0, 1_000: 100.0}) == pytest.approx(1)
    assert journal_bench.slope({10: 2.0, 100: 2.0, 1_000: 2.0}) == pytest.approx(0)
    # Least squares; the line through the first and the last point would rise faster.
    assert journal_bench.slope({10: 1.0, 100: 5.0, 1_000: 1.0, 10_000: 5.0}) == pytest.approx(math.log10(5) / 5)


def test_many_sessions_hold_what_was_counted(tmp_path: Path) -> None:
    result = many_bench.measure(tmp_path / "many", 3, 4, 2)
    assert set(result["rows"]) == set(many_bench.CONTENDERS)
    assert result["rows"][many_bench.FLOOR]["share_of_raw"]["median"] == 1
    assert all(row["turns_per_second"] > 0 and len(row["runs"]) == 2 for row in result["rows"].values())


def test_a_thread_that_fails_is_not_counted_as_fast() -> None:
    def work(number: int) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        many_bench.in_threads(2, work)


def test_a_blocked_loop_is_late() -> None:
    async def block() -> None:
        for _ in range(3):
            stall_bench.time.sleep(0.02)
            await asyncio.sleep(0.005)

    async def late() -> float:
        ticker = stall_bench.Ticker()
        found = await ticker.during(block())
        await ticker.stop()
        return max(found)

    assert asyncio.run(late()) > 0.01


def test_a_fold_is_what_the_stall_is_measured_in(tmp_path: Path) -> None:
    async def fold() -> tuple[int, int]:
        folding = await stall_bench.Folding(tmp_path, 100).open()
        await folding.prepare()
        before = folding.store.stats()
        await folding.save()
        after = folding.store.stats()
        await folding.session.close()
        return after.snapshots - before.snapshots, after.saves - before.saves

    snapshots, saves = asyncio.run(fold())
    assert snapshots == 1 and saves < 20


def test_all_that_is_written_is_counted(tmp_path: Path) -> None:
    row = amplification_bench.measure(tmp_path / "sessions", 30, journal=True)
    # A line in the lock file, and no more.
    assert 0 <= row["uncounted_bytes"] < 200
    assert row["written_bytes"] > row["message_bytes"] > row["text_bytes"]
    assert row["stats"]["new_bytes"] == row["message_bytes"]


def test_more_instructions_are_noticed() -> None:
    assert check.verdict(None, 1_000) is None
    assert check.verdict(1_000, 1_050) is None
    assert check.verdict(1_000, 900) is None
    assert "5.1% more than the 1,000" in str(check.verdict(1_000, 1_051))


def test_callgrind_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "shutil", SimpleNamespace(which=lambda name: None))
    monkeypatch.setattr(sys, "argv", ["check.py"])
    with pytest.raises(SystemExit, match="install the package valgrind"):
        check.main()
