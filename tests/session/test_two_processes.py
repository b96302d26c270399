"""Two processes on one session: nobody overwrites anybody."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure import Agent, SessionConflictError, SessionExistsError
from turn.scripted import Call, ScriptedServer, reply

from .conftest import hcl, stored, text, texts

CHILD = """
import sys
from perdure import Agent, PerdureError
agent = Agent.create(sys.argv[1])
session = agent.session(session_id="s", resume=True, auto_save=True, file_session_store=sys.argv[2])
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


class Other:
    """Another process with the session open, told line by line what to do."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def do(self, line: str = "") -> str:
        assert self._child.stdin is not None and self._child.stdout is not None
        if line:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        return self._child.stdout.readline().strip()


@contextmanager
def other(server: ScriptedServer, place: Path) -> Iterator[Other]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, hcl(server), str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        process = Other(child)
        assert process.do() == "open"
        yield process
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0


def test_the_second_writer_is_told_and_can_choose(agent: Agent, server: ScriptedServer, place: Path) -> None:
    mine = agent.session(file_session_store=place, session_id="s", auto_save=True)
    mine.append(text("1"))
    with other(server, place) as theirs:
        assert theirs.do("append 2") == "ok 2"
        with pytest.raises(SessionConflictError) as raised:
            mine.send("mine")
        assert (raised.value.expected, raised.value.found) == (1, 2)
        assert not server.requests and texts(mine.history()) == ["1"]
        assert stored(place) == ["1", "2"]
        copy = mine.fork()
        mine.reload()
        mine.append(text("3"))
        assert theirs.do("append lost") == "SessionConflictError 3"
        assert theirs.do("reload") == "ok 3" and theirs.do("append 4") == "ok 4"
    assert stored(place) == ["1", "2", "3", "4"] and stored(place, copy) == ["1"]
    mine.save(force=True)
    assert stored(place) == ["1", "2", "3"]


def test_a_second_writer_in_the_middle_of_a_turn(agent: Agent, server: ScriptedServer, place: Path) -> None:
    told: list[str] = []

    def meanwhile() -> str:
        """Somebody else writes."""
        told.append(theirs.do("append theirs"))
        return "ok"

    mine = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[meanwhile])
    mine.append(text("1"))
    with other(server, place) as theirs:
        server.enqueue(reply(calls=[Call("a", "meanwhile")]), reply("done"))
        assert mine.send("go").text == "done", "the turn goes on"
        # The other had loaded the session before the turn began.
        assert told == ["SessionConflictError 2"]
        assert theirs.do("reload") == "ok 5" and theirs.do("append theirs") == "ok 6"
        assert stored(place)[-2:] == ["done", "theirs"]
        server.enqueue(reply(calls=[Call("b", "meanwhile")]), reply("again"))
        mine.reload()
        theirs.do("reload")
        mine.send("more")
        assert stored(place)[-1] == "again" and told[1].startswith("SessionConflictError")


def test_what_is_lost_to_somebody_else_is_told_at_the_next_send(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    def meanwhile() -> str:
        """Somebody else writes, and knows what is stored."""
        assert theirs.do("reload") and theirs.do("append theirs").startswith("ok")
        return "ok"

    mine = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[meanwhile])
    mine.append(text("1"))
    with other(server, place) as theirs:
        server.enqueue(reply(calls=[Call("a", "meanwhile")]), reply("done"))
        assert mine.send("go").text == "done"
        assert isinstance(mine.last_save_error, SessionConflictError)
        requests = len(server.requests)
        with pytest.raises(SessionConflictError):
            mine.send("more")
        assert len(server.requests) == requests
        assert stored(place) == ["1", "go", "call a", "result a", "theirs"]
        assert texts(mine.history()) == ["1", "go", "call a", "result a", "done"]
        copy = mine.fork()
        assert stored(place, copy) == texts(mine.history())
        mine.reload()
        server.enqueue(reply("fine"))
        mine.send("more")
        assert stored(place)[-2:] == ["more", "fine"]


def test_of_two_that_create_one_session_one_is_told(agent: Agent, server: ScriptedServer, place: Path) -> None:
    mine = agent.session(file_session_store=place, session_id="s", auto_save=True)
    with other(server, place) as theirs:
        assert theirs.do("append first") == "ok 1"
        with pytest.raises(SessionExistsError):
            mine.send("second")
        assert not server.requests and len(mine.history()) == 0 and stored(place) == ["first"]


def test_writers_that_reload_and_try_again_lose_nothing(agent: Agent, server: ScriptedServer, place: Path) -> None:
    agent.session(file_session_store=place, session_id="s", auto_save=True).append(text("0"))
    errors: list[BaseException] = []

    def write(process: Other, name: str) -> None:
        try:
            for n in range(10):
                while not process.do(f"append {name}{n}").startswith("ok"):
                    assert process.do("reload").startswith("ok")
        except BaseException as error:
            errors.append(error)

    with other(server, place) as a, other(server, place) as b:
        threads = [threading.Thread(target=write, args=pair) for pair in ((a, "a"), (b, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not errors
    kept = stored(place)
    assert sorted(kept) == sorted(["0", *(f"{name}{n}" for name in "ab" for n in range(10))])
    assert [m for m in kept if m[0] == "a"] == [f"a{n}" for n in range(10)]


def test_two_handles_of_one_process_do_not_fight_over_the_lock(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    one = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("hello"))
    one.send("hi")
    two = agent.resume_session("s", file_session_store=place, auto_save=True)
    server.enqueue(reply("again"))
    two.send("more")
    assert stored(place) == ["hi", "hello", "more", "again"]
    with pytest.raises(SessionConflictError):
        one.send("x")
