"""The turn loop against real HTTP: what is recorded, when, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from perdure.errors import ModelError, SerializationError, ToolRoundsError
from perdure.turn.codec import prompt_message, to_model_messages, usage_of
from perdure.turn.loop import TurnSettings, run_turn
from perdure.turn.models import Timeouts, TurnModel, open_model
from perdure.turn.repair import dangling_tool_calls

from .conftest import resolved, url_of
from .scripted import Call, ScriptedServer, failure, reply

BOTH = pytest.mark.parametrize("provider", ["openai", "anthropic"])


@dataclass(frozen=True)
class Spec:
    name: str = "ls"
    description: str = "Lists a directory"
    parameters: dict[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {"path": {"type": "string"}}}
    )


@dataclass(frozen=True)
class Outcome:
    content: Any
    is_error: bool = False


class Tools:
    """Tools that answer with what they were asked. The log shows in which order everything happened."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.started = asyncio.Event()
        self.hang = False

    def definitions(self) -> Sequence[Spec]:
        return [Spec()]

    async def run(self, name: str, arguments: dict[str, Any], *, tool_use_id: str) -> Outcome:
        self.log.append(("run", tool_use_id))
        self.started.set()
        if self.hang:
            try:
                await asyncio.sleep(60)
            finally:
                self.log.append(("stopped", tool_use_id))
        return Outcome(f"{name} {arguments}", is_error="fail" in arguments)


class Session:
    """As much of a session as the loop needs: a history, and a record that the log notes."""

    def __init__(self, model: TurnModel, *history: dict[str, Any]) -> None:
        self.model = model
        self.history = list(history) or [prompt_message("hi")]
        self.log: list[Any] = []
        self.tools = Tools(self.log)

    async def record(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        block = message["content"][0] if message["content"] else {}
        self.log.append(("record", block.get("tool_use_id", message["role"])))
        self.history.append(message)

    def turn(self, **settings: Any) -> Any:
        return run_turn(
            model=self.model,
            history=list(self.history),
            record=self.record,
            tools=self.tools,
            settings=TurnSettings(**settings),
        )

    async def run(self, **settings: Any) -> str:
        """The text of the turn; its events go to the log."""
        text = ""
        async for event in self.turn(**settings):
            if event.type == "text_delta":
                text += event.text
            else:
                self.log.append((event.type, event.tool_use_id))
        return text


@asynccontextmanager
async def session(
    server: ScriptedServer, provider: str = "openai", *history: dict[str, Any], idle: float = 10.0
) -> AsyncIterator[Session]:
    config = resolved(provider, url_of(server, provider))
    async with await open_model(config, timeouts=Timeouts(idle=idle), retries=0) as model:
        yield Session(model, *history)


@BOTH
async def test_a_reply_is_streamed_and_recorded_with_its_meta(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("Hel", "lo", usage=(20, 5), cached=0))
    async with session(server, provider) as chat:
        events = [event async for event in chat.turn()]
    assert [event.text for event in events if event.text] == ["Hel", "lo"]
    message = chat.history[-1]
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    meta = message["meta"]
    assert meta["finish_reason"] == "stop" and meta["model"] == "m-1"
    assert isinstance(meta["at"], int) and meta["id"] != chat.history[0]["meta"]["id"]
    assert usage_of(message).prompt_tokens == 20 and usage_of(message).completion_tokens == 5
    assert usage_of(message).total_tokens == 25


@BOTH
async def test_tokens_read_from_the_cache_are_counted(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("x", usage=(20, 5), cached=8), reply("x", usage=None))
    async with session(server, provider) as chat:
        await chat.run()
        assert chat.history[-1]["meta"]["usage"]["cache_read_tokens"] == 8
        chat.history.append(prompt_message("again"))
        await chat.run()
    # Anthropic's protocol always counts, here nothing but the first token.
    assert ("usage" in chat.history[-1]["meta"]) is (provider == "anthropic")


@BOTH
async def test_each_step_is_recorded_before_the_next_one_starts(server: ScriptedServer, provider: str) -> None:
    calls = [Call("a", "ls", {"path": "é" * 9}), Call("b", "ls", {"fail": True})]
    server.enqueue(reply("Look", calls=calls, interleaved=True), reply("Done"))
    async with session(server, provider) as chat:
        assert await chat.run() == "LookDone"
    assert chat.log == [
        ("record", "assistant"),
        ("tool_start", "a"),
        ("run", "a"),
        ("record", "a"),
        ("tool_end", "a"),
        ("tool_start", "b"),
        ("run", "b"),
        ("record", "b"),
        ("tool_end", "b"),
        ("record", "assistant"),
    ]
    assert [block["type"] for block in chat.history[1]["content"]] == ["text", "tool_use", "tool_use"]
    assert chat.history[1]["content"][1]["input"] == {"path": "é" * 9}
    assert chat.history[3]["content"][0]["is_error"] is True
    assert len({message["meta"]["id"] for message in chat.history}) == len(chat.history)


async def test_the_second_request_carries_calls_and_results_in_order_openai(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call("a", "ls", {"path": "x"}), Call("b", "ls")]), reply("Done"))
    async with session(server) as chat:
        await chat.run(system_prompt="Be brief", temperature=0.5)
    body = server.requests[1].body
    assert body["temperature"] == 0.5
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
    ]
    assert body["messages"][0]["content"] == "Be brief"
    assert [call["id"] for call in body["messages"][2]["tool_calls"]] == ["a", "b"]
    assert body["messages"][3]["content"] == "ls {'path': 'x'}"
    assert body["tools"][0]["function"]["name"] == "ls"


async def test_thinking_and_results_go_back_to_anthropic(server: ScriptedServer) -> None:
    server.enqueue(reply(thinking="hm", signature="SIG", redacted="RED", calls=[Call("a", "ls")]), reply("Done"))
    async with session(server, "anthropic") as chat:
        await chat.run(system_prompt="Be brief")
    body = server.requests[1].body
    assert body["system"] == [{"type": "text", "text": "Be brief"}]
    assert body["messages"][1]["content"][:2] == [
        {"type": "thinking", "thinking": "hm", "signature": "SIG"},
        {"type": "redacted_thinking", "data": "RED"},
    ]
    assert chat.history[1]["content"][:2] == body["messages"][1]["content"][:2]
    assert body["messages"][2]["content"][0]["tool_use_id"] == "a"


@BOTH
async def test_broken_arguments_are_kept_and_fed_back(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply(calls=[Call("a", "ls", '{"path": "x'), Call("b", "ls", "[1]")]), reply("Sorry"))
    async with session(server, provider) as chat:
        assert await chat.run() == "Sorry"
    assert ("run", "a") not in chat.log and ("run", "b") not in chat.log
    assert [block["input"] for block in chat.history[1]["content"]] == [
        {"INVALID_JSON": '{"path": "x'},
        {"INVALID_JSON": "[1]"},
    ]
    for message in chat.history[2:4]:
        assert message["content"][0]["is_error"] is True
        assert "not a JSON object" in message["content"][0]["content"]


async def test_a_call_without_id_gets_one(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call(None, "ls")]), reply("Done"))
    async with session(server) as chat:
        await chat.run()
    call_id = chat.history[1]["content"][0]["id"]
    assert call_id and server.requests[1].messages[-1]["tool_call_id"] == call_id


async def test_the_rounds_are_limited_and_no_call_stays_open(server: ScriptedServer) -> None:
    server.enqueue(*(reply(calls=[Call(f"c{number}", "ls")]) for number in range(3)))
    async with session(server) as chat:
        with pytest.raises(ToolRoundsError, match="max_tool_rounds=2"):
            await chat.run(max_tool_rounds=2)
        assert [entry for entry in chat.log if entry[0] == "run"] == [("run", "c0"), ("run", "c1")]
        assert dangling_tool_calls(chat.history) == []
        assert chat.history[-1]["content"][0]["is_error"] is True
        server.enqueue(reply("Go on"))
        assert await chat.run(max_tool_rounds=2) == "Go on"


async def test_no_round_at_all(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]))
    async with session(server) as chat:
        with pytest.raises(ToolRoundsError):
            await chat.run(max_tool_rounds=0)
    assert ("run", "a") not in chat.log
    to_model_messages(chat.history)


async def test_as_many_rounds_as_allowed_may_be_used(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]), reply(calls=[Call("b", "ls")]), reply("Done"))
    async with session(server) as chat:
        assert await chat.run(max_tool_rounds=2) == "Done"


async def test_an_interrupted_turn_goes_on_with_the_missing_results(server: ScriptedServer) -> None:
    calls = [{"type": "tool_use", "id": call_id, "name": "ls", "input": {}} for call_id in "ab"]
    done = {"type": "tool_result", "tool_use_id": "a", "content": "x", "is_error": False}
    history = [
        prompt_message("hi"),
        {"role": "assistant", "content": calls},
        {"role": "user", "content": [done]},
    ]
    server.enqueue(reply("Done"))
    async with session(server, "openai", *history) as chat:
        assert await chat.run(max_tool_rounds=0) == "Done"
    assert chat.log[:4] == [("tool_start", "b"), ("run", "b"), ("record", "b"), ("tool_end", "b")]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("history", "path"),
    [
        ([prompt_message("hi"), {"role": "assistant", "content": "Done"}], "messages[1]"),
        (
            [prompt_message("hi"), {"role": "user", "content": [{"type": "odd"}]}],
            "messages[1].content[0].type",
        ),
    ],
)
async def test_a_history_that_cannot_be_sent_is_refused_at_once(
    server: ScriptedServer, history: list[dict[str, Any]], path: str
) -> None:
    async with session(server, "openai", *history) as chat:
        with pytest.raises(SerializationError) as caught:
            await chat.run()
    assert caught.value.path == path
    assert server.requests == [] and chat.log == []


@BOTH
async def test_an_empty_reply_is_recorded_and_left_out_when_sending(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply(), reply("Now"))
    async with session(server, provider) as chat:
        assert await chat.run() == ""
        assert chat.history[-1]["content"] == []
        assert chat.history[-1]["meta"]["finish_reason"] == "stop"
        chat.history.append(prompt_message("hello?"))
        assert await chat.run() == "Now"
    (message,) = server.requests[1].messages
    content = message["content"]
    assert (content if isinstance(content, str) else content[0]["text"]) == "hi\n\nhello?"


async def test_a_session_without_tools_answers_calls_all_the_same(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]), reply("Done"))
    async with session(server) as chat:
        events = [event async for event in run_turn(model=chat.model, history=chat.history[:], record=chat.record)]
    assert "tools" not in server.requests[0].body
    assert events[1].type == "tool_end" and events[1].is_error is True


@BOTH
async def test_a_failed_request_leaves_the_finished_steps(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]), failure(500))
    async with session(server, provider) as chat:
        with pytest.raises(ModelError) as caught:
            await chat.run()
        assert caught.value.status == 500
        assert len(chat.history) == 3
        server.enqueue(reply("Done"))
        assert await chat.run() == "Done"


@BOTH
@pytest.mark.parametrize("abort", [False, True])
async def test_a_reply_that_was_cut_is_dropped(server: ScriptedServer, provider: str, abort: bool) -> None:
    server.enqueue(reply("Hel", "lo", calls=[Call("a", "ls", {"path": "x"})], cut_after=5, abort=abort))
    async with session(server, provider) as chat:
        with pytest.raises(ModelError, match="broke off before the reply was whole"):
            await chat.run()
    assert len(chat.history) == 1


@BOTH
async def test_closing_the_turn_closes_the_connection(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("Hel", "lo", hang_after=4))
    async with session(server, provider) as chat:
        turn = chat.turn()
        assert (await turn.__anext__()).text == "Hel"
        await turn.aclose()
        assert await asyncio.to_thread(server.disconnected.wait, 5)
    assert len(chat.history) == 1


@BOTH
async def test_cancelling_while_the_model_is_silent(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("Hello", hang_before=True))
    async with session(server, provider) as chat:
        task = asyncio.ensure_future(chat.run())
        assert await asyncio.to_thread(server.asked.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.disconnected.wait, 5)
    assert len(chat.history) == 1


@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_cancelling_while_a_tool_runs(server: ScriptedServer, timeout: float | None) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]))
    async with session(server) as chat:
        chat.tools.hang = True
        task = asyncio.ensure_future(chat.run(tool_timeout=timeout))
        await chat.tools.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert chat.log[-1] == ("stopped", "a")
    assert [index for index, _ in dangling_tool_calls(chat.history)] == [1]


async def test_a_tool_that_takes_too_long_is_stopped(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]), reply("Done"))
    async with session(server) as chat:
        chat.tools.hang = True
        assert await chat.run(tool_timeout=0.05) == "Done"
    block = chat.history[2]["content"][0]
    assert block["is_error"] is True and "0.05 s" in block["content"]
    assert ("stopped", "a") in chat.log


async def test_a_record_that_fails_ends_the_turn(server: ScriptedServer) -> None:
    server.enqueue(reply(calls=[Call("a", "ls")]))
    async with session(server) as chat:

        async def record(message: dict[str, Any]) -> None:
            raise OSError("disk full")

        turn = run_turn(model=chat.model, history=chat.history, record=record, tools=chat.tools)
        with pytest.raises(OSError, match="disk full"):
            [event async for event in turn]
    assert ("run", "a") not in chat.log


async def test_a_slow_stream_is_no_silent_one(server: ScriptedServer) -> None:
    server.enqueue(reply("a", "b", "c", "d", delay=0.15))
    async with session(server, idle=0.6) as chat:
        assert await chat.run() == "abcd"


async def test_images_reach_the_model_and_come_from_tools(server: ScriptedServer) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    server.enqueue(reply(calls=[Call("a", "look")]), reply("A cat"))
    async with session(server, "anthropic", prompt_message([{"type": "text", "text": "?"}, image])) as chat:

        async def run(name: str, arguments: dict[str, Any], *, tool_use_id: str) -> Outcome:
            return Outcome([{"type": "text", "text": "seen"}, image])

        chat.tools.run = run  # type: ignore[method-assign]
        assert await chat.run() == "A cat"
    first, *_, last = server.requests[1].messages
    assert first["content"][1]["source"]["data"] == "iVBORw0KGgo="
    assert [block["type"] for block in last["content"][0]["content"]] == ["text", "image"]
