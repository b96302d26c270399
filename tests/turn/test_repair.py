"""Interrupted tool calls are found and answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure.turn.codec import to_model_messages
from perdure.turn.repair import INTERRUPTED, dangling_tool_calls, interrupted_results

HI = {"role": "user", "content": [{"type": "text", "text": "hi"}]}


def calls(*ids: str) -> dict[str, Any]:
    blocks = [{"type": "tool_use", "id": call_id, "name": "ls", "input": {}} for call_id in ids]
    return {"role": "assistant", "content": [{"type": "text", "text": "ok"}, *blocks]}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call_id, "content": "x"}]}


def repaired(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    whole = list(messages)
    for index, message in reversed(interrupted_results(messages)):
        whole.insert(index, message)
    return whole


def test_results_are_missing_at_the_end() -> None:
    messages = [HI, calls("a", "b", "c"), result("b")]
    assert [(index, block["id"]) for index, block in dangling_tool_calls(messages)] == [(1, "a"), (1, "c")]
    (first, message), (second, _) = interrupted_results(messages)
    assert (first, second) == (3, 3)
    block = {"type": "tool_result", "tool_use_id": "a", "content": INTERRUPTED, "is_error": True}
    assert message == {"role": "user", "content": [block]}
    to_model_messages(repaired(messages))


def test_a_result_belongs_to_the_last_call_with_its_id() -> None:
    messages = [HI, calls("a"), HI, calls("a"), result("a")]
    assert [index for index, _ in dangling_tool_calls(messages)] == [1]
    assert [index for index, _ in interrupted_results(messages)] == [2]


def test_nothing_is_missing() -> None:
    messages = [HI, calls("a"), result("a"), calls("a"), result("a"), HI]
    assert interrupted_results(messages) == []
    assert dangling_tool_calls(messages) == []


def test_shapes_of_others_are_passed_over() -> None:
    odd: list[Any] = [
        "text",
        {"role": "assistant", "content": "plain"},
        {"role": "assistant", "content": [5, {"type": "tool_use", "id": 7}, {"type": "tool_use"}]},
        {"role": "user"},
        {"role": "user", "content": [{"type": "tool_result"}]},
    ]
    assert interrupted_results(odd) == []


@given(
    st.lists(
        st.one_of(
            st.just(HI),
            st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(lambda ids: calls(*ids)),
            st.sampled_from("abc").map(result),
        ),
        max_size=12,
    )
)
def test_after_the_repair_no_call_is_without_result(messages: list[dict[str, Any]]) -> None:
    assert dangling_tool_calls(repaired(messages)) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_a_turn_that_broke_off_can_be_sent_after_the_repair(turns: list[tuple[int, int]]) -> None:
    messages: list[dict[str, Any]] = []
    for asked, answered in turns:
        ids = [f"call_{number}" for number in range(asked)]
        messages += [HI, calls(*ids), *(result(call_id) for call_id in ids[:answered])]
    to_model_messages([*repaired(messages), HI])


class Lazy(Sequence[dict[str, Any]]):
    """A history that decodes a message when it is asked for, and counts."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.messages = messages
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, int), "a slice would decode everything"
        self.fetched.append(index)
        return self.messages[index]


def test_each_message_is_fetched_once_from_start_on() -> None:
    lazy = Lazy([HI, calls("a"), HI, calls("b"), result("b"), calls("c")])
    assert [index for index, _ in dangling_tool_calls(lazy, start=2)] == [5]
    assert lazy.fetched == [2, 3, 4, 5]


def test_it_needs_no_model_layer() -> None:
    code = (
        "import sys, perdure.turn.repair, perdure.turn.messages\n"
        "sys.exit('pydantic_ai' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
