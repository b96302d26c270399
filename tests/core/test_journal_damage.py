"""What a journal can come to: named errors, nothing acknowledged lost, never another content than what was saved."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_helpers import loaded, session, text, texts, tree
from journal_helpers import (
    HISTORY,
    SAVES,
    closed_session,
    crc32c,
    goes_on,
    header,
    journal_store,
    plain_state,
    refused,
    sealed,
    snapshot_bytes,
    state,
    step,
)  # fmt: skip

from perdure import (
    PythonFileSessionStore,
    SessionCorruptError,
    StoreError,
)

# --- the journal


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_journal_cut_at_every_byte(tmp_path: Path, durability: str) -> None:
    """Whole lines count, what is left of the one behind them does not."""
    ends = closed_session(tmp_path / "d", durability=durability)
    raw = (tmp_path / "d" / "s.journal").read_bytes()
    store = journal_store(tmp_path / "d")
    for cut in range(len(raw) + 1):
        (tmp_path / "d" / "s.journal").write_bytes(raw[:cut])
        data = loaded(store)
        count = sum(end <= cut for end in ends[1:])
        assert (data.revision, texts(data)) == (1 + count, HISTORY[: 2 + count]), f"cut at {cut}"
    for cut in {0, 1, *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1]), ends[-1] - 40}:
        shutil.copytree(tmp_path / "d", tmp_path / "copy")
        (tmp_path / "copy" / "s.journal").write_bytes(raw[:cut])
        goes_on(tmp_path / "copy", HISTORY[: 2 + sum(end <= cut for end in ends[1:])])
        aside = [path for path in (tmp_path / "copy").iterdir() if ".torn-" in path.name]
        left = raw[max(end for end in [0, *ends] if end <= cut) : cut]
        assert [path.read_bytes() for path in aside] == ([left] if left else []), f"cut at {cut}"
        shutil.rmtree(tmp_path / "copy")


def test_a_flipped_bit(tmp_path: Path) -> None:
    """Anywhere in the journal: corrupt, or (a newline that is no more) a tail that is torn. Never another content."""
    ends = closed_session(tmp_path)
    raw = (tmp_path / "s.journal").read_bytes()
    chance = random.Random(20_261_122)
    store = journal_store(tmp_path)
    for bit in [*chance.sample(range(len(raw) * 8), 120), *(end * 8 - 6 for end in ends)]:
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "s.journal").write_bytes(damaged)
        last_newline = bit // 8 == len(raw) - 1
        try:
            data = loaded(store)
        except SessionCorruptError as error:
            assert error.path == str(tmp_path / "s.journal")
            assert not last_newline
            continue
        # What is torn: the last line without its end, or with a NUL in it.
        assert last_newline or (0 in damaged and bit // 8 >= ends[-2]), f"bit {bit}"
        assert texts(data) == HISTORY[: 1 + SAVES]
    (tmp_path / "s.journal").write_bytes(raw[:50] + b"#" + raw[51:])
    refused(tmp_path)


def test_a_flipped_bit_in_the_snapshot(tmp_path: Path) -> None:
    """Under a journal the snapshot has to be the very one: otherwise the lines would be put on something else."""
    closed_session(tmp_path)
    raw = (tmp_path / "s.json").read_bytes()
    behind_meta = raw.index(b"\n", raw.index(b'"perdure"')) + 1
    chance = random.Random(7)
    store = journal_store(tmp_path)
    for bit in chance.sample(range(behind_meta * 8, len(raw) * 8), 25):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "s.json").write_bytes(damaged)
        with pytest.raises(SessionCorruptError):
            store.load("s")
    refused(tmp_path)


def whole(directory: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Puts another list of lines in the place of the journal's."""
    path = directory / "s.journal"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def resealed(raw: bytes, change: Callable[[list[str]], list[str]]) -> bytes:
    """A journal with other payloads, their lengths and CRCs in order."""
    payloads = [re.sub(rb'^\{"bytes": \d+, "crc32c": "[0-9a-f]{8}", ', b"", line)[:-1] for line in raw.splitlines()]
    return sealed(*change([payload.decode() for payload in payloads]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "CRC"),
        (lambda lines: [lines[0], *lines[2:]], "CRC"),
        (lambda lines: [*lines, lines[-1]], "CRC"),
        (lambda lines: lines[1:], "CRC"),
        (lambda lines: [lines[0], *lines], "CRC"),
        (lambda lines: [*lines, b"{}\n"], "length"),
        (lambda lines: [*lines, b"\n"], "length"),
        (lambda lines: [*lines, b"hello\n"], "length"),
        (lambda lines: [lines[0], b'{"bytes": 2, "crc32c": "zz", }\n', *lines[1:]], "CRC|length|payload"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"bytes": ', b'"bytes": 0'), *lines[3:]], ""),
        (lambda lines: [*lines[:2], lines[2].replace(b'"bytes": 1', b'"bytes": 2'), *lines[3:]], "bytes"),
        (lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]], "length"),
        (lambda lines: [line.replace(b"\n", b"\r\n") for line in lines], ""),
    ],
    ids=[
        "exchanged", "one left out", "the last twice", "no header", "two headers", "empty object", "empty line",
        "no line", "no CRC", "leading zero", "another length", "BOM", "CRLF",
    ],
)  # fmt: skip
def test_lines_that_do_not_follow_each_other(tmp_path: Path, change: Any, words: str) -> None:
    closed_session(tmp_path)
    whole(tmp_path, change)
    said = refused(tmp_path)
    assert re.search(words, said), said
    with pytest.raises(SessionCorruptError):
        PythonFileSessionStore(tmp_path).load("s")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "revision"),
        (lambda lines: [lines[0], *lines[2:]], "revision"),
        (lambda lines: [*lines, lines[-1]], "revision"),
        (lambda lines: lines[1:], "header"),
        (lambda lines: [lines[0], *lines], "header"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"from": 5', '"from": 6')], "message"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"messages": [{', '"messages": [3, {')], "message"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"revision": 5', '"rev": 5')], ""),
        (lambda lines: [lines[0].replace('"journal": 1', '"journal": 2'), *lines[1:]], "upgrade perdure"),
        (lambda lines: [lines[0].replace('"id": "s"', '"id": "t"'), *lines[1:]], "session"),
        (lambda lines: [re.sub('"lineage": "[0-9a-f]{4}', '"lineage": "ffff', lines[0]), *lines[1:]], "sessions"),
        (lambda lines: [re.sub('"lineage": "[0-9a-f]{32}"', '"lineage": null', lines[0]), *lines[1:]], "sessions"),
        (lambda lines: [lines[0].replace('"snapshot_bytes": ', '"snapshot_bytes": 1'), *lines[1:]], "fit"),
        (lambda lines: [re.sub('c32c": "[0-9a-f]{8}"', 'c32c": "00000000"', lines[0]), *lines[1:]], "fit"),
        (lambda lines: [lines[0].replace('"base_revision": 1', '"base_revision": 2'), *lines[1:]], "revision"),
    ],
    ids=[
        "exchanged", "one left out", "the last twice", "no header", "two headers", "begins behind the end",
        "a message that is none", "no revision", "a newer format", "another id", "another lineage",
        "no lineage", "another length", "another CRC", "another revision",
    ],
)  # fmt: skip
def test_lines_with_the_right_crc_and_the_wrong_content(tmp_path: Path, change: Any, words: str) -> None:
    closed_session(tmp_path)
    raw = (tmp_path / "s.journal").read_bytes()
    assert resealed(raw, lambda lines: lines) == raw, "the helper makes what the store makes"
    (tmp_path / "s.journal").write_bytes(resealed(raw, change))
    assert (tmp_path / "s.journal").read_bytes() != raw
    said = refused(tmp_path)
    assert re.search(words, said), said
    with pytest.raises(SessionCorruptError):
        PythonFileSessionStore(tmp_path).load("s")


def test_a_line_behind_the_deletion(tmp_path: Path) -> None:
    closed_session(tmp_path)
    raw = (tmp_path / "s.journal").read_bytes()
    deleted = '"deleted": true, "revision": 6, "at": 1795344690'
    (tmp_path / "s.journal").write_bytes(resealed(raw, lambda lines: [*lines, deleted, lines[-1]]))
    assert "deletion" in refused(tmp_path)
    (tmp_path / "s.journal").write_bytes(resealed(raw, lambda lines: [*lines, deleted]))
    store = journal_store(tmp_path)
    assert (store.load("s"), store.exists("s"), store.delete("s")) == (None, False, False)
    store.close()
    assert tree(tmp_path) == {}, "a deletion that was interrupted is carried through"


def test_a_crc_that_fits_a_wrong_length(tmp_path: Path) -> None:
    """The CRC is over the whole payload, the length says another."""
    closed_session(tmp_path)
    raw = (tmp_path / "s.journal").read_bytes()
    *front, last = raw.splitlines(keepends=True)
    chain = int(json.loads(front[-1])["crc32c"], 16)
    payload = re.sub(rb'^\{"bytes": \d+, "crc32c": "[0-9a-f]{8}", ', b"", last)[:-2]
    for length in (len(payload) - 1, len(payload) + 1, 0, 10**30):
        line = b'{"bytes": %d, "crc32c": "%08x", %s}\n' % (length, crc32c(payload, chain), payload)
        (tmp_path / "s.journal").write_bytes(b"".join(front) + line)
        refused(tmp_path)
    # The length fits a shorter payload, and so does the CRC: the bytes behind it are not silently skipped.
    short = payload[:-10]
    line = b'{"bytes": %d, "crc32c": "%08x", %s}\n' % (len(short), crc32c(short, chain), payload)
    (tmp_path / "s.journal").write_bytes(b"".join(front) + line)
    refused(tmp_path)


def test_a_journal_of_another_session(tmp_path: Path) -> None:
    closed_session(tmp_path)
    closed_session(tmp_path, "t")
    shutil.copy(tmp_path / "t.journal", tmp_path / "s.journal")
    said = refused(tmp_path)
    assert "s.journal" in said and "s.json" in said
    assert texts(loaded(journal_store(tmp_path), "t"))[-1] == HISTORY[1 + SAVES]


def test_a_journal_of_another_life_of_the_session(tmp_path: Path) -> None:
    closed_session(tmp_path)
    old = (tmp_path / "s.journal").read_bytes()
    store = journal_store(tmp_path)
    assert store.delete("s")
    closed_session(tmp_path)
    (tmp_path / "s.journal").write_bytes(old)
    said = refused(tmp_path)
    assert "different sessions" in said


@pytest.mark.parametrize("ending", ["whole", "torn"])
def test_a_journal_without_its_snapshot(tmp_path: Path, ending: str) -> None:
    closed_session(tmp_path)
    (tmp_path / "s.json").unlink()
    if ending == "torn":
        with (tmp_path / "s.journal").open("ab") as journal:
            journal.write(b'{"bytes"')
    said = refused(tmp_path)
    assert "s.json" in said and "snapshot" in said
    assert journal_store(tmp_path).list() == []


@pytest.mark.parametrize("content", [b"", b'{"bytes": 144, "cr', b"\0" * 300], ids=["empty", "torn", "NULs"])
def test_a_journal_in_which_nothing_was_acknowledged_is_no_session(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.journal").write_bytes(content)
    store = journal_store(tmp_path)
    assert (store.load("s"), store.exists("s"), store.list(), store.delete("s")) == (None, False, [], False)
    data = session("s", "one")
    assert store.save(data).revision == 1
    data.append(text("two"))
    store.save(data)
    assert texts(loaded(store)) == ["one", "two"]
    assert state(data) == plain_state(tmp_path)
    store.checkpoint("s")
    store.close()
    aside = {name: raw for name, raw in tree(tmp_path).items() if name != "s.json"}
    assert list(aside.values()) == ([content] if content else [])


@pytest.mark.parametrize("revision", [1, 9])
def test_a_header_without_lines_holds_nothing(tmp_path: Path, revision: int) -> None:
    """docs/format.md, section 3, case 7: no line of it is newer than the snapshot."""
    snapshot = snapshot_bytes(revision=7)
    (tmp_path / "s.json").write_bytes(snapshot)
    (tmp_path / "s.journal").write_bytes(sealed(header(snapshot, revision=revision)))
    store = journal_store(tmp_path)
    data = loaded(store)
    assert data.revision == 7
    assert state(data) == plain_state(tmp_path)
    data.append(text("user"))
    assert store.save(data).revision == 8


def test_a_journal_that_was_folded_already_counts_for_nothing(tmp_path: Path) -> None:
    """What a crash between the two steps of a fold leaves."""
    closed_session(tmp_path)
    old = (tmp_path / "s.journal").read_bytes()
    store = journal_store(tmp_path)
    store.checkpoint("s")
    store.close()
    (tmp_path / "s.journal").write_bytes(old)
    goes_on(tmp_path, HISTORY[: 2 + SAVES])


def test_a_newer_line_than_the_snapshots_is_not_taken_for_folded(tmp_path: Path) -> None:
    snapshot = snapshot_bytes(revision=7)
    (tmp_path / "s.json").write_bytes(snapshot)
    other = snapshot_bytes(revision=6)
    lines = [step(7, 2, text("a")), step(8, 3, text("b"))]
    (tmp_path / "s.journal").write_bytes(sealed(header(other, revision=6), *lines))
    assert "do not fit together" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo", "dangling"])
def test_a_journal_that_is_no_file(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "d"
    store = journal_store(directory)
    data = session("s", "one")
    store.save(data)
    store.close()
    path, elsewhere = directory / "s.journal", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    make: dict[str, Callable[[], object]] = {
        "directory": path.mkdir,
        "symlink": lambda: path.symlink_to(elsewhere),
        "fifo": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
    }
    make[kind]()
    data.append(text("two"))
    with pytest.raises((SessionCorruptError, StoreError)) as caught:
        store.save(data)
    assert "s.journal" in str(caught.value)
    assert elsewhere.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert data.revision == 1
