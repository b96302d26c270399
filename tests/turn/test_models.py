"""Opening models, and what is said when they fail: never the key, never the conversation."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse

from perdure.errors import ConfigError, ModelError
from perdure.turn.codec import prompt_message, to_model_messages
from perdure.turn.failures import shown_url
from perdure.turn.loop import TurnSettings
from perdure.turn.models import Timeouts, TurnModel, open_model

from .conftest import KEY, Config, Provider, Resolved, resolved, url_of
from .scripted import Script, ScriptedServer, failure, raw, reply

BOTH = pytest.mark.parametrize("provider", ["openai", "anthropic"])
SECRET = "my private words"
ERROR_EVENT = 'event: error\ndata: {"error": {"type": "overloaded_error", "message": "' + SECRET + '"}}\n\n'


@dataclass(frozen=True)
class Spec:
    name: str = "ls"
    description: str = "Lists"
    parameters: dict[str, Any] | None = None


async def ask(model: TurnModel, prompt: str = SECRET, **settings: Any) -> ModelResponse:
    messages = to_model_messages([prompt_message(prompt)])
    async with model.request_stream(messages, [], TurnSettings(**settings)) as stream:
        async for _ in stream:
            pass
        return stream.reply


async def ask_once(config: Resolved, *, idle: float = 5.0, retries: int = 0) -> ModelResponse:
    async with await open_model(config, timeouts=Timeouts(connect=2.0, idle=idle), retries=retries) as model:
        return await ask(model)


def leaks(error: BaseException) -> list[str]:
    """Everything that hangs on an error, as a crash reporter would find it."""
    found: list[str] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None:
            found += [str(one), repr(one), repr(vars(one)), "".join(traceback.format_exception(one))]
            todo += [one.__cause__, one.__context__]
    return [text for text in found if KEY in text or SECRET in text]


FAILURES = [
    (failure(400), 400, "refused the request"),
    (failure(401), 401, "refused the api key"),
    (failure(402), 402, "quota or credit"),
    (failure(403), 403, "refused the api key"),
    (failure(404), 404, "does not know the model"),
    (failure(413), 413, "context window"),
    (failure(429, retry_after="7"), 429, "Try again in 7 s"),
    (failure(500), 500, "failed (HTTP 500"),
    (failure(503, "<html>not JSON</html>"), 503, "failed (HTTP 503"),
    (failure(504), 504, "gave up waiting"),
    (raw("data: {nope\n\n"), None, "not what its protocol says"),
    (raw("event: message_start\ndata: {nope\n\n"), None, "not what its protocol says"),
    (raw("hello", "text/plain"), None, "not what its protocol says"),
    (raw(""), None, "not what its protocol says"),
    (reply("Hel", "lo", hang_before=True), None, "sent nothing for 0.4 s"),
    (reply("Hel", "lo", hang_after=3), None, "sent nothing for 0.4 s"),
    (reply("Hel", "lo", cut_after=3), None, "broke off"),
    (reply("Hel", "lo", cut_after=3, abort=True), None, "broke off"),
    (reply("Hel", "lo", finish=""), None, "broke off"),
]


@BOTH
@pytest.mark.parametrize(("script", "status", "words"), FAILURES)
async def test_a_failure_is_named_and_gives_nothing_away(
    server: ScriptedServer, provider: str, script: Script, status: int | None, words: str, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    server.enqueue(script)
    with pytest.raises(ModelError) as caught:
        await ask_once(resolved(provider, url_of(server, provider)), idle=0.4)
    error = caught.value
    assert words in str(error)
    assert f"model '{provider}/m-1'" in str(error)
    assert (error.status, error.model) == (status, f"{provider}/m-1")
    assert error.__cause__ is None and error.__context__ is None
    assert leaks(error) == []
    assert KEY not in caplog.text and SECRET not in caplog.text
    assert server.requests[0].key == KEY


@BOTH
async def test_an_error_inside_of_the_stream(server: ScriptedServer, provider: str) -> None:
    server.enqueue(raw(ERROR_EVENT))
    with pytest.raises(ModelError) as caught:
        await ask_once(resolved(provider, url_of(server, provider)))
    assert "overloaded_error" in str(caught.value)
    assert leaks(caught.value) == []


async def test_a_code_of_the_server_is_shown_if_it_is_a_word(server: ScriptedServer) -> None:
    body = '{"error": {"message": "' + SECRET + '", "code": "context_length_exceeded"}}'
    server.enqueue(failure(400, body))
    with pytest.raises(ModelError, match=r"context window \(HTTP 400, context_length_exceeded\)") as caught:
        await ask_once(resolved("openai", server.openai_url))
    assert leaks(caught.value) == []


@BOTH
async def test_nobody_listens(provider: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:{KEY}@127.0.0.1:{free.getsockname()[1]}/v1?key={KEY}"
    with pytest.raises(ModelError, match=r"cannot connect to the server at http://127\.0\.0\.1:\d+/v1\. ") as caught:
        await ask_once(resolved(provider, url))
    assert leaks(caught.value) == []


@BOTH
async def test_a_request_is_repeated_before_the_reply_begins(server: ScriptedServer, provider: str) -> None:
    again = {"retry_after_ms": "1"}
    server.enqueue(failure(429, **again), failure(500, **again), reply("ok"))
    answer = await ask_once(resolved(provider, url_of(server, provider)), retries=2)
    assert answer.text == "ok" and len(server.requests) == 3
    server.enqueue(failure(500, **again), failure(500, **again))
    with pytest.raises(ModelError, match="tried 2 times"):
        await ask_once(resolved(provider, url_of(server, provider)), retries=1)


@BOTH
async def test_a_reply_that_has_begun_is_never_repeated(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("Hel", "lo", cut_after=4, abort=True))
    with pytest.raises(ModelError, match="broke off"):
        await ask_once(resolved(provider, url_of(server, provider)), retries=2)
    assert len(server.requests) == 1


@BOTH
async def test_silence_is_not_waited_for_again(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply(hang_before=True))
    with pytest.raises(ModelError, match="sent nothing"):
        await ask_once(resolved(provider, url_of(server, provider)), idle=0.4, retries=2)
    assert len(server.requests) == 1


@BOTH
async def test_leaving_a_reply_unread_closes_its_connection(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("Hel", "lo", hang_after=3))
    messages = to_model_messages([prompt_message("hi")])
    async with await open_model(resolved(provider, url_of(server, provider))) as model:
        async with model.request_stream(messages, [], TurnSettings()) as stream:
            with pytest.raises(RuntimeError, match="not whole yet"):
                _ = stream.reply
        assert await asyncio.to_thread(server.disconnected.wait, 5)


async def test_a_model_without_tools_is_not_told_of_any(server: ScriptedServer) -> None:
    server.enqueue(reply("x"), reply("x"))
    messages = to_model_messages([prompt_message("hi")])
    spec = Spec(parameters={"type": "object", "properties": {}})
    for can in (True, False):
        async with await open_model(resolved("openai", server.openai_url, tool_call=can)) as model:
            assert model.supports_tools is can
            async with model.request_stream(messages, [spec], TurnSettings()) as stream:
                [text async for text in stream]
    assert "tools" in server.requests[0].body and "tools" not in server.requests[1].body


async def test_a_local_server_that_runs_elsewhere(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.enqueue(reply("hi", model="/models/of/this/machine.gguf"))
    config = resolved("local", server.openai_url, api_key=None, tool_call=None)
    async with await open_model(config) as model:
        answer = await ask(model)
    assert (answer.text, answer.model_name, answer.provider_name) == ("hi", "m-1", "local")


@pytest.mark.parametrize("knows", [True, False])
async def test_a_local_server_says_whether_its_model_knows_tools(server: ScriptedServer, knows: bool) -> None:
    server.files["/props"] = {"chat_template_caps": {"supports_tools": knows}}
    async with await open_model(resolved("local", server.openai_url, api_key=None)) as model:
        assert model.supports_tools is knows
    async with await open_model(resolved("local", server.openai_url, api_key=None, tool_call=False)) as model:
        assert model.supports_tools is False
    del server.files["/props"]
    async with await open_model(resolved("local", server.openai_url, api_key=None)) as model:
        assert model.supports_tools is True


@pytest.mark.model
async def test_the_local_model_answers_and_is_told_of_no_tools() -> None:
    config = Resolved(Provider("local"), Config("smollm2"), "", None)
    async with await open_model(config) as model:
        assert model.supports_tools is False
        answer = await ask(model, "Say hello.", temperature=0.0)
    assert answer.text and answer.model_name == "smollm2"
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0


async def test_the_key_of_openai_does_not_go_to_another_server(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.enqueue(reply("x"), reply("x"), reply("x"))
    for provider in ("openai", "my-gateway"):
        await ask_once(resolved(provider, server.openai_url, api_key="none"))
    await ask_once(resolved("local", server.openai_url, api_key=None))
    assert KEY not in repr(server.requests)


async def test_another_provider_by_name(server: ScriptedServer) -> None:
    server.enqueue(reply("x"))
    answer = await ask_once(resolved("ollama", server.openai_url))
    assert (answer.text, answer.provider_name, server.requests[0].key) == ("x", "ollama", KEY)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (resolved("nowhere", None), "unknown provider 'nowhere'"),
        (resolved("deepseek", "http://127.0.0.1:9/v1"), "provider 'deepseek' takes no base_url"),
        (resolved("deepseek", None, api_key=None), "DEEPSEEK_API_KEY"),
        (resolved("groq", None), "needs a package that is not installed"),
    ],
)
async def test_what_cannot_be_opened(config: Resolved, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=words) as caught:
        await open_model(config)
    assert leaks(caught.value) == []


async def test_closing_lets_go_of_every_connection(server: ScriptedServer) -> None:
    server.enqueue(reply("x"), reply("x"))
    model = await open_model(resolved("openai", server.openai_url))
    await ask(model)
    await model.aclose()
    await model.aclose()
    local = await open_model(resolved("local", server.openai_url))
    await ask(local)
    await local.aclose()
    gc.collect()  # an open socket would warn now, and a warning fails the test


@pytest.mark.parametrize("module", ["codec", "models", "loop"])
def test_without_the_extra_the_error_names_it(module: str) -> None:
    code = (
        "import sys; sys.modules['pydantic_ai'] = None\n"
        "from perdure.errors import ConfigError\n"
        f"try: import perdure.turn.{module}\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -U 'perdure[agent]'" in done.stdout


def test_urls_are_shown_without_secrets() -> None:
    assert shown_url("https://me:pw@host.example:8443/v1?key=1#x") == "https://host.example:8443/v1"
    assert shown_url("http://[::1]:80/v1") == "http://[::1]:80/v1"
    assert shown_url("http://host:port/") is None
    assert shown_url(None) is None


@BOTH
async def test_the_output_limit_of_the_configuration_is_sent(server: ScriptedServer, provider: str) -> None:
    server.enqueue(reply("ok"), reply("ok"))
    config = resolved(provider, url_of(server, provider))
    limited = dataclasses.replace(config.model, max_output_tokens=77)
    await ask_once(dataclasses.replace(config, model=limited))
    body = server.requests[0].body
    assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    await ask_once(config)
    body = server.requests[1].body
    assert 77 not in (body.get("max_tokens"), body.get("max_completion_tokens"))
