"""Messages to and from pydantic-ai: nothing lost, nothing unsendable let through."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_json

from perdure.errors import SerializationError
from perdure.turn.codec import (
    from_model_messages,
    prompt_message,
    response_to_message,
    to_model_messages,
    tool_result_message,
    usage_of,
)
from perdure.turn.wire import for_sending

DATA = Path(__file__).parent / "data"
PNG = base64.b64encode(b"\x89PNG\r\n").decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}

texts = st.text(alphabet=st.characters(exclude_categories=()), max_size=12)
filled = texts.filter(bool)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(2**200),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
images = st.builds(
    lambda data, kind: {
        "type": "image",
        "source": {"type": "base64", "media_type": f"image/{kind}", "data": base64.b64encode(data).decode()},
    },
    st.binary(min_size=1, max_size=9),
    st.sampled_from(["png", "jpeg"]),
)
text_blocks = st.builds(lambda text: {"type": "text", "text": text}, texts)
counts = st.integers(0, 10**9)
details = st.dictionaries(filled, scalars, min_size=1, max_size=2)
names = st.text(alphabet="abcdefgh_", min_size=1, max_size=8)


@st.composite
def metas(draw: st.DrawFn, *, reply: bool) -> dict[str, Any]:
    meta: dict[str, Any] = {"id": draw(filled), "at": draw(st.integers(0, 4_000_000_000))}
    if reply:
        prompt, completion = draw(counts), draw(counts)
        told = st.none() | counts
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        usage |= {"cache_read_tokens": draw(told), "cache_write_tokens": draw(told)}
        meta |= draw(st.sampled_from([{}, {"usage": usage}]))
        meta |= {
            "model": draw(filled),
            "finish_reason": draw(st.sampled_from(["stop", "length", "tool_call"])),
        }
        if draw(st.booleans()):
            meta["provider"] = {
                "name": draw(names),
                "response_id": draw(filled),
                "details": {"k": draw(scalars)},
            }
    return meta


@st.composite
def replies(draw: st.DrawFn, ids: list[str]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if draw(st.booleans()):
        content.append({"type": "thinking", "thinking": draw(texts), "signature": draw(filled)})
    if draw(st.booleans()):
        provider = {"name": draw(names), "id": draw(names), "details": draw(details)}
        content.append({"type": "thinking", "thinking": draw(texts), "provider": provider})
    if draw(st.booleans()):
        content.append({"type": "redacted_thinking", "data": draw(filled)})
    content += draw(st.lists(st.builds(lambda text: {"type": "text", "text": text}, filled), max_size=2))
    for call_id in ids:
        arguments = draw(st.dictionaries(texts, json_values, max_size=3))
        call: dict[str, Any] = {"type": "tool_use", "id": call_id, "name": draw(names), "input": arguments}
        if draw(st.booleans()):
            call["provider"] = {"name": draw(names), "details": draw(details)}
        content.append(call)
    return {"role": "assistant", "content": content, "meta": draw(metas(reply=True))}


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What a session holds after some turns: prompts, replies, each tool result a message of its own."""
    messages: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(1, 3))):
        blocks = draw(st.lists(text_blocks | images, min_size=1, max_size=3))
        messages.append({"role": "user", "content": blocks, "meta": draw(metas(reply=False))})
        ids = [f"call_{number}" for number in range(draw(st.integers(0, 3)))] if turn else ["call_0"]
        messages.append(draw(replies(ids)))
        for call_id in draw(st.permutations(ids)):
            content = draw(texts | st.lists(text_blocks | images, max_size=2))
            block = {"type": "tool_result", "tool_use_id": call_id, "content": content}
            block["is_error"] = draw(st.booleans())
            messages.append({"role": "user", "content": [block], "meta": draw(metas(reply=False))})
        if ids:
            messages.append(draw(replies([])))
    return messages


@settings(max_examples=60, deadline=None)
@given(histories())
def test_a_history_comes_back_as_it_was(history: list[dict[str, Any]]) -> None:
    converted = to_model_messages(history)
    assert from_model_messages(converted) == history


@settings(max_examples=30, deadline=None)
@given(histories())
def test_what_is_sent_alternates_and_is_unicode(history: list[dict[str, Any]]) -> None:
    sent = for_sending(to_model_messages(history))
    kinds = [message.kind for message in sent]
    assert all(one != two for one, two in itertools.pairwise(kinds))
    for message in sent:
        for part in message.parts:
            sendable = {key: value for key, value in vars(part).items() if not key.startswith("provider")}
            to_json(sendable)
    results = [part for message in sent for part in message.parts if isinstance(part, ToolReturnPart)]
    assert [part.tool_call_id for part in results] == [
        block["tool_use_id"] for message in history for block in message["content"] if "tool_use_id" in block
    ]


@pytest.mark.parametrize("name", ["plain", "tools"])
def test_files_of_a3s_convert(name: str) -> None:
    messages = json.loads((DATA / f"{name}.json").read_text())["messages"]
    converted = to_model_messages(messages)
    assert from_model_messages(converted) == messages
    assert for_sending(converted)


def test_the_fields_of_a_reply_have_their_place_in_pydantic_ai() -> None:
    meta = {
        "id": "m",
        "at": 1_795_344_689,
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "cache_read_tokens": 5,
            "cache_write_tokens": None,
        },
        "model": "claude",
        "finish_reason": "tool_call",
        "provider": {"name": "anthropic", "response_id": "r1"},
    }
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "S"},
        {"type": "redacted_thinking", "data": "R"},
        {"type": "tool_use", "id": "c", "name": "ls", "input": {"path": "."}},
    ]
    (message,) = to_model_messages([{"role": "assistant", "content": content, "meta": meta}])
    assert isinstance(message, ModelResponse)
    assert (message.usage.input_tokens, message.usage.output_tokens, message.usage.cache_read_tokens) == (
        9,
        4,
        5,
    )
    assert (message.model_name, message.finish_reason, message.provider_name) == (
        "claude",
        "tool_call",
        "anthropic",
    )
    assert message.timestamp.timestamp() == 1_795_344_689
    assert message.parts == [
        ThinkingPart("hm", signature="S", provider_name="anthropic"),
        ThinkingPart("", id="redacted_thinking", signature="R", provider_name="anthropic"),
        ToolCallPart("ls", {"path": "."}, "c"),
    ]


def _user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def _calls(*ids: str) -> dict[str, Any]:
    calls = [{"type": "tool_use", "id": call_id, "name": "ls", "input": {}} for call_id in ids]
    return {"role": "assistant", "content": calls}


def _result(call_id: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": "x"}


HI = {"type": "text", "text": "hi"}
BAD_BASE64 = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "not base64!"}}


@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([_user(HI), "text"], "messages[1]"),
        ([{"content": []}], "messages[0].role"),
        ([{"role": "system", "content": "be nice"}], "messages[0].role"),
        ([_user(HI), {"role": "assistant"}], "messages[1].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([_user()], "messages[0].content"),
        ([{"role": "user", "content": ""}], "messages[0].content"),
        ([_user(HI, "hi")], "messages[0].content[1]"),
        ([_user({"type": "text", "text": None})], "messages[0].content[0].text"),
        ([_user({"type": "video"})], "messages[0].content[0].type"),
        ([_user({"text": "hi"})], "messages[0].content[0].type"),
        ([_user({"type": "tool_use", "id": "a", "name": "ls", "input": {}})], "messages[0].content[0].type"),
        ([{"role": "assistant", "content": [_result("a")]}], "messages[0].content[0].type"),
        ([_user({"type": "image", "source": {"type": "url", "url": "u"}})], "messages[0].content[0].source"),
        ([_user(BAD_BASE64)], "messages[0].content[0].source.data"),
        ([_user(_result("a"))], "messages[0].content[0].tool_use_id"),
        ([_user(HI), _calls("a"), _user(_result("b"))], "messages[2].content[0].tool_use_id"),
        ([_calls("a"), _user(_result("a")), _user(_result("a"))], "messages[2].content[0].tool_use_id"),
        ([_calls("a"), _user(HI), _user(_result("a"))], "messages[0].content[0]"),
        ([_calls("a", "b"), _user(_result("b")), _calls("c")], "messages[0].content[0]"),
        ([_calls("a"), _user(_result("a")), _user(HI, _result("a"))], "messages[2].content[1]"),
        ([_calls("a", "a")], "messages[0].content[1].id"),
        ([_calls("")], "messages[0].content[0].id"),
        (
            [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "a", "name": "ls", "input": "{}"}],
                }
            ],
            "messages[0].content[0].input",
        ),
        (
            [_calls("a"), _user({**_result("a"), "content": [{"type": "thinking"}]})],
            "messages[1].content[0].content[0].type",
        ),
        ([_calls("a"), _user({**_result("a"), "is_error": "no"})], "messages[1].content[0].is_error"),
        ([{**_user(HI), "meta": []}], "messages[0].meta"),
    ],
)
def test_what_cannot_be_sent_is_named(messages: list[Any], path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        to_model_messages(messages)
    assert caught.value.path == path
    assert str(caught.value).startswith(path)


def test_unanswered_calls_of_the_last_reply_and_reused_ids_pass() -> None:
    history = [
        _user(HI),
        _calls("a"),
        _user(_result("a")),
        _calls("a"),
        _user(_result("a")),
        _calls("a", "b"),
    ]
    assert len(to_model_messages([*history, _user(_result("b"))])) == 7


def test_sending_drops_empty_replies_and_joins_the_prompts_around_them() -> None:
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}
    history = [
        _user(HI),
        {"role": "assistant", "content": []},
        _user({"type": "text", "text": "so?"}),
        thought,
    ]
    sent = for_sending(to_model_messages([*history, _user(IMAGE)]))
    assert len(sent) == 1
    (part,) = sent[0].parts
    assert isinstance(part, UserPromptPart)
    assert part.content == ["hi", "so?", BinaryContent(b"\x89PNG\r\n", media_type="image/png")]
    (part,) = for_sending(to_model_messages(history))[0].parts
    assert part.content == "hi\n\nso?"


def test_sending_drops_empty_prompts() -> None:
    empty = _user({"type": "text", "text": ""})
    sent = for_sending(to_model_messages([empty, {"role": "assistant", "content": "ok"}, empty, _user(HI)]))
    assert [message.kind for message in sent] == ["response", "request"]
    assert sent[1].parts[0].content == "hi"


def test_sending_fills_empty_results_and_joins_texts() -> None:
    two = {**_result("b"), "content": [HI, {"type": "text", "text": "there"}]}
    history = [_user(HI), _calls("a", "b"), _user({**_result("a"), "content": ""}), _user(two)]
    sent = for_sending(to_model_messages(history))
    assert [part.content for part in sent[-1].parts] == ["(no output)", "hi\nthere"]


def test_sending_mends_lone_surrogates_and_leaves_the_history_alone() -> None:
    history = [
        _user({"type": "text", "text": "a\ud83d"}),
        _calls("a"),
        _user({**_result("a"), "content": "\udc00b"}),
    ]
    history[1]["content"][0]["input"] = {"k\ud83d": ["\ud83d\ude00", "\ud83d"]}
    converted = to_model_messages(history)
    sent = for_sending(converted)
    assert sent[0].parts[0].content == "a\ufffd"
    assert sent[1].parts[0].args == {"k\ufffd": ["\U0001f600", "\ufffd"]}
    assert sent[2].parts[0].content == "\ufffdb"
    assert from_model_messages(converted)[0]["content"][0]["text"] == "a\ud83d"


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        ({"a": [float("nan"), float("inf"), 0.5]}, {"a": ["nan", "inf", 0.5]}),
        ('{"n": 1' + "0" * 300 + "}", {"n": 10**300}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a": NaN}', {"INVALID_JSON": '{"a": NaN}'}),
        ('{"a": 1e999}', {"INVALID_JSON": '{"a": 1e999}'}),
        ('{"a": ' + "[" * 600 + "]" * 600 + "}", {"INVALID_JSON": '{"a": ' + "[" * 600 + "]" * 600 + "}"}),
    ],
)
def test_arguments_become_an_object_or_are_kept_as_text(raw: Any, stored: dict[str, Any]) -> None:
    message = response_to_message(ModelResponse([ToolCallPart("ls", raw, "c")]))
    assert message["content"][0]["input"] == stored
    assert to_model_messages([message])[0].parts[0].args == stored


def test_two_calls_with_one_id_get_two() -> None:
    message = response_to_message(ModelResponse([ToolCallPart("ls", {}, "c"), ToolCallPart("cat", {}, "c")]))
    assert [block["id"] for block in message["content"]] == ["c", "c_2"]


def test_usage_is_left_out_when_nobody_told_it() -> None:
    told = response_to_message(ModelResponse([TextPart("x")], usage=RequestUsage(input_tokens=3, output_tokens=4)))
    assert (usage_of(told).prompt_tokens, usage_of(told).total_tokens) == (3, 7)
    assert usage_of(told).cache_read_tokens is None
    untold = response_to_message(ModelResponse([TextPart("x")], usage=RequestUsage(unmeasured_requests=1)))
    assert "usage" not in untold["meta"]
    assert usage_of(untold).total_tokens == 0


def test_prompts() -> None:
    message = prompt_message("hi", at=5)
    assert message["content"] == [HI] and message["meta"]["at"] == 5
    assert message["meta"]["id"] != prompt_message("hi")["meta"]["id"]
    assert prompt_message([HI, IMAGE])["content"] == [HI, IMAGE]
    for bad, path in [
        ("", "prompt"),
        ([], "prompt"),
        ([{"type": "x"}], "prompt[0].type"),
        (["x"], "prompt[0]"),
    ]:
        with pytest.raises(SerializationError) as caught:
            prompt_message(bad)  # type: ignore[arg-type]
        assert caught.value.path == path
    with pytest.raises(SerializationError, match="a prompt must be text"):
        prompt_message(5)  # type: ignore[arg-type]


def test_tool_results() -> None:
    message = tool_result_message("c", [HI, IMAGE], is_error=True)
    assert message["content"] == [{"type": "tool_result", "tool_use_id": "c", "content": [HI, IMAGE], "is_error": True}]
    assert to_model_messages([_calls("c"), message])[1].parts[0].outcome == "failed"


def test_a_foreign_history_is_taken_over() -> None:
    foreign = [
        ModelRequest(
            [
                SystemPromptPart("be nice"),
                UserPromptPart(["look", BinaryContent(b"x", media_type="image/gif")]),
            ]
        ),
        ModelResponse([TextPart("ok"), ToolCallPart("ls", '{"p": 1}', "a"), ToolCallPart("ls", None, "b")]),
        ModelRequest([ToolReturnPart("ls", {"n": 1}, "a"), ToolReturnPart("ls", "no", "b", outcome="failed")]),
        ModelResponse([TextPart("done")], model_name="m"),
    ]
    messages = from_model_messages(foreign)
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "user", "assistant"]
    assert [block["type"] for block in messages[0]["content"]] == ["text", "image"]
    assert messages[2]["content"][0]["content"] == '{"n":1}'
    assert messages[3]["content"][0]["is_error"] is True
    assert from_model_messages(to_model_messages(messages)) == messages
    with pytest.raises(SerializationError) as caught:
        from_model_messages([ModelRequest([UserPromptPart(["x", AudioUrl("http://host/a.mp3")])])])
    assert caught.value.path == "messages[0].parts[0].content[1]"
