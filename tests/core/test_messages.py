"""`Messages`: an immutable sequence that decodes what is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from core_helpers import text
from hypothesis import given
from hypothesis import strategies as st

from perdure import Messages, SessionData

NINE = [text(f"message {number}") for number in range(9)]


@pytest.fixture
def nine() -> Messages:
    return SessionData("s", messages=NINE).messages


BOUND = st.none() | st.integers(-14, 14) | st.sampled_from([2**63 - 1, -(2**63), 2**70, -(2**70)])
STEP = st.none() | (st.integers(-5, 5) | st.sampled_from([2**62, -(2**62), 2**70, -(2**70)])).filter(bool)
SLICE = st.builds(slice, BOUND, BOUND, STEP)


@given(slices=st.lists(SLICE, max_size=4))
def test_slices_of_slices_are_those_of_a_list(slices: list[slice]) -> None:
    view, model = SessionData("s", messages=NINE).messages, NINE
    for part in slices:
        view, model = view[part], model[part]
        assert isinstance(view, Messages)
        assert len(view) == len(model)
        assert list(view) == model
        assert list(reversed(view)) == model[::-1]
        for at in range(-len(model), len(model)):
            assert view[at] == model[at]
        for at in (len(model), -len(model) - 1, 2**70, -(2**70)):
            with pytest.raises(IndexError):
                view[at]


def test_it_is_a_sequence(nine: Messages) -> None:
    assert isinstance(nine, Sequence)
    match nine:
        case [first, *_]:
            assert first == NINE[0]
        case _:
            pytest.fail("a history does not match a sequence pattern")
    assert SessionData("t", messages=nine[2:4]).messages == NINE[2:4]


def test_items_are_fresh(nine: Messages) -> None:
    first = nine[0]
    first["content"].append("changed")
    first["role"] = "changed"
    assert nine[0] == NINE[0]
    assert nine[0] is not nine[0]
    assert next(iter(nine)) == NINE[0]


def test_a_view_does_not_change() -> None:
    data = SessionData("s", messages=NINE)
    before, part = data.messages, data.messages[3:]
    data.append(text("another"))
    data.replace(4, text("replaced"))
    data.truncate(6)
    assert list(before) == NINE
    assert list(part) == NINE[3:]
    assert len(data.messages) == 6


def test_nothing_can_be_assigned(nine: Messages) -> None:
    view: Any = nine
    with pytest.raises(TypeError):
        view[0] = {}
    with pytest.raises(TypeError):
        del view[0]
    with pytest.raises(AttributeError):
        view.extra = 1
    with pytest.raises(TypeError):
        hash(view)
    with pytest.raises(TypeError):
        Messages()


def test_equality(nine: Messages) -> None:
    assert nine == NINE
    assert nine == tuple(NINE)
    assert nine == SessionData("other", messages=NINE).messages
    assert nine[::2] == NINE[::2]
    assert nine != NINE[:-1]
    assert nine != [*NINE[:-1], text("else")]
    assert nine != SessionData("other", messages=NINE[1:]).messages
    assert nine != 9
    assert nine[:0] == []
    assert not nine[:0]
    assert nine


def test_search(nine: Messages) -> None:
    assert NINE[3] in nine
    assert text("else") not in nine
    assert nine.index(NINE[3]) == 3
    assert nine[::-1].index(NINE[3]) == 5
    assert nine.index(NINE[3], -6, -5) == 3
    assert nine.index(NINE[0], -(2**70), 2**70) == 0
    with pytest.raises(ValueError, match="no such message"):
        nine.index(NINE[3], 4)
    with pytest.raises(ValueError, match="no such message"):
        nine.index(NINE[3], 0, 3)
    assert SessionData("s", messages=[NINE[0], NINE[1], NINE[0]]).messages.count(NINE[0]) == 2


def test_raw_is_the_stored_json(nine: Messages) -> None:
    written = b'{"role": "user", "content": [{"type": "text", "text": "message 8"}]}'
    assert nine.raw(-1) == nine.raw(8) == nine[5:].raw(3) == written
    for at in (9, -10, 2**70):
        with pytest.raises(IndexError):
            nine.raw(at)


def test_indices_of_the_wrong_kind(nine: Messages) -> None:
    view: Any = nine
    for index in ("0", 1.0, None, (0, 1)):
        with pytest.raises(TypeError, match="integers or slices"):
            view[index]
    assert view[True] == NINE[1]

    class Index:
        def __index__(self) -> int:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        view[Index()]
    with pytest.raises(ValueError, match="zero"):
        view[::0]


def test_iterators(nine: Messages) -> None:
    one, other = iter(nine), iter(nine)
    assert next(one) == NINE[0]
    assert one.__length_hint__() == 8
    assert next(other) == NINE[0]
    assert list(one) == NINE[1:]
    assert next(one, "end") == "end"
    assert one.__length_hint__() == 0


def test_no_content_in_the_repr(nine: Messages) -> None:
    assert repr(nine) == "<Messages: 9>"
