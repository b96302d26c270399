"""Decoding: a walk remembers strings from one message to the next, a single look does not; both say the same."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from core_helpers import MESSAGE, child, same, text
from hypothesis import given
from hypothesis import strategies as st

from perdure import Messages, SessionData
from perdure.errors import SerializationError


def stored(*messages: str) -> Messages:
    """Messages whose JSON stands in the file just as it is given."""
    return SessionData.from_json('{"id": "s", "messages": [' + ", ".join(messages) + "]}").messages


WAYS: dict[str, Callable[[Messages], list[Any]]] = {
    "iter": list,
    "index": lambda messages: [messages[i] for i in range(len(messages))],
    "slices": lambda messages: [message for i in range(len(messages)) for message in messages[i : i + 1]],
    "reversed": lambda messages: list(reversed(messages))[::-1],
    "to_dict": lambda messages: SessionData("t", messages=list(messages)).to_dict()["messages"],
}


@pytest.fixture(params=WAYS)
def read(request: pytest.FixtureRequest) -> Callable[[Messages], list[Any]]:
    return WAYS[request.param]


@given(messages=st.lists(MESSAGE, max_size=6), ascii=st.booleans(), twice=st.booleans())
def test_every_way_agrees_with_json(messages: list[dict[str, Any]], ascii: bool, twice: bool) -> None:
    spelled = [json.dumps(message, ensure_ascii=ascii or not _unicode(message)) for message in messages]
    view = stored(*spelled, *(spelled if twice else []))
    expected = [json.loads(one) for one in spelled] * (2 if twice else 1)
    for name, read in WAYS.items():
        assert same(read(view), expected), name


def _unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    "special", ['\\"', "\\\\", "\\n", "\\u00e9", "\\ud83d\\ude80", "\\ud83d", "é", "–", "🚀", "\x7f"]
)
def test_a_special_character_at_every_offset(read: Callable[[Messages], list[Any]], special: str) -> None:
    """Strings are read in blocks of 64 and copied in runs of 32 bytes: no offset in them may be different."""
    spelled = [f'{{"k": "{"x" * before}{special}{"y" * (150 - before)}{special}"}}' for before in range(150)]
    assert read(stored(*spelled)) == [json.loads(one) for one in spelled]


def test_strings_of_every_length_in_keys_and_values(read: Callable[[Messages], list[Any]]) -> None:
    long = "abcdefgh" * 20
    spelled = [json.dumps({long[:n]: long[:n], long[: n + 1]: [long[1 : n + 1]]}) for n in range(150)]
    expected = [json.loads(one) for one in spelled]
    assert read(stored(*spelled, *spelled)) == expected * 2


def test_more_keys_than_are_remembered(read: Callable[[Messages], list[Any]]) -> None:
    """Different keys share a place in what is remembered; they must not be taken for each other."""
    messages = [{f"{prefix}{n}": prefix, f"{n}{prefix}": str(n)} for n in range(1500) for prefix in ("key", "é", "🚀")]
    assert read(stored(*(json.dumps(message, ensure_ascii=False) for message in messages))) == messages


def test_keys_that_are_spelled_differently_are_the_same_key(read: Callable[[Messages], list[Any]]) -> None:
    spelled = '{"role": 1, "\\u0072ole": 2, "a": 0}'
    assert [list(message.items()) for message in read(stored(spelled, '{"role": 3}', spelled))] == [
        [("role", 2), ("a", 0)],
        [("role", 3)],
        [("role", 2), ("a", 0)],
    ]


@pytest.mark.parametrize("sign", ["", "-"])
def test_integers_of_every_length(read: Callable[[Messages], list[Any]], sign: str) -> None:
    spelled = [sign + digits[:n] for digits in ("9" * 40, "1" + "0" * 39) for n in range(1, 41)]
    spelled += [sign + str(2**power + around) for power in (31, 32, 62, 63, 64) for around in (-1, 0, 1)]
    got = [message["n"] for message in read(stored(*(f'{{"n": {one}}}' for one in spelled)))]
    assert got == [int(one) for one in spelled]
    assert {type(one) for one in got} == {int}


def test_floats(read: Callable[[Messages], list[Any]]) -> None:
    spelled = ["0.0", "-0.0", "1e5", "1E-5", "12.5e+3", "-1.5", "123456789012345678901234567890.5", "5e-324", "0e0"]
    got = read(stored(*(f'{{"n": {one}, "after": [{one}]}}' for one in spelled)))
    assert same(got, [{"n": float(one), "after": [float(one)]} for one in spelled])


TOO_LONG = "1" * 4301
BAD = f'{{"role": "x", "content": [{{"type": "t", "input": {{"a b": 1, "when": [0, {TOO_LONG}]}}}}]}}'


def test_what_cannot_be_decoded_is_named_and_hinders_nothing_else() -> None:
    good = [text(f"number {n}") for n in range(7)]
    messages = stored(*(BAD if n == 3 else json.dumps(good[n]) for n in range(7)))
    where = r"messages\[3\]\.content\[0\]\.input\.when\[1\]: an integer of over 4,300 digits"
    with pytest.raises(SerializationError, match=where):
        list(messages)
    with pytest.raises(SerializationError, match=where):
        messages[3]
    # Only what is touched is decoded.
    assert messages[-1] == good[-1]
    assert list(messages[4:]) == good[4:]
    assert list(messages[::2]) == good[::2]
    assert list(islice(messages, 3)) == good[:3]
    walk = iter(messages)
    assert [next(walk) for _ in range(3)] == good[:3]
    with pytest.raises(SerializationError, match=where):
        next(walk)
    assert list(walk) == good[4:]


def test_items_share_no_container() -> None:
    first, second = stored(json.dumps(text("same")), json.dumps(text("same")))
    first["content"][0]["text"] = "changed"
    first["content"].append("more")
    assert second == text("same")


def test_one_walk_shared_by_threads() -> None:
    expected = [text(f"number {n}", role=f"role {n % 300}") for n in range(3000)]
    walk = iter(SessionData("s", messages=expected).messages)
    taken: list[list[Any]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=mine.extend, args=(walk,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    number = lambda message: int(message["content"][0]["text"].split()[1])  # noqa: E731
    assert sorted((message for mine in taken for message in mine), key=number) == expected


class Nosy:
    """Garbage in a cycle, whose finalizer goes on with a walk."""

    def __init__(self, walk: Iterator[Any], taken: list[Any]) -> None:
        self.walk, self.taken, self.me = walk, taken, self

    def __del__(self) -> None:
        self.taken.extend(islice(self.walk, 1))


def test_a_finalizer_goes_on_with_the_walk_that_is_decoding() -> None:
    """The collector runs when a container is made, so also in the middle of a message."""
    expected = [{"n": n, "content": [{"type": "text", "input": {"list": [[], {}, []]}}]} for n in range(400)]
    walk = iter(SessionData("s", messages=expected).messages)
    inside: list[Any] = []
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1)
    try:
        outside = []
        for message in walk:
            outside.append(message)
            Nosy(walk, inside)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert inside, "no finalizer ran"
    assert sorted(outside + inside, key=lambda message: message["n"]) == expected


def test_a_walk_that_is_alive_when_the_interpreter_ends() -> None:
    done = child(
        "import threading\n"
        "from perdure import SessionData\n"
        "walk = iter(SessionData('s', messages=[{'role': 'user'}] * 3).messages)\n"
        "next(walk)\n"
        "local = threading.local(); local.walk = walk\n"
        "thread = threading.Thread(target=next, args=(walk,)); thread.start(); thread.join()\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
