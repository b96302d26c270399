"""Session files that A3S Code wrote: they load, resume and continue, and it can read what perdure writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent
from turn.scripted import ScriptedServer, reply

DATA = Path(__file__).parents[1] / "data" / "a3s"
SAMPLES = pytest.mark.parametrize("name", ["plain", "tools"])
HEAD = {"config", "state", "tool_names", "updated_at", "model_name", "context_usage", "total_usage"}


def same_types(theirs: Any, ours: Any, path: str = "") -> None:
    """Every field of theirs is in ours, with the type that it has there."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), path
        for key, value in theirs.items():
            assert key in ours, f"{path}.{key}"
            same_types(value, ours[key], f"{path}.{key}")
    elif theirs is None or ours is None:
        assert path.endswith("_tokens") or theirs is ours, path
    else:
        assert type(theirs) is type(ours), f"{path}: {type(theirs)} became {type(ours)}"


@pytest.fixture
def there(place: Path) -> Path:
    place.mkdir()
    for name in ("plain", "tools"):
        shutil.copyfile(DATA / f"{name}.json", place / f"{name}.json")
    return place


@SAMPLES
def test_they_resume_and_continue_with_nothing_lost(
    agent: Agent, server: ScriptedServer, there: Path, name: str
) -> None:
    theirs = json.loads((DATA / f"{name}.json").read_bytes())
    session = agent.resume_session(theirs["id"], file_session_store=there, auto_save=True)
    assert list(session.history()) == theirs["messages"]
    assert session.data.created_at.timestamp() == theirs["created_at"]
    assert (there / f"{name}.json").read_bytes() == (DATA / f"{name}.json").read_bytes(), "a look changes nothing"
    server.enqueue(reply("gone on"))
    session.send("go on")
    sent = json.dumps(server.requests[0].messages)
    assert "Refactor auth" in sent or name == "tools"
    ours = json.loads((there / f"{name}.json").read_bytes())
    assert ours["messages"][:-2] == theirs["messages"]
    assert list(ours)[-1] == "messages"
    for key, value in theirs.items():
        if key not in HEAD | {"messages"}:
            assert ours[key] == value, key
    for key, value in theirs["config"].items():
        assert ours["config"][key] == value, key
    same_types({k: v for k, v in theirs.items() if k != "messages"}, ours)
    again = agent.resume_session(theirs["id"], file_session_store=there)
    assert again.usage.total_tokens == theirs["total_usage"]["total_tokens"] + 18


@SAMPLES
def test_a_session_of_ours_has_every_field_that_they_need(
    agent: Agent, server: ScriptedServer, place: Path, name: str
) -> None:
    theirs = json.loads((DATA / f"{name}.json").read_bytes())
    server.enqueue(reply("hello"))
    agent.session(file_session_store=place, session_id="s", auto_save=True).send("hi")
    ours = json.loads((place / "s.json").read_bytes())
    needed = (
        "id",
        "state",
        "context_usage",
        "total_usage",
        "model_name",
        "tool_names",
        "thinking_enabled",
        "thinking_budget",
        "created_at",
        "updated_at",
        "tasks",
        "messages",
    )
    same_types({key: theirs[key] for key in needed if key != "messages"}, ours)
    config = ("name", "workspace", "system_prompt", "max_context_length", "auto_compact")
    same_types({key: theirs["config"][key] for key in config}, ours["config"])
    assert ours["total_usage"]["cache_write_tokens"] is None and ours["context_usage"]["percent"] > 0
    for message in ours["messages"]:
        assert message["role"] in ("user", "assistant") and all("type" in block for block in message["content"])


def test_they_are_listed_forked_and_deleted(agent: Agent, there: Path) -> None:
    infos = {info.id: info for info in agent.sessions(file_session_store=there)}
    assert set(infos) == {json.loads(path.read_bytes())["id"] for path in there.glob("*.json")}
    assert infos["plain"].message_count == 4 and infos["plain"].first_prompt == "Refactor auth"
    agent.fork_session("plain", "copy", 2, file_session_store=there)
    copy = agent.resume_session("copy", file_session_store=there)
    assert len(copy.history()) == 2 and copy.data.get("llm_config")["model"] == "gpt-4o"
    assert agent.delete_session("plain", file_session_store=there)
    assert not (there / "plain.json").exists()


def test_a_later_layout_is_recognised(agent: Agent, place: Path) -> None:
    later = place / "v1" / "sessions"
    later.mkdir(parents=True)
    (later / "id_bXktc2Vzc2lvbg.json").write_text("{}")
    with pytest.raises(LookupError, match="perdure import"):
        agent.resume_session("my-session", file_session_store=place)
