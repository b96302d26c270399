"""Sessions in journal mode: every step a line, the session open for one process at a time, kills in the middle of it.

`PERDURE_KILLS` sets how often the writer is killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Agent,
    AsyncAgent,
    ConfigError,
    FileSessionStore,
    MemorySessionStore,
    PythonFileSessionStore,
    Session,
    SessionConflictError,
    SessionCorruptError,
    SessionLockedError,
    SessionOptions,
    StoreError,
)
from perdure.turn.repair import INTERRUPTED
from turn.scripted import Call, Request, Script, ScriptedServer, reply

from .conftest import hcl, stored, text, texts
from .test_two_processes import Other

KILLS = int(os.environ.get("PERDURE_KILLS", "30"))


def saves(place: Path, id: str = "s") -> list[dict[str, Any]]:
    """The lines of a journal, without its header."""
    path = place / f"{id}.journal"
    return [json.loads(line) for line in path.read_bytes().splitlines()[1:]] if path.exists() else []


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def same_everywhere(place: Path, session: Session) -> None:
    """What the session says is what is on disk, however it is read."""
    assert stored(place, session.session_id) == texts(session.history())
    theirs = PythonFileSessionStore(place).load_dict(session.session_id)
    assert theirs is not None
    assert theirs["messages"] == list(session.history())
    assert theirs["perdure"]["revision"] == session.data.revision


# --- turning it on


@pytest.mark.parametrize(
    ("extra", "options", "journal"),
    [
        ("", {}, False),
        ("", {"journal": True}, True),
        ("journal = true", {}, True),
        ("journal = true", {"journal": False}, False),
        ("journal = false", {"journal": True}, True),
        ("journal = false", {}, False),
    ],
)
def test_the_option_and_the_key_of_agent_hcl(
    make_agent: Callable[[str], Agent], place: Path, extra: str, options: dict[str, Any], journal: bool
) -> None:
    agent = make_agent(hcl(extra=extra))
    session = agent.session(file_session_store=place, session_id="s", auto_save=True, **options)
    session.append(text("one"))
    session.append(text("two"))
    assert len(saves(place)) == journal
    assert stored(place) == ["one", "two"]
    note = json.loads((place / "s.lock").read_text())
    assert note["hold"] == ("open" if journal else "save")


def test_agent_hcl_alone(make_agent: Callable[[str], Agent], work: Path) -> None:
    """Directory, mode and durability from the file; a builder for the rest."""
    agent = make_agent(hcl(extra='sessions_dir = "kept"\n journal = true\n durability = "process"\n auto_save = true'))
    session = agent.session(work, SessionOptions().with_session_id("s"))
    session.append(text("one"))
    session.append(text("two"))
    (line,) = saves(work / "kept")
    assert line["unsynced"] is True
    resumed = agent.resume_session("s", SessionOptions().with_journal(False), workspace=work)
    resumed.append(text("three"))
    assert saves(work / "kept") == []
    assert stored(work / "kept") == ["one", "two", "three"]


@pytest.mark.parametrize("wrong", ["journal = 1", 'journal = "yes"', "journal = null_value", "journal {}"])
def test_what_is_no_truth_value_is_named(make_agent: Callable[[str], Agent], wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"journal|null_value"):
        make_agent(hcl(extra=wrong))


def test_a_file_url_has_a_journal_too(make_agent: Callable[[str], Agent], place: Path) -> None:
    agent = make_agent(hcl(extra=f'storage_url = "file://{place}"\n journal = true'))
    session = agent.session(session_id="s", auto_save=True)
    session.append(text("one"))
    session.append(text("two"))
    assert len(saves(place)) == 1


@pytest.mark.parametrize("extra", ["", "journal = true"])
def test_a_journal_where_there_is_none_is_refused(make_agent: Callable[[str], Agent], extra: str) -> None:
    """Rather than ignored."""
    for keys, options in (
        ('storage_backend = "memory"', {}),
        ('storage_url = "memory://"', {}),
        ("", {"session_store": "memory://"}),
        ("", {"session_store": MemorySessionStore()}),
    ):
        agent = make_agent(hcl(extra=f"{keys}\n{extra}"))
        given = options if extra and "session_store" not in options else {**options, "journal": True}
        with pytest.raises(ConfigError, match="journal"):
            agent.session(session_id="s", **given)
    # A store object of the caller's is told itself; a default of agent.hcl is not meant for it.
    agent = make_agent(hcl(extra=extra))
    assert agent.session(session_id="s", session_store=MemorySessionStore()).session_id == "s"


# --- turns


class Watching(ScriptedServer):
    """Notes what is on disk whenever a model is called."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__()
        self.look = look
        self.seen: list[Any] = []

    def take(self, request: Request) -> Script:
        self.seen.append(self.look())
        return super().take(request)


def test_every_step_of_a_turn_is_a_line_before_anything_else_happens(
    make_agent: Callable[[str], Agent], place: Path
) -> None:
    at_tools: list[list[str]] = []

    def look() -> str:
        """Looks."""
        at_tools.append(stored(place))
        return "seen"

    with Watching(lambda: (stored(place), len(saves(place)))) as server:
        server.enqueue(reply(calls=[Call("a", "look"), Call("b", "look")]), reply("done"), reply("again"))
        agent = make_agent(hcl(server))
        session = agent.session(file_session_store=place, session_id="s", auto_save=True, journal=True, tools=[look])
        session.append(text("begin"))
        snapshot = (place / "s.json").read_bytes()
        assert session.send("go").text == "done"
        steps = ["begin", "go", "call a", "call b", "result a", "result b", "done"]
        assert at_tools == [steps[:4], steps[:5]]
        assert [seen for seen, _ in server.seen] == [steps[:2], steps[:6]]
        assert [count for _, count in server.seen] == [1, 4]
        assert session.send("more").text == "again"
        assert (place / "s.json").read_bytes() == snapshot, "the end of a turn folds nothing"
        lines = saves(place)
        assert [line["revision"] for line in lines] == list(range(2, len(lines) + 2))
        assert session.save().bytes_written == 0
        same_everywhere(place, session)
        session.close()
    assert names(place) == ["s.json"], "the end of the session does"
    assert stored(place) == [*steps, "more", "again"]


def test_appends_rewinds_and_heads_are_lines(agent: Agent, place: Path) -> None:
    with agent.session(file_session_store=place, session_id="s", auto_save=True, journal=True) as session:
        session.append(text("one"), text("two"))
        session.append({"role": "user", "content": "three"})
        session.rewind(1)
        session.append(text("TWO"))
        session.tags, session.name, session.tasks = ["t"], "title", [{"do": "it"}]
        receipt = session.save()
        assert (receipt.revision, receipt.new_bytes) == (5, 0)
        assert [(line["from"], len(line["messages"])) for line in saves(place)] == [(2, 1), (1, 0), (1, 1), (2, 0)]
        same_everywhere(place, session)
        (info,) = agent.sessions(file_session_store=place)
        assert (info.message_count, info.revision, info.tags, info.name) == (2, 5, ("t",), "title")
    resumed = agent.resume_session("s", file_session_store=place, journal=True)
    assert (texts(resumed.history()), resumed.tags, resumed.name) == (["one", "TWO"], ["t"], "title")


def test_an_append_costs_what_is_new(agent: Agent, place: Path) -> None:
    """Whatever the length of the history."""
    written = []
    for count in (10, 2000):
        session = agent.session(file_session_store=place, session_id=f"s{count}", auto_save=True, journal=True)
        session.append(*[text("h" * 1000)] * count)
        before = FileSessionStore(place).stats()
        for number in range(5):
            session.append(text(f"{number}" + "x" * 1000))
        after = FileSessionStore(place).stats()
        assert (after.lines - before.lines, after.snapshots) == (5, before.snapshots)
        written.append(after.bytes_written - before.bytes_written)
    assert abs(written[0] - written[1]) < 100


def test_without_auto_save_each_save_is_a_line(agent: Agent, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", journal=True)
    for number in range(4):
        session.append(text(str(number)))
        session.append(text("more"))
        assert session.save().revision == number + 1
    assert [len(line["messages"]) for line in saves(place)] == [2, 2, 2]
    same_everywhere(place, session)


async def test_async_sessions(async_agent: AsyncAgent, server: ScriptedServer, place: Path) -> None:
    options: dict[str, Any] = {"file_session_store": place, "auto_save": True, "journal": True}
    async with await async_agent.session(session_id="s", **options) as session:
        await session.append(text("one"))
        await session.append(text("two"))
        server.enqueue(reply("hello"))
        assert (await session.send("hi")).text == "hello"
        assert [line["revision"] for line in saves(place)] == [2, 3, 4, 5], "the prompt, the reply, the end of the turn"
        assert stored(place) == ["one", "two", "hi", "hello"]
        assert (await session.save()).bytes_written == 0
    assert names(place) == ["s.json"]
    resumed = await async_agent.resume_session("s", **options)
    assert texts(resumed.history()) == ["one", "two", "hi", "hello"]
    await resumed.close()


def test_a_fork_is_at_rest(agent: Agent, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True, journal=True)
    session.append(text("one"))
    session.append(text("two"))
    copy = session.fork(at=1)
    assert f"{copy}.json" in names(place)
    assert f"{copy}.lock" not in names(place)
    assert agent.fork_session("s", "t", file_session_store=place, journal=True) == "t"
    assert (stored(place, copy), stored(place, "t")) == (["one"], ["one", "two"])
    session.append(text("three"))
    assert len(saves(place)) == 2
    assert agent.delete_session("s", file_session_store=place, journal=True)
    with pytest.raises(SessionConflictError):
        session.append(text("four"))


# --- open elsewhere

CHILD = """
import sys
from perdure import Agent, PerdureError
agent = Agent.create(sys.argv[1])
session = agent.session(session_id="s", resume=True, auto_save=True, journal=True, file_session_store=sys.argv[2])
print("open", flush=True)
for line in sys.stdin:
    what, _, argument = line.strip().partition(" ")
    try:
        if what == "append":
            session.append({"role": "user", "content": argument})
        elif what == "send":
            session.send(argument)
        else:
            getattr(session, what)()
        print("ok", len(session.history()), flush=True)
    except PerdureError as error:
        print(type(error).__name__, len(session.history()), flush=True)
"""


class Elsewhere(Other):
    """Another process with the session open in journal mode."""

    def __init__(self, place: Path) -> None:
        command = [sys.executable, "-c", CHILD, hcl(), str(place)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        super().__init__(self.process)
        assert self.do() == "open"

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_session_that_is_open_elsewhere(agent: Agent, server: ScriptedServer, place: Path) -> None:
    """It can be read and resumed; whoever writes is told, before a model is called."""
    with Elsewhere(place) as there:
        assert there.do("append 1") == "ok 1"
        assert there.do("append 2") == "ok 2"
        mine = agent.resume_session("s", file_session_store=place, auto_save=True, journal=True)
        assert texts(mine.history()) == ["1", "2"]
        with pytest.raises(SessionLockedError) as caught:
            mine.send("hello")
        assert (caught.value.session_id, caught.value.pid) == ("s", there.process.pid)
        assert not server.requests
        assert texts(mine.history()) == ["1", "2"], "its prompt was taken back"
        with pytest.raises(SessionLockedError):
            mine.append(text("mine"))
        assert isinstance(mine.last_save_error, SessionLockedError)
        with pytest.raises(SessionLockedError):
            mine.save(force=True)
        with pytest.raises(SessionLockedError):
            agent.delete_session("s", file_session_store=place)
        assert there.do("append 3") == "ok 3"
        assert stored(place) == ["1", "2", "3"]
        copy = mine.fork()
        assert stored(place, copy) == ["1", "2", "mine"]
        # Closed there, it is somebody else's newer session here.
        assert there.do("close") == "ok 3"
        with pytest.raises(SessionConflictError):
            mine.save()
        mine.reload()
        server.enqueue(reply("hi"))
        assert mine.send("hello").text == "hi"
        same_everywhere(place, mine)
        assert mine.last_save_error is None


def test_lock_timeout_waits_for_the_other_to_close(make_agent: Callable[[str], Agent], place: Path) -> None:
    agent = make_agent(hcl(extra="journal = true\n lock_timeout = 30"))
    with Elsewhere(place) as there:
        assert there.do("append 1") == "ok 1"
        mine = agent.resume_session("s", file_session_store=place, auto_save=True)
        timer = threading.Timer(0.3, there.do, ["close"])
        timer.start()
        mine.append(text("2"))
        timer.join()
    assert stored(place) == ["1", "2"]


def test_closing_without_a_change_gives_the_session_up(agent: Agent, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True, journal=True)
    session.append(text("1"))
    session.append(text("2"))
    session.close()
    session.close()
    assert names(place) == ["s.json"]
    with Elsewhere(place) as there:
        assert there.do("append 3") == "ok 3"


def test_a_session_that_nobody_holds_any_more_is_free(agent: Agent, place: Path) -> None:
    """Killed, not closed: the next one goes on at once, and what it repairs is saved with its own."""
    with Elsewhere(place) as there:
        for number in range(3):
            assert there.do(f"append {number}") == f"ok {number + 1}"
    assert "s.lock" in names(place)
    started = time.monotonic()
    session = agent.resume_session("s", file_session_store=place, auto_save=True, journal=True)
    session.append({"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]})
    assert time.monotonic() - started < 8
    assert [line["revision"] for line in saves(place)] == [2, 3, 4]
    session.close()
    resumed = agent.resume_session("s", file_session_store=place, auto_save=True, journal=True)
    assert INTERRUPTED in json.dumps(list(resumed.history()))
    resumed.append(text("on"))
    same_everywhere(place, resumed)


# --- what goes wrong


def test_a_directory_that_goes_away_in_a_turn(agent: Agent, server: ScriptedServer, place: Path) -> None:
    """The turn goes on, the error is told, and the messages go out with the next save."""
    errors: list[Exception] = []
    session = agent.session(
        file_session_store=place, session_id="s", auto_save=True, journal=True, on_save_error=errors.append
    )
    session.append(text("one"))
    session.append(text("two"))
    away = place.with_name("away")
    place.rename(away)
    server.enqueue(reply("hello"))
    assert session.send("hi").text == "hello"
    assert errors and all(isinstance(error, StoreError) for error in errors)
    assert session.last_save_error is errors[-1]
    assert stored(away) == ["one", "two"]
    away.rename(place)
    assert session.save().revision == 3
    assert session.last_save_error is None
    same_everywhere(place, session)


def test_a_snapshot_edited_by_hand_in_a_session(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True, journal=True)
    session.append(text("one"))
    session.append(text("two"))
    raw = (place / "s.json").read_bytes()
    (place / "s.json").write_bytes(raw.replace(b'"text": "one"', b'"text": "ONE"'))
    with pytest.raises(SessionCorruptError):
        session.send("hi")
    assert not server.requests
    with pytest.raises(SessionCorruptError):
        session.reload()
    assert texts(session.history()) == ["one", "two"]
    (place / "s.json").write_bytes(raw)
    server.enqueue(reply("hello"))
    assert session.send("hi").text == "hello"
    same_everywhere(place, session)


# --- killed in the middle of appends

# Forks a writer for each line it is told: one that has not to import everything again.
WRITERS = """
import hashlib, json, os, random, sys
from perdure import Agent

def write(durability, seed):
    agent = Agent.create(sys.argv[1])
    options = dict(session_id="s", resume=True, auto_save=True, journal=True, file_session_store=sys.argv[2])
    session = agent.session(durability=durability, **options)
    chance = random.Random(seed)
    while True:
        number = len(session.history())
        what = chance.random()
        if what < 0.05 and number > 4:
            session.rewind(number - 2 if number < 300 else 20)
        elif what < 0.08:
            session.close()
            session = agent.session(durability=durability, **options)
        else:
            body = f"{number} " + chance.choice("abc") * chance.choice([5, 200, 2000])
            session.append({"role": "user", "content": f"{hashlib.sha256(body.encode()).hexdigest()} {body}"})
        os.write(1, f"{len(session.history())} {session.data.revision}\\n".encode())

for line in sys.stdin:
    durability, seed = line.split()
    pid = os.fork()
    if pid == 0:
        try:
            write(durability, int(seed))
        finally:
            os._exit(1)
    os.write(1, f"{pid}\\n".encode())
    os.write(1, f"ended {os.waitpid(pid, 0)[1]}\\n".encode())
"""


def killed(writers: subprocess.Popen[str], durability: str, seed: int, after: float) -> tuple[int, int]:
    """Lets a writer write, kills it some time after its first word; messages and revision that it was told last."""
    assert writers.stdin is not None and writers.stdout is not None
    print(durability, seed, file=writers.stdin, flush=True)
    lines: list[str] = []
    pid = None
    while len(lines) < 1 or pid is None:
        line = writers.stdout.readline().split()
        assert line and line[0] != "ended", "the writer failed"
        if len(line) == 1:
            pid = int(line[0])
        else:
            lines.append(" ".join(line))
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    while not (line := writers.stdout.readline().split()) or line[0] != "ended":
        assert line, "the writers ended"
        lines.append(" ".join(line))
    assert int(line[1]) == signal.SIGKILL
    count, revision = map(int, lines[-1].split())
    return count, revision


def whole(said: str) -> bool:
    """Whether a message is one that the writer made, and complete."""
    checksum, _, body = said.partition(" ")
    return hashlib.sha256(body.encode()).hexdigest() == checksum


@pytest.fixture
def writers(place: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITERS, hcl(), str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.timeout(60 + 4 * KILLS)
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_in_the_middle_of_appends(agent: Agent, place: Path, writers: subprocess.Popen[str]) -> None:
    """What the writer was told is saved is there, whole; what comes behind is at most the one save it was at."""
    seed = int(os.environ.get("PERDURE_SEED", random.randrange(2**32)))
    chance = random.Random(seed)
    revision = 0
    found: dict[str, int] = {"journal": 0, "ahead": 0, "torn": 0}
    for kill in range(KILLS):
        durability = chance.choice(["full", "process"])
        count, acknowledged = killed(writers, durability, chance.randrange(2**32), chance.uniform(0, 0.06))
        note = f"seed {seed}, kill {kill}: {count} messages at revision {acknowledged} were acknowledged"
        data = FileSessionStore(place).load("s")
        assert data is not None, note
        assert acknowledged <= data.revision <= acknowledged + 1, note
        assert acknowledged > revision or kill == 0, note
        revision = data.revision
        if data.revision == acknowledged:
            assert len(data) == count, note
        for number, message in enumerate(data.messages):
            said = message["content"][0]["text"]
            assert whole(said) and said.split(" ")[1] == str(number), note
        theirs = PythonFileSessionStore(place).load_dict("s")
        assert theirs is not None
        assert theirs["messages"] == list(data.messages), note
        journal = place / "s.journal"
        raw = journal.read_bytes() if journal.exists() else b""
        found["journal"] += bool(raw)
        found["ahead"] += data.revision > acknowledged
        found["torn"] += not raw.endswith(b"\n") and bool(raw)
    assert found["journal"] > KILLS / 3, found
    session = agent.resume_session("s", file_session_store=place, auto_save=True, journal=True)
    session.append(text("at last"))
    session.close()
    left = [name for name in names(place) if ".torn-" not in name]
    assert left in (["s.json"], ["s.journal", "s.json"]), left
    assert stored(place)[-1] == "at last"


def test_a_torn_line_is_told_when_the_session_is_resumed(
    agent: Agent, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Elsewhere(place) as there:
        there.do("append 1")
        there.do("append 2")
    with (place / "s.journal").open("ab") as journal:
        journal.write(b'{"bytes": 300, "crc')
    with caplog.at_level(logging.WARNING, "perdure"):
        session = agent.resume_session("s", file_session_store=place, auto_save=True, journal=True)
    assert "never acknowledged" in caplog.text
    session.append(text("3"))
    same_everywhere(place, session)
    assert [name for name in names(place) if ".torn-" in name]
