"""Any sequence of operations, crashes included, leaves journal mode, snapshot mode and pure Python in the same state.

`PERDURE_CASES` sets how many sequences are tried.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from core_helpers import MESSAGE, same
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_helpers import plain_state, stripped

from perdure import FileSessionStore, PythonFileSessionStore, SessionConflictError, SessionData, SessionExistsError

pytest.importorskip("fcntl", reason="the pure-Python store needs POSIX")

CASES = int(os.environ.get("PERDURE_CASES", "200"))
# In memory where that is possible: what is compared are states, not syncs. What a crash leaves is made by hand.
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

FIELDS = st.sampled_from(["own", "other", "model_name", "thinking_budget"])
# Large enough for some of them to make a journal outgrow its snapshot.
BLOCK = st.builds(
    lambda n, mark: {"mark": mark, "block": "x" * n}, st.sampled_from([10, 3000, 40_000]), st.integers(0, 9)
)
CHANGE = st.one_of(
    st.tuples(st.just("append"), st.lists(MESSAGE | BLOCK, min_size=1, max_size=3)),
    st.tuples(st.just("rewind"), st.integers(0, 6)),
    st.tuples(st.just("replace"), st.integers(0, 6), MESSAGE),
    st.tuples(st.just("field"), FIELDS, MESSAGE | st.none()),
    st.tuples(st.just("tags"), st.lists(st.text(max_size=3), max_size=2)),
    st.tuples(st.just("name"), st.text(max_size=5)),
)
AT_REST = st.sampled_from(["checkpoint", "close", "release", "reopen", "reload", "moved"])
OPERATION = st.one_of(
    st.tuples(st.just("save"), st.lists(CHANGE, min_size=1, max_size=3)),
    st.tuples(st.just("save"), st.lists(CHANGE, min_size=1, max_size=3)),
    st.tuples(st.just("step"), st.lists(CHANGE, min_size=1, max_size=3)),
    st.tuples(st.just("handle"), st.lists(CHANGE, min_size=1, max_size=2)),
    st.tuples(st.just("copy"), st.lists(FIELDS, unique=True), st.lists(CHANGE, max_size=2)),
    st.tuples(AT_REST),
    st.tuples(st.just("delete")),
    st.tuples(st.just("crash"), st.none()),
    # In the middle of a save: where its line is cut, how the snapshot is.
    st.tuples(st.just("crash"), st.tuples(st.lists(CHANGE, min_size=1, max_size=2), st.floats(0, 1), st.booleans())),
)


def change(data: SessionData, what: Any) -> None:
    kind, *arguments = what
    if kind == "append":
        data.append(*arguments[0])
    elif kind == "rewind":
        data.truncate(min(arguments[0], len(data)))
    elif kind == "replace" and len(data):
        data.replace(arguments[0] % len(data), arguments[1])
    elif kind == "field":
        data.set(*arguments)
    elif kind == "tags":
        data.tags = arguments[0]
    elif kind == "name":
        data.config = {**data.config, "name": arguments[0]}


def content(data: SessionData) -> dict[str, Any]:
    """What a session says, without its lineage, revision and times: those are each store's own."""
    return comparable(stripped(data.to_dict()))


def comparable(session: dict[str, Any]) -> dict[str, Any]:
    perdure = {key: session["perdure"][key] for key in ("message_count", "first_prompt", "tags")}
    return {**session, "perdure": perdure, "created_at": 0, "updated_at": 0}


@dataclass
class Place:
    """One store and the session in it, as a program has it."""

    directory: Path
    journal: bool
    data: SessionData = field(default_factory=lambda: SessionData("s", created_at=0, updated_at=0))

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.store = FileSessionStore(self.directory, journal=self.journal)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def put(self, files: dict[str, bytes]) -> None:
        """The same session in a directory where nobody has it open: what another process finds."""
        old, self.directory = self.directory, self.directory.with_name(self.directory.name + "+")
        self.directory.mkdir()
        for name, raw in files.items():
            (self.directory / name).write_bytes(raw)
        self.store.close()
        shutil.rmtree(old)
        self.open()

    def save(self, *, step: bool = False) -> None:
        delta = self.data.delta() if step and self.data.revision else None
        if delta is None:
            self.store.save(self.data)
        else:
            self.store.append(delta, step=True)
            self.data.settle(delta)

    def load(self) -> SessionData | None:
        return self.store.load("s")

    def take(self) -> None:
        data = self.load()
        assert data is not None
        self.data = data

    # --- operations

    def apply(self, operation: Any) -> None:
        kind, *arguments = operation
        if kind in ("save", "step"):
            for what in arguments[0]:
                change(self.data, what)
            self.save(step=kind == "step")
        elif kind == "handle":
            self.second_handle(arguments[0])
        elif kind == "copy":
            self.copy(*arguments)
        elif kind == "delete":
            self.delete()
        elif kind == "crash":
            self.crash(arguments[0])
        elif self.data.revision:
            self.at_rest(kind)

    def at_rest(self, kind: str) -> None:
        if kind == "checkpoint":
            self.store.checkpoint("s")
        elif kind == "close":
            self.store.close()
        elif kind == "release":
            self.store.release(self.data)
        elif kind == "reopen":
            self.store.close()
            self.open()
            self.take()
        elif kind == "reload":
            self.take()
        elif kind == "moved":
            # The session in memory stays, its files are copies elsewhere.
            self.put({name: raw for name, raw in self.files().items() if name.endswith((".json", ".journal"))})

    def second_handle(self, changes: Any) -> None:
        """Another one loads, changes and saves; the first one is told, and takes what is stored."""
        if not self.data.revision:
            return
        other = FileSessionStore(self.directory, journal=self.journal)
        theirs = other.load("s")
        assert theirs is not None
        for what in changes:
            change(theirs, what)
        before = theirs.revision
        other.save(theirs)
        if theirs.revision > before:
            self.data.append({"late": True})
            with pytest.raises(SessionConflictError):
                self.store.save(self.data)
        self.data = theirs

    def copy(self, fields: list[str], changes: Any) -> None:
        """A session that was made elsewhere, with a head in an order of its own, saved over what is stored."""
        stored = self.load()
        made = SessionData("s", created_at=0, **dict.fromkeys(fields, 1))
        for what in changes:
            change(made, what)
        if stored is not None:
            with pytest.raises(SessionExistsError):
                self.store.save(made)
            made.rebase(stored)
        self.data = made
        self.store.save(made)

    def delete(self) -> None:
        there = self.load() is not None
        assert self.store.delete("s") is there
        assert self.store.load("s") is None
        self.data.detach()

    def crash(self, middle: Any) -> None:
        """The process dies, and a fresh one goes on with what it finds."""
        before, acknowledged = self.files(), self.load()
        if middle is None or acknowledged is None:
            self.put(before)
        else:
            changes, cut, renamed = middle
            for what in changes:
                change(self.data, what)
            self.save()
            after, written = self.files(), self.load()
            assert written is not None
            self.put(found_after_a_crash(before, after, cut, renamed))
            found = self.load()
            assert found is not None
            states = [stripped(acknowledged.to_dict()), stripped(written.to_dict())]
            assert any(same(stripped(found.to_dict()), either) for either in states)
            if not same(stripped(found.to_dict()), states[1]):
                # What was not acknowledged is done again: by a process that comes after.
                assert same(stripped(found.to_dict()), states[0])
                again = self.data
                again.rebase(found)
                self.store.save(again)
        found = self.load()
        assert (found is None) is (acknowledged is None)
        if found is not None:
            self.data = found


def found_after_a_crash(
    before: dict[str, bytes], after: dict[str, bytes], cut: float, renamed: bool
) -> dict[str, bytes]:
    """The directory in the middle of a save between the two."""
    old, new = before.get("s.journal", b""), after.get("s.journal", b"")
    lock = {"s.lock": after["s.lock"]} if "s.lock" in after else {}
    if before["s.json"] == after["s.json"]:
        if not new.startswith(old):
            return before
        length = len(old) + round(cut * (len(new) - len(old)))
        return {**before, **lock, "s.journal": new[:length]}
    if renamed:
        # A fold that did not come to cut the journal.
        return {**after, "s.journal": old}
    size = round(cut * len(after["s.json"]))
    temp = f".s.{json.loads(after['s.lock'])['temp']}.tmp"
    return {**before, **lock, temp: after["s.json"][:size]}


class PlainStore(PythonFileSessionStore):
    """Nothing is left open, and every save is a snapshot."""

    def nothing(self, *_: object) -> None:
        pass

    release = checkpoint = close = nothing


@dataclass
class PlainPlace(Place):
    """The same with the pure-Python store."""

    def open(self) -> None:
        self.store: Any = PlainStore(self.directory)

    def save(self, *, step: bool = False) -> None:
        self.store.save(self.data)

    def second_handle(self, changes: Any) -> None:
        if self.data.revision:
            for what in changes:
                change(self.data, what)
            self.save()

    def crash(self, middle: Any) -> None:
        there = self.load()
        if there is not None:
            for what in middle[0] if middle else ():
                change(self.data, what)
            self.save() if middle else None
            self.take()


@settings(max_examples=CASES)
@given(operations=st.lists(OPERATION, min_size=1, max_size=12))
def test_three_stores_one_state(operations: Any) -> None:
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        root = Path(directory)
        journal, snapshot = Place(root / "journal", True), Place(root / "snapshot", False)
        plain = PlainPlace(root / "plain", False)
        for operation in [("save", [("append", [{"begin": 1}])]), *operations, ("save", [("append", [{"end": 1}])])]:
            for place in (journal, snapshot, plain):
                place.apply(operation)
            check(journal, snapshot, plain)
        for place in (journal, snapshot):
            place.store.close()
            (name,) = [name for name in place.files() if name.endswith(".json")]
            assert name == "s.json"
            assert not [name for name in place.files() if name.endswith((".lock", ".tmp"))]
        check(journal, snapshot, plain)
        snapshots = [path.name for path in snapshot.directory.iterdir() if ".torn-" not in path.name]
        assert snapshots == ["s.json"]


def check(journal: Place, snapshot: Place, plain: Place) -> None:
    """All three hold the same, and so does what each reader makes of the others' files."""
    found = [place.load() for place in (journal, snapshot, plain)]
    if found[0] is None:
        assert found == [None] * 3
        assert [PythonFileSessionStore(place.directory).load_dict("s") for place in (journal, snapshot)] == [None] * 2
        assert FileSessionStore(plain.directory).load("s") is None
        return
    for place, data in zip((journal, snapshot, plain), found, strict=True):
        assert data is not None
        stored = stripped(data.to_dict())
        assert same(stored, plain_state(place.directory))
        other = FileSessionStore(place.directory).load("s")
        assert other is not None
        assert same(stored, stripped(other.to_dict()))
        # What is stored is what the program has, whatever it was put together from.
        assert same(content(data), content(place.data))
        assert (data.revision, data.lineage) == (place.data.revision, place.data.lineage)
        assert same(sorted_head(content(data)), sorted_head(content(found[0])))
        assert data.revision == found[0].revision


def sorted_head(session: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(session.items()))
