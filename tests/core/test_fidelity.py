"""What goes in comes out (docs/format.md, 'Strings and numbers'), and what cannot is refused with its path."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest
from core_helpers import JSON, MESSAGE, loaded, same, text
from hypothesis import given
from hypothesis import strategies as st

from perdure import FileSessionStore, SerializationError, SessionCorruptError, SessionData


def written(value: Any, **options: Any) -> str:
    """How a value stands in the file."""
    data = SessionData("s")
    data.append({"v": value}, **options)
    line = data.to_json().decode().splitlines()[-3]
    assert line.startswith('    {"v": ')
    return line[len('    {"v": ') : -1]


def read(token: str | bytes) -> Any:
    raw = token.encode() if isinstance(token, str) else token
    return SessionData.from_json(b'{"id": "s", "messages": [{"v": ' + raw + b"}]}").messages[0]["v"]


# --- everything that JSON can say


@given(messages=st.lists(MESSAGE, max_size=4), value=JSON)
def test_what_is_written_is_read(messages: list[dict[str, Any]], value: Any) -> None:
    data = SessionData("s", messages=messages)
    data.set("own", value)
    for copy in (data, SessionData.from_json(data.to_json())):
        assert same(list(copy.messages), messages)
        assert same(copy.get("own"), value)
        assert same(copy.to_dict()["messages"], messages)
    # The standard library reads the same out of it, and one message is one line.
    plain = json.loads(data.to_json())
    assert same(plain["messages"], messages)
    assert len(data.to_json().split(b"\n")) == len(data.keys()) + 5 + (len(messages) + 2 if messages else 1)
    assert SessionData.from_json(data.to_json()).to_json() == data.to_json()


@given(value=JSON)
def test_lines_are_those_of_json_dumps(value: Any) -> None:
    """But for what the format escapes beyond that: DEL to U+009F, U+2028, U+2029 and lone surrogates."""
    expected = "".join(
        f"\\u{ord(c):04x}" if "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" or "\ud800" <= c <= "\udfff" else c
        for c in json.dumps(value, ensure_ascii=False)
    )
    assert written(value) == expected


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact_and_stay_floats(value: float) -> None:
    token = written(value)
    assert token == repr(value)
    back = read(token)
    assert type(back) is float
    assert repr(back) == repr(value)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e16, 1e15, 5e-324, 1.7976931348623157e308, 0.1, 1e-5, 1e-4, 1e22])
def test_special_floats(value: float) -> None:
    assert written(value) == repr(value)
    assert repr(read(repr(value))) == repr(value)


@pytest.mark.parametrize(
    "value",
    [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**200, 10**4300 - 1, -(10**4300) + 1, 0, -1],
    ids=lambda n: f"{n.bit_length()} bits",
)
def test_integers_are_exact(value: int) -> None:
    token = written(value)
    assert token == str(value)
    assert read(token) == value


def test_integers_have_a_limit() -> None:
    limit = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None
    try:
        for setting in (limit, 0):
            if setting is not None:
                sys.set_int_max_str_digits(setting)
            for value in (10**4300, -(10**4300), 1 << 200_000):
                with pytest.raises(SerializationError, match="over 4,300 digits") as caught:
                    SessionData("s").append({"a": [value]})
                assert caught.value.path == "messages[0].a[0]"
        if limit is not None:
            sys.set_int_max_str_digits(640)  # the user's own, lower limit: the reason is Python's
            with pytest.raises(SerializationError, match="could not be encoded") as caught:
                SessionData("s").append({"a": 10**1000})
            assert "640" in str(caught.value.__cause__)
            with pytest.raises(SerializationError, match="640"):
                read("1" * 1000)
    finally:
        if limit is not None:
            sys.set_int_max_str_digits(limit)


def test_control_characters_and_separators() -> None:
    for code in range(0x250):
        token = written(chr(code))
        short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
        if code in short:
            assert token == f'"{short[code]}"'
        elif code < 0x20 or 0x7F <= code <= 0x9F:
            assert token == f'"\\u{code:04x}"'
        else:
            assert token == f'"{chr(code)}"'
        assert read(token) == chr(code)
    assert written("\u2027\u2028\u2029\u202a/") == '"\u2027\\u2028\\u2029\u202a/"'


def test_surrogates() -> None:
    assert written("\ud83d") == '"\\ud83d"'
    assert written("a\udc00\ud800b\U0001f600") == '"a\\udc00\\ud800b\U0001f600"'
    for value in ("\ud83d", "\udc00\ud800", "\ud800x", "x\udfff", "\ud800\U0001f600\udc00"):
        assert read(written(value)) == value
    # Two escapes that make a pair are one character when they come from a file.
    assert read('"\\ud83d\\ude00"') == "\U0001f600"
    assert read('"\\ud83d\\ud83d\\ude00"') == "\ud83d\U0001f600"
    assert SessionData("s", messages=[{"\ud800": 1}]).messages[0] == {"\ud800": 1}


# --- Python's own kinds


class Text(str):
    def __str__(self) -> str:
        return "something else"

    __repr__ = __str__


class Whole(int):
    def __repr__(self) -> str:
        return "something else"

    __str__ = __repr__


class Real(float):
    def __repr__(self) -> str:
        return "something else"


class Colour(IntEnum):
    RED = 3


class Bits(IntFlag):
    A = 1
    B = 2


class Word(str, Enum):
    HELLO = "hello"


class Plain(Enum):
    TEXT = "t"
    LIST = (1, "x")
    NESTED = Colour.RED
    REFUSED = frozenset({1})


class Record(dict[str, Any]):
    pass


class Rows(list[Any]):
    pass


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (Text("own"), '"own"'), (Whole(5), "5"), (Whole(2**70), str(2**70)), (Real(0.5), "0.5"), (True, "true"),
        (Colour.RED, "3"), (Bits.A | Bits.B, "3"), (Word.HELLO, '"hello"'), (Plain.TEXT, '"t"'),
        (Plain.LIST, '[1, "x"]'), (Plain.NESTED, "3"), (Record(a=Rows([1])), '{"a": [1]}'), ((1, (2,)), "[1, [2]]"),
        (defaultdict(list, a=[]), '{"a": []}'), ({Text("k"): 1, Word.HELLO: 2}, '{"k": 1, "hello": 2}'),
        (None, "null"), ([], "[]"), ({}, "{}"),
    ],
)  # fmt: skip
def test_subclasses_and_enums(value: Any, token: str) -> None:
    assert written(value) == token


def test_an_ordered_dict_has_its_own_order() -> None:
    ordered = OrderedDict(a=1, b=2)
    ordered.move_to_end("a")
    assert written(ordered) == '{"b": 2, "a": 1}'


def test_an_enum_with_a_value_that_is_not_json() -> None:
    with pytest.raises(SerializationError, match="frozenset") as caught:
        SessionData("s").append({"a": Plain.REFUSED})
    assert caught.value.path == "messages[0].a"


# --- the encoder hook


@dataclass
class Point:
    x: int
    y: Any = None


def test_the_hook_converts_what_is_not_json() -> None:
    def hook(value: Any) -> Any:
        if isinstance(value, Point):
            return {"x": value.x, "y": value.y}
        if isinstance(value, datetime):
            return value.isoformat()
        raise TypeError(f"no idea about {type(value).__name__}")

    when = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert written([Point(1, Point(2)), when], default=hook) == (
        '[{"x": 1, "y": {"x": 2, "y": null}}, "2026-01-02T00:00:00+00:00"]'
    )
    data = SessionData("s", messages=[text("a")])
    data.replace(0, {"p": Point(1)}, default=hook)
    assert data.messages[0] == {"p": {"x": 1, "y": None}}
    with pytest.raises(SerializationError, match="could not be encoded") as caught:
        data.append({"p": [Decimal(1)]}, default=hook)
    assert caught.value.path == "messages[1].p[0]"
    assert str(caught.value.__cause__) == "no idea about Decimal"
    # What JSON can say never goes to the hook.
    data.append({"p": [1, "x", None]}, default=lambda value: pytest.fail("called"))


def test_a_hook_that_gets_nowhere() -> None:
    with pytest.raises(SerializationError, match="unchanged"):
        written(Point(1), default=lambda value: value)
    with pytest.raises(SerializationError, match="512"):
        written(Point(1), default=lambda value: Point(value.x + 1))
    with pytest.raises(SerializationError, match="512"):
        written(Point(1), default=lambda value: [value])


def test_a_hook_may_change_what_is_being_written() -> None:
    message: dict[str, Any] = {"a": Point(1), "rows": [Point(2)], "z": 1}

    def hook(value: Point) -> Any:
        message.clear()
        message["new"] = [0] * 100
        message.setdefault("rows", []).extend([1, 2])
        return value.x

    data = SessionData("s")
    data.append(message, default=hook)
    assert data.messages[0] == {"a": 1, "rows": [2], "z": 1}


def test_an_enum_that_changes_what_is_being_written() -> None:
    message: dict[str, Any] = {}

    class Odd(Enum):
        A = 1

        @property
        def value(self) -> int:
            message["new"] = 1
            return 1

    message["a"] = Odd.A
    message["b"] = 1
    with pytest.raises(SerializationError, match="changed while"):
        SessionData("s").append(message)


# --- refused, with the path


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "NaN|nan"), (float("inf"), "inf"), (float("-inf"), "inf"), (b"x", "bytes"), (Odd(), "Odd"),
        (datetime(2026, 1, 1, tzinfo=timezone.utc), "datetime"), (Point(1), "Point"), ({1, 2}, "set"),
        (Decimal("1.0"), "Decimal"), (Path("x"), "PosixPath|WindowsPath"), (object, "type"), (iter([]), "iterator"),
        ({1: "x"}, "key of type int"), ({None: 1}, "key of type NoneType"), ({("a",): 1}, "key of type tuple"),
        (1j, "complex"), (Real("nan"), "NaN|nan"), (range(3), "range"), (memoryview(b"x"), "memoryview"),
    ],
)  # fmt: skip
def test_refused_values(value: Any, what: str) -> None:
    data = SessionData("s", messages=[text("a"), text("b"), text("c")])
    before = data.to_json()
    with pytest.raises(SerializationError, match=what) as caught:
        data.append({"content": [{"input": {"when": value}}]})
    assert caught.value.path == "messages[3].content[0].input.when"
    assert str(caught.value).startswith("messages[3].content[0].input.when: ")
    with pytest.raises(SerializationError) as caught:
        data.config = {"deep": [value]}
    assert caught.value.path == "config.deep[0]"
    with pytest.raises(SerializationError) as caught:
        data.replace(1, {"odd key": {"": value}})
    assert caught.value.path == 'messages[1]["odd key"][""]'
    assert data.to_json() == before
    assert isinstance(caught.value, TypeError)


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [513, 20_000])
def test_nesting_is_bounded(levels: int) -> None:
    assert read(written(nested(511))) == nested(511)  # the message itself is the 512th level
    with pytest.raises(SerializationError, match="deeper than 512") as caught:
        SessionData("s").append({"a": {"b": nested(levels - 2)}})
    path = caught.value.path
    assert path is not None
    assert path.startswith("messages[0].a.b[0][0]")
    assert len(path) < 300
    text_in = b'{"id": "s", "messages": [{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}]}"
    with pytest.raises(SessionCorruptError, match=r"deep|nest"):
        SessionData.from_json(text_in)


def test_the_deepest_that_is_written_is_read(store: FileSessionStore) -> None:
    data = SessionData("s", messages=[{"a": nested(511)}])
    store.save(data)
    assert loaded(store).messages == data.messages


def test_cycles_are_refused() -> None:
    own: dict[str, Any] = {}
    own["self"] = own
    rows: list[Any] = []
    rows.append(rows)
    for value in (own, rows):
        with pytest.raises(SerializationError, match="contains itself"):
            SessionData("s").append({"v": value})


# --- loaded values


TOKENS = [
    "1.0", "1.50", "1E5", "1e+05", "-0", "-0.0", "0.1e1", "123456789012345678901234567890", '"\\u0041"', '"\\/"',
    '"\u2028"', '"\x7f"', '"\\uD83D\\uDE00"', '{"b": 1, "a": 2, "b": 3}', '"\\ud800"', "1e-400",
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_loaded_tokens_stay_byte_for_byte(token: str, store: FileSessionStore) -> None:
    directory = store.path
    raw = f'{{"own":\n {token} ,"messages":[ {{"v":{token}}}\n,\n{{ "v" : [ {token} ] }} ], "id":"s"}}'.encode()
    (directory / "s.json").write_bytes(raw)
    data = loaded(store)
    data.append(text("more"))
    store.save(data)
    lines = (directory / "s.json").read_bytes().decode().split("\n")
    assert f'    {{"v": {token}}},' in lines
    assert f'    {{"v": [{token}]}},' in lines
    assert f'  "own": {token},' in lines
    assert same(loaded(store).messages[0]["v"], json.loads(token))


def test_duplicate_keys_last_wins(store: FileSessionStore) -> None:
    raw = b'{"id": "s", "own": 1, "own": 2, "messages": [{"a": 1, "b": 2, "a": 3}]}'
    data = SessionData.from_json(raw)
    assert data.messages[0] == {"a": 3, "b": 2}
    assert data.get("own") == 2
    assert data.to_json().count(b'"own"') == 1
    twice = b'{"id": "x", "messages": [{"a": 1}], "id": "s", "messages": [{"a": 2}]}'
    data = SessionData.from_json(twice)
    assert (data.id, list(data.messages)) == ("s", [{"a": 2}])


@pytest.mark.parametrize("token", ["1" * 4301, "-" + "1" * 4301, "1e400", "-1.5e999"])
def test_literals_that_python_cannot_hold(token: str, store: FileSessionStore) -> None:
    path = store.path / "s.json"
    path.write_text(f'{{"id": "s", "big": {token}, "messages": [{{"a": {{"b c": [0, {token}]}}}}, {{"a": 1}}]}}')
    data = loaded(store)
    assert data.messages[1] == {"a": 1}
    with pytest.raises(SerializationError) as caught:
        data.messages[0]
    assert caught.value.path == 'messages[0].a["b c"][1]'
    with pytest.raises(SerializationError) as caught:
        data.get("big")
    assert caught.value.path == "big"
    with pytest.raises(SerializationError):
        data.to_dict()
    data.append(text("more"))
    store.save(data)
    assert path.read_bytes().count(token.encode()) == 2
    assert len(loaded(store)) == 3


def test_a_literal_of_4300_digits_is_fine() -> None:
    assert read("-" + "9" * 4300) == -(10**4300) + 1


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "nan", "01", "+1", "1.", ".5", "1e", "0x1", "'a'", '"\\x"', '"\t"', '"\\ud8"',
     "[1,]", '{"a" 1}', "{a: 1}", "tru", "nulll", '"', "[", "{", ""],
)  # fmt: skip
def test_what_is_not_json_is_found_when_it_is_opened(value: str, store: FileSessionStore) -> None:
    path = store.path / "s.json"
    raw = f'{{"id": "s",\n "messages": [{{"a": 1}},\n {{"v": {value}}}]}}'.encode()
    path.write_bytes(raw)
    with pytest.raises(SessionCorruptError) as caught:
        store.load("s")
    assert caught.value.path == str(path)
    assert caught.value.line == 3
    assert caught.value.column is not None
    assert f"{path}:3:{caught.value.column}" in str(caught.value)
    assert path.read_bytes() == raw


def test_not_utf8_is_found_with_its_place(store: FileSessionStore) -> None:
    path = store.path / "s.json"
    for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x82"):
        path.write_bytes(b'{"id": "s",\n"messages": [{"v": "' + bad + b'"}]}')
        with pytest.raises(SessionCorruptError, match="UTF-8") as caught:
            store.load("s")
        assert caught.value.line == 2


def test_order_of_keys(store: FileSessionStore) -> None:
    (store.path / "s.json").write_bytes(b'{"z": 1, "messages": [], "a": 2, "id": "s", "perdure2": 3}')
    data = loaded(store)
    assert data.keys() == ["z", "a", "perdure2"]
    data.set("z", 9)
    data.set("new", 1)
    store.save(data)
    assert list(json.loads((store.path / "s.json").read_bytes())) == [
        "id", "perdure", "z", "a", "perdure2", "updated_at", "new", "messages",
    ]  # fmt: skip


@given(value=JSON, indent=st.sampled_from([None, 1, "\t"]))
def test_any_layout_loads(value: Any, indent: Any) -> None:
    data = SessionData.from_json(json.dumps({"id": "s", "own": value, "messages": [{"v": value}]}, indent=indent))
    assert same(data.get("own"), value)
    assert same(data.messages[0], {"v": value})


def test_a_reader_that_does_not_understand_the_format(store: FileSessionStore) -> None:
    path = store.path / "s.json"
    raw = b'{"id": "s", "perdure": {"format": 2}, "messages": []}'
    path.write_bytes(raw)
    with pytest.raises(SessionCorruptError, match="format 2"):
        store.load("s")
    assert path.read_bytes() == raw
