"""The api key reaches the model server and nothing else, whatever path it takes."""

from __future__ import annotations

import base64
import logging
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from perdure import Agent, ConfigError, ModelError, SessionOptions, StoreError, TurnEvent
from perdure.secrets import MASK
from turn.scripted import Call, ScriptedServer, failure, reply

from .conftest import KEY, hcl, stored, text, texts
from .test_user_stores import Plain

FORMS = (KEY, base64.b64encode(KEY.encode()).decode(), KEY.replace("-", "%2D"))


def is_clean(*shown: Any) -> bool:
    """No form of the key in anything of this, as a person or a log would see it."""
    for thing in shown:
        said = "".join(traceback.format_exception(thing)) if isinstance(thing, BaseException) else str(thing)
        if any(form in said or form in repr(thing) for form in FORMS):
            return False
    return True


def files(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file())


@pytest.fixture(autouse=True)
def clean_log(caplog: pytest.LogCaptureFixture) -> Any:
    """Nothing that any library logs, however much it logs, has the key."""
    caplog.set_level(logging.DEBUG)
    yield
    mine = [r for r in caplog.get_records("call") if not r.name.startswith(("httpcore", "httpx", "openai"))]
    assert is_clean(*(r.getMessage() for r in mine), *(r.exc_text or "" for r in mine))


def test_the_canary_would_be_found(place: Path) -> None:
    assert not is_clean(f"x{KEY}x") and not is_clean({"k": [KEY]}) and not is_clean(ValueError(KEY))
    assert not is_clean(FORMS[1]) and not is_clean(FORMS[2]) and is_clean("sk-other", ValueError("x"))


def test_tool_output_and_a_dot_env_file(agent: Agent, server: ScriptedServer, place: Path, work: Path) -> None:
    (work / ".env").write_text(f"OPENAI_API_KEY={KEY}\nOTHER={FORMS[1]}\n")

    def leak(what: str) -> dict[str, Any]:
        """Leaks."""
        if what == "raise":
            raise ValueError(f"bad key {KEY}")
        return {"key": KEY, KEY: [KEY]}

    session = agent.session(
        work,
        file_session_store=place,
        session_id="s",
        auto_save=True,
        permissive=True,
        tools=["read", "bash", "grep", leak],
    )
    calls = [
        Call("a", "read", {"path": ".env"}),
        Call("b", "bash", {"command": "cat .env; env"}),
        Call("c", "grep", {"pattern": "sk-"}),
        Call("d", "leak", {"what": "return"}),
        Call("e", "leak", {"what": "raise"}),
    ]
    server.enqueue(reply(calls=calls), reply("done"))
    events = list(session.stream("read the environment"))
    assert session.last_save_error is None and len(stored(place)) == 12
    kept = files(place)
    assert kept.count(MASK.encode()) >= 6 and is_clean(kept.decode(), *events, *session.history())
    assert is_clean(server.requests[1].body), "the model is not told either"
    assert server.requests[1].key == KEY


def test_a_model_that_says_the_key_in_pieces(agent: Agent, server: ScriptedServer, place: Path) -> None:
    def echo(value: str) -> str:
        """Echoes."""
        return value

    session = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[echo])
    halves = [KEY[i : i + 3] for i in range(0, len(KEY), 3)]
    server.enqueue(
        reply("it is ", *halves, calls=[Call("a", "echo", {"value": f"say {KEY}"})]), reply(*halves, " it was")
    )
    events = list(session.stream(f"my key is {KEY}"))
    shown = "".join(event.text or "" for event in events if event.type == "text_delta")
    assert shown == f"it is {MASK}{MASK} it was"
    assert next(e for e in events if e.type == "tool_start").tool_input == {"value": f"say {MASK}"}
    assert is_clean(*events, *session.history(), files(place).decode(), repr(session), session.data.to_json())
    assert texts(session.history())[0] == f"my key is {MASK}"
    server.enqueue(reply(*halves[:-1]))
    shown = "".join(e.text or "" for e in session.stream("again") if e.type == "text_delta")
    assert shown == "".join(halves[:-1]), "what only began like a key is shown in the end"


def test_errors_of_the_provider(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    for status in (400, 401, 403, 404):
        server.enqueue(failure(status))  # repeats the key and the prompt in its body
        stream, events = session.stream("tell nobody"), []
        with pytest.raises(ModelError) as raised:
            events.extend(stream)
        assert is_clean(raised.value, *events, *(vars(raised.value)).values())
        assert "tell nobody" not in "".join(traceback.format_exception(raised.value))
    server.enqueue(reply("x", cut_after=1))
    with pytest.raises(ModelError) as raised:
        session.send("hi")
    assert is_clean(raised.value, files(place).decode())


def test_everything_that_is_given_to_a_session(agent: Agent, place: Path) -> None:
    options = SessionOptions(
        name=f"n {KEY}", tags=[KEY], tasks=[{"content": KEY}], system_prompt=f"use {KEY}", session_id="s"
    )
    session = agent.session(options=options, file_session_store=place, auto_save=True)
    session.append(text(KEY), {"role": "user", "content": f"also {KEY}", "meta": {"note": [KEY]}})
    session.name, session.tags, session.tasks = f"m {KEY}", [KEY], [{KEY: KEY}]
    session.save()
    assert is_clean(files(place).decode(), session.data.to_json(), repr(session), repr(agent), repr(agent.config))
    session = agent.resume_session("s", options, file_session_store=place)
    session.append({"role": "user", "content": KEY})
    session.save()
    assert is_clean(files(place).decode(), session.data.to_dict())
    assert all(is_clean(info) for info in agent.sessions(file_session_store=place))


class Rude(Plain):
    """Its errors quote what they should not."""

    error: Exception = StoreError("")

    def save(self, data: Any) -> None:
        raise self.error


@pytest.mark.parametrize("own", [False, True])
def test_errors_of_a_store(agent: Agent, server: ScriptedServer, own: bool, caplog: pytest.LogCaptureFixture) -> None:
    store, told = Rude(), []
    session = agent.session(session_store=store, session_id="s", auto_save=True, on_save_error=told.append)
    store.error = StoreError(f"own {KEY}") if own else OSError(5, "rude", f"/{KEY}")
    store.error.__cause__ = ValueError(KEY)
    with pytest.raises(StoreError) as raised:
        session.append(text("one"))
    assert is_clean(raised.value, raised.value.filename, *told) and MASK in str(raised.value)
    server.enqueue(reply("hello"))
    session.send("hi")
    assert is_clean(session.last_save_error, caplog.text) and MASK in caplog.text


def test_a_password_in_a_store_url(tmp_path: Path) -> None:
    url = f"redis://user:{quote(KEY)}@host/0"
    agent = Agent.create("max_tool_rounds = 1")
    with pytest.raises(ConfigError) as raised:
        agent.session(session_store=url)
    assert is_clean(raised.value, SessionOptions(session_store=url))
    path = tmp_path / "agent.hcl"
    path.write_text(f'storage_url = "{url}"')
    with pytest.raises(ConfigError) as raised:
        Agent.create(path).session()
    assert is_clean(raised.value, Agent.create(path).config)


def test_a_config_that_cannot_be_read(server: ScriptedServer) -> None:
    for broken in (f'"{KEY}" nonsense', f'"{KEY}', f'["{KEY}"]', f'{{ a = "{KEY}" }}'):
        with pytest.raises(ConfigError) as raised:
            Agent.create(hcl(server).replace(f'"{KEY}"', broken))
        assert is_clean(raised.value)


def redact(said: str) -> str:
    return said.replace("4111-1111", "[card]")


def test_redact_decides_what_is_kept(agent: Agent, server: ScriptedServer, place: Path) -> None:
    seen: list[str] = []

    def pay(card: str) -> str:
        """Pays."""
        seen.append(card)
        return f"paid with {card}"

    session = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[pay], redact=redact)
    server.enqueue(
        reply("paying with 4111-1111", calls=[Call("a", "pay", {"card": "4111-1111"})]), reply("4111-1111 charged")
    )
    result = session.send("pay with 4111-1111")
    session.append(text("4111-1111"))
    assert seen == ["4111-1111"], "the tool gets what the model wrote"
    assert b"4111" not in files(place) and files(place).count(b"[card]") >= 5
    assert result.text == "[card] charged" and "4111" not in str(result)
    server.enqueue(reply("ok"))
    session.send("next")
    assert "4111" not in str(server.requests[-1].body)


@pytest.mark.parametrize("bad", [lambda said: 1 / 0, lambda said: None, lambda said: said.encode()])
def test_a_redact_that_fails_keeps_nothing(agent: Agent, server: ScriptedServer, place: Path, bad: Any) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True, redact=bad)
    for use in (lambda: session.append(text("secret words")), lambda: session.send("secret words")):
        with pytest.raises(ConfigError, match="redact") as raised:
            use()
        assert "secret words" not in "".join(traceback.format_exception(raised.value)).replace('("secret words")', "")
    assert not server.requests and list(place.iterdir()) == []


def test_events_hold_nothing_but_what_they_say(agent: Agent, server: ScriptedServer) -> None:
    server.enqueue(reply("hello"))
    events = list(agent.session().stream("hi"))
    assert all(isinstance(event, TurnEvent) for event in events) and is_clean(*events)
