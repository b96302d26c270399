"""Appends that go to the file store by the short way: the same in every respect but the time they take."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, AsyncAgent, FileSessionStore, SerializationError, SessionLockedError, StoreError

from .conftest import KEY, hcl, stored, text, texts


def options(directory: Path, **more: Any) -> dict[str, Any]:
    return {"file_session_store": directory, "session_id": "s", "auto_save": True, **more}


@pytest.fixture(params=[True, False], ids=["journal", "snapshot"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"journal": request.param}


def test_what_is_appended_is_on_disk(tmp_path: Path, mode: dict[str, Any]) -> None:
    session = Agent.create(hcl()).session(**options(tmp_path, **mode))
    for number in range(5):
        session.append(text(f"{number}"), text("and", "assistant"))
        assert stored(tmp_path)[-2:] == [f"{number}", "and"]
    session.append()
    assert session.save().bytes_written == 0
    session.close()


def test_short_form_and_secrets_are_seen_to(tmp_path: Path, mode: dict[str, Any]) -> None:
    session = Agent.create(hcl()).session(**options(tmp_path, **mode))
    session.append({"role": "user", "content": "short"})
    session.append(text(f"my key is {KEY}!"))
    session.append({"role": "user", "content": [{"type": "text", "text": "x"}], "deep": [{KEY: 1}]})
    session.append(text("line\nfeed"))
    assert texts(session.history()) == ["short", "my key is [api key masked]!", "x", "line\nfeed"]
    session.close()
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


async def test_secrets_beside_an_event_loop(tmp_path: Path) -> None:
    session = await (await AsyncAgent.create(hcl())).session(**options(tmp_path))
    await session.append(text(f"my key is {KEY}!"))
    await session.append(text("plain"))
    assert texts(session.history()) == ["my key is [api key masked]!", "plain"]
    await session.close()
    assert KEY not in (tmp_path / "s.json").read_text()


def test_what_is_not_json_is_refused_whole(tmp_path: Path) -> None:
    session = Agent.create(hcl()).session(**options(tmp_path))
    with pytest.raises(SerializationError, match=r"messages\[1\]\.when"):
        session.append(text("fine"), {"role": "user", "content": [], "when": object()})
    with pytest.raises(SerializationError, match="a message is a dict"):
        session.append(text("fine"), "not one")  # type: ignore[arg-type]
    assert len(session.history()) == 0
    assert session.last_save_error is None


def test_a_save_that_fails_raises_and_is_told(tmp_path: Path) -> None:
    told: list[Exception] = []
    session = Agent.create(hcl()).session(**options(tmp_path / "d", journal=True, on_save_error=told.append))
    session.append(text("one"))
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(Exception, match="s") as raised:
        session.append(text("two"))
    assert told == [raised.value]
    assert session.last_save_error is raised.value
    assert texts(session.history()) == ["one", "two"], "what was not saved is not lost"


async def test_a_save_that_fails_beside_an_event_loop(tmp_path: Path) -> None:
    told: list[Exception] = []
    agent = await AsyncAgent.create(hcl())
    session = await agent.session(**options(tmp_path / "d", on_save_error=told.append))
    await session.append(text("one"))
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(StoreError) as raised:
        await session.append(text("two"))
    assert told == [raised.value]
    assert texts(session.history()) == ["one", "two"]
    (tmp_path / "d").mkdir()
    with pytest.raises(Exception, match="deleted"):
        await session.save()
    await session.save(force=True)
    assert session.last_save_error is None
    assert stored(tmp_path / "d") == ["one", "two"]


async def test_many_sessions_at_once(tmp_path: Path, mode: dict[str, Any]) -> None:
    agent = await AsyncAgent.create(hcl())
    sessions = [await agent.session(**options(tmp_path, **mode) | {"session_id": f"s{n}"}) for n in range(64)]

    async def talk(session: Any) -> None:
        for number in range(10):
            await session.append(text(f"{number}"))

    await asyncio.gather(*map(talk, sessions))
    for number, session in enumerate(sessions):
        assert stored(tmp_path, f"s{number}") == [str(n) for n in range(10)]
        await session.close()


async def test_appends_and_saves_of_one_session_at_once(tmp_path: Path, mode: dict[str, Any]) -> None:
    session = await (await AsyncAgent.create(hcl())).session(**options(tmp_path, **mode))
    await asyncio.gather(*(session.append(text(f"{n}")) if n % 3 else session.save() for n in range(90)))
    assert stored(tmp_path) == [f"{n}" for n in range(90) if n % 3]
    assert texts(session.history()) == stored(tmp_path)
    await session.close()


async def test_a_cancelled_append_is_waited_for(tmp_path: Path) -> None:
    session = await (await AsyncAgent.create(hcl())).session(**options(tmp_path))
    for number in range(20):
        task = asyncio.create_task(session.append(text(f"{number}")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stored(tmp_path)[-1] == f"{number}", "the cancellation came through when the save had its outcome"
    await session.close()


async def test_a_lock_is_waited_for_beside_the_loop(tmp_path: Path) -> None:
    import fcntl

    session = await (await AsyncAgent.create(hcl())).session(**options(tmp_path, store_timeout=0.3, lock_timeout=60))
    await session.append(text("one"))
    await session.close()
    session = await (await AsyncAgent.create(hcl())).resume_session(
        "s", **options(tmp_path, store_timeout=0.3, lock_timeout=60)
    )
    with (tmp_path / "s.lock").open("w") as lock:
        lock.write(json.dumps({"pid": 1, "host": "elsewhere", "since": 1, "hold": "open", "temp": "0" * 16}) + "\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        append = asyncio.create_task(session.append(text("two")))
        ticks = 0
        while not append.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 5, "the loop goes on"
        with pytest.raises(StoreError, match="store_timeout"):
            await append
        with pytest.raises(StoreError):
            await session.save()
    await session.save()
    assert stored(tmp_path) == ["one", "two"]
    await session.close()


def test_an_owner_is_named(tmp_path: Path) -> None:
    import fcntl

    session = Agent.create(hcl()).session(**options(tmp_path))
    with (tmp_path / "s.lock").open("w") as lock:
        lock.write(json.dumps({"pid": 7, "host": "elsewhere", "since": 1, "hold": "open", "temp": "0" * 16}) + "\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SessionLockedError) as raised:
            session.append(text("one"))
        assert (raised.value.pid, raised.value.host) == (7, "elsewhere")
    session.save()
    assert stored(tmp_path) == ["one"]


async def test_each_event_loop_gets_its_own_outcomes(tmp_path: Path) -> None:
    def on_a_loop_of_its_own(number: int) -> None:
        async def main() -> None:
            session = await (await AsyncAgent.create(hcl())).session(**options(tmp_path) | {"session_id": f"s{number}"})
            await asyncio.gather(*(session.append(text(f"{n}")) for n in range(20)))
            await session.close()

        asyncio.run(main())

    await asyncio.gather(*(asyncio.to_thread(on_a_loop_of_its_own, n) for n in range(8)))
    assert all(len(stored(tmp_path, f"s{n}")) == 20 for n in range(8))


def test_a_redactor_and_a_subclass_go_the_long_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Store(FileSessionStore):
        def append(self, delta: Any, *, step: bool = False) -> Any:
            calls.append(delta.session_id)
            return super().append(delta, step=step)

    session = Agent.create(hcl()).session(session_store=Store(tmp_path), session_id="s", auto_save=True)
    session.append(text("one"))
    assert calls == ["s"]
    redacting = Agent.create(hcl()).session(**options(tmp_path, redact=str.upper) | {"session_id": "r"})
    with caplog.at_level(logging.WARNING, "perdure"):
        redacting.append(text("loud"))
    assert texts(redacting.history()) == stored(tmp_path, "r") == ["LOUD"]
