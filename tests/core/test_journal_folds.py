"""When a journal is folded into its snapshot, and what receipts and `stats` say of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from core_helpers import child, loaded, session, text, texts, tree
from journal_helpers import journal_store, lines, plain_state, reopened, size, state

from perdure import FileSessionStore, SessionData, SessionNotFoundError, StoreStats

SMALL = 64 * 1024
"""A journal up to this size is not folded for its size, however small its snapshot is."""


@pytest.fixture
def journaled(tmp_path: Path) -> FileSessionStore:
    """A store in journal mode on an empty directory."""
    return journal_store(tmp_path / "sessions")


# --- folds


def grow(store: FileSessionStore, data: SessionData, block: int) -> tuple[int, int]:
    """Saves lines of about `block` bytes until one is a snapshot; the journal's length before and with it."""
    before = (store.path / "s.json").stat().st_ino
    while True:
        journal = size(store.path)
        data.append(text("x" * block))
        receipt = store.save(data)
        if (store.path / "s.json").stat().st_ino != before:
            assert receipt.bytes_written == size(store.path, "s.json")
            assert size(store.path) == 0
            return journal, journal + block
        assert receipt.bytes_written < block + 1000


@pytest.mark.parametrize(("history", "bound"), [(0, SMALL), (100, 200_000)])
def test_it_folds_when_the_journal_outgrows_twice_the_snapshot(
    journaled: FileSessionStore, history: int, bound: int
) -> None:
    data = session("s", *["h" * 1000] * history)
    journaled.save(data)
    bound = max(2 * size(journaled.path, "s.json"), SMALL)
    journal, next = grow(journaled, data, 3000)
    assert journal <= bound < next + 1000
    assert (journaled.path / "s.json").read_bytes() == data.to_json()
    # And again, from the larger snapshot.
    bound = max(2 * size(journaled.path, "s.json"), SMALL)
    journal, next = grow(journaled, data, 5000)
    assert journal <= bound < next + 1000
    assert state(loaded(journaled)) == state(data) == plain_state(journaled.path)


def test_a_fold_by_size_makes_one_revision(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    for number in range(2, 100):
        data.append(text("x" * 3000))
        assert journaled.save(data).revision == number
    assert loaded(journaled).revision == 99
    assert journaled.stats().snapshots >= 2


def test_checkpoint(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    data.append(text("two"))
    journaled.save(data)
    receipt = journaled.checkpoint("s")
    assert (receipt.revision, receipt.new_bytes) == (2, 0)
    assert receipt.location == str(journaled.path / "s.json")
    raw = (journaled.path / "s.json").read_bytes()
    assert raw == data.to_json()
    assert receipt.bytes_written == len(raw)
    assert size(journaled.path) == 0
    again = journaled.checkpoint("s")
    assert (again.revision, again.bytes_written) == (2, 0)
    # The session in memory goes on from there, with a journal of its own.
    data.append(text("three"))
    assert journaled.save(data).revision == 3
    assert lines(journaled.path)[0]["base_revision"] == 2
    assert texts(loaded(reopened(journaled))) == ["one", "two", "three"]


def test_checkpoint_of_what_is_not_there(journaled: FileSessionStore) -> None:
    with pytest.raises(SessionNotFoundError) as caught:
        journaled.checkpoint("nobody")
    assert caught.value.session_id == "nobody"
    assert str(journaled.path) in str(caught.value)
    journaled.save(session("s", "one"))
    journaled.delete("s")
    with pytest.raises(SessionNotFoundError):
        journaled.checkpoint("s")
    assert tree(journaled.path) == {}


def test_checkpoint_of_a_store_in_snapshot_mode(store: FileSessionStore) -> None:
    """Also what the steps of a turn left."""
    data = session("s", "one")
    store.save(data)
    data.append(text("two"))
    delta = data.delta()
    assert delta is not None
    store.append(delta, step=True)
    data.settle(delta)
    assert store.checkpoint("s").revision == 2
    assert (store.path / "s.json").read_bytes() == data.to_json()
    data.append(text("three"))
    assert store.save(data).revision == 3


@pytest.mark.parametrize("way", ["close", "release", "with"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_end_folds_a_journal_over_a_quarter(tmp_path: Path, way: str, large: bool) -> None:
    store = journal_store(tmp_path)
    data = session("s", *["h" * 1000] * 40)
    store.save(data)
    snapshot = size(tmp_path, "s.json")
    data.append(text("x" * (snapshot // 2 if large else snapshot // 8)))
    store.save(data)
    assert (size(tmp_path) > snapshot / 4) is large
    if way == "close":
        store.close()
    elif way == "release":
        store.release(data)
    else:
        with store:
            pass
    assert sorted(tree(tmp_path)) == (["s.json"] if large else ["s.journal", "s.json"])
    assert ((tmp_path / "s.json").read_bytes() == data.to_json()) is large
    assert state(loaded(journal_store(tmp_path))) == state(data) == plain_state(tmp_path)
    # A released session is taken up again by its next save, with a line on what is there.
    data.append(text("more"))
    assert store.save(data).revision == 3
    assert [line["revision"] for line in lines(tmp_path)[1:]] == ([3] if large else [2, 3])


def test_the_interpreters_end_folds_too(tmp_path: Path) -> None:
    code = (
        "import sys, perdure\n"
        "store = perdure.FileSessionStore(sys.argv[1], journal=True)\n"
        "data = perdure.SessionData('s')\n"
        "for n in range(3):\n"
        "    data.append({'n': n, 'x': 'x' * 1000})\n"
        "    store.save(data)\n"
    )
    done = child(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(tree(tmp_path)) == ["s.json"]
    assert len(loaded(FileSessionStore(tmp_path))) == 3


def test_a_fold_that_fails_at_the_end_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = journal_store(tmp_path / "d")
    data = session("s", "one")
    store.save(data)
    data.append(text("x" * 5000))
    store.save(data)
    (tmp_path / "d").rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING, "perdure"):
        store.close()
    (record,) = caplog.records
    assert "journal" in record.getMessage()
    assert "nothing is lost" in record.getMessage()
    assert "xxx" not in caplog.text
    assert texts(loaded(journal_store(tmp_path / "away")))[-1] == "x" * 5000


# --- receipts


def test_receipts_and_stats_add_up_to_the_files(journaled: FileSessionStore) -> None:
    data = session("s", *["h" * 500] * 10)
    total, new, syncs, kinds = 0, 0, 0.0, {"line": 0, "snapshot": 0}
    inode = 0
    assert journaled.stats() == StoreStats(0, 0, 0, 0, 0, 0.0)
    assert journaled.stats().write_amplification == 0
    for number in range(60):
        before, saved = size(journaled.path), len(data) if number else 0
        data.append(text(f"{number} " + "y" * 3000))
        receipt = journaled.save(data)
        assert receipt.new_bytes == sum(len(data.messages.raw(at)) for at in range(saved, len(data)))
        assert 0 < receipt.sync_seconds <= receipt.seconds
        assert receipt.location == str(journaled.path / "s.json")
        folded = (journaled.path / "s.json").stat().st_ino != inode
        inode = (journaled.path / "s.json").stat().st_ino
        grown = size(journaled.path, "s.json") if folded else size(journaled.path) - before
        assert receipt.bytes_written == grown
        kinds["snapshot" if folded else "line"] += 1
        total, new, syncs = total + receipt.bytes_written, new + receipt.new_bytes, syncs + receipt.sync_seconds
    stats = journaled.stats()
    assert (stats.saves, stats.lines, stats.snapshots) == (60, kinds["line"], kinds["snapshot"])
    assert kinds["snapshot"] == 2, "the run has to hold a fold"
    assert (stats.bytes_written, stats.new_bytes) == (total, new)
    assert stats.sync_seconds == pytest.approx(syncs, rel=1e-3)
    assert stats.write_amplification == total / new
    assert 1 < stats.write_amplification < 4
    # Folds at a checkpoint and at the end are counted, too.
    total += journaled.checkpoint("s").bytes_written
    data.append(text("z" * 80_000))
    total += journaled.save(data).bytes_written
    journaled.close()
    assert size(journaled.path) == 0
    total += size(journaled.path, "s.json")
    assert journaled.stats().bytes_written == total
    assert journaled.stats().snapshots == stats.snapshots + 2
    assert journaled.stats().lines == stats.lines + 1
