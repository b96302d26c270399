"""The pure-Python store's bytes, values and names, against docs/format.md."""

from __future__ import annotations

import datetime
import enum
import json
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_helpers import LINEAGE, snapshot_bytes, text

from perdure.errors import InvalidSessionIdError, SerializationError
from perdure.stores._plain_format import build_snapshot, crc32c, first_prompt, read_snapshot
from perdure.stores._plain_json import decode, encode, to_bytes, too_deep
from perdure.stores._plain_names import a3s_stem_of, candidate_stems, check_id, id_of, stem_of
from perdure.stores.python_file import PythonFileSessionStore, new_session_dict


def test_crc32c_vectors_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


GOLDEN = """\
{
  "id": "my-session",
  "perdure": {"format": 1, "lineage": "0123456789abcdef0123456789abcdef", "revision": 7, "message_count": 2, \
"messages_bytes": 171, "first_prompt": "Refactor auth", "tags": ["a"], "parent": null, "later": {"x": 1}, \
"crc32c": null},
  "config": {"name": "", "tab\\t": [1, 2.0, -0.5, 1e+16, true, null]},
  "other": "café \\u2028\\u2029\\u007f\\u0085\\ud83d \\u001f\\b\\f\\n\\r\\t\\"\\\\/ 😀",
  "messages": [
    {"role": "user", "content": [{"type": "text", "text": "Refactor auth"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Done."}]}
  ]
}
"""


def test_golden_snapshot() -> None:
    session = {
        "messages": [text("user", "Refactor auth"), text("assistant", "Done.")],
        "config": {"name": "", "tab\t": [1, 2.0, -0.5, 1e16, True, None]},
        "perdure": {"later": {"x": 1}, "tags": ["a"], "revision": 6, "crc32c": "1c291ca3"},
        "id": "my-session",
        "other": 'café \u2028\u2029\x7f\x85\ud83d \x1f\b\f\n\r\t"\\/ 😀',
    }
    built = build_snapshot(session, LINEAGE, 7, 1)
    assert built.data.decode() == GOLDEN
    assert built.new_bytes == len('{"role": "assistant", "content": [{"type": "text", "text": "Done."}]}')
    read = read_snapshot(built.data, "x")
    assert {k: v for k, v in read.items() if k != "perdure"} == {k: v for k, v in session.items() if k != "perdure"}


def test_golden_snapshot_without_messages() -> None:
    built = build_snapshot({"id": "s", "messages": []}, LINEAGE, 1, 0)
    assert built.data.endswith(b'null},\n  "messages": []\n}\n')
    assert built.perdure["messages_bytes"] == len('  "messages": []')
    assert built.data[len(built.data) - 3 - 16 :] == b'  "messages": []\n}\n'


def test_helpers_build_what_the_store_builds() -> None:
    by_hand = snapshot_bytes(crc=False, state="Active")
    assert build_snapshot(read_snapshot(by_hand, "x"), LINEAGE, 7, 0).data == by_hand


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], None),
        ([text("assistant", "no")], None),
        ([text("assistant", "no"), text("user", "yes"), text("user", "no")], "yes"),
        ([{"role": "user", "content": "plain " + "😀" * 300}], "plain " + "😀" * 194),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "b"}]}], "b"),
        ([{"role": "user", "content": [{"type": "image"}]}, text("user", "later")], "later"),
        ([text("assistant", "no")] * 16 + [text("user", "too late")], None),
        ([{"role": "user"}], None),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], None),
    ],
)
def test_first_prompt(messages: list[Any], expected: str | None) -> None:
    assert first_prompt(messages) == expected


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDFFF])
def test_every_character_that_is_escaped_alone(code: int) -> None:
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
    escape = short.get(code) or f"\\u{code:04x}"
    assert to_bytes(encode(f"aé{chr(code)}", "v")).decode() == f'"aé{escape}"'


@pytest.mark.parametrize("code", [0x20, 0x7E, 0xA0, 0x2027, 0x202A, 0xD7FF, 0xE000, 0xFEFF, 0xFFFF, 0x10FFFF])
def test_their_neighbours_are_raw(code: int) -> None:
    assert to_bytes(encode(chr(code), "v")) == f'"{chr(code)}"'.encode()


# --- values


def surrogates_apart(value: str) -> bool:
    # Two halves side by side are one character in JSON, whatever wrote them.
    return re.search("[\ud800-\udbff][\udc00-\udfff]", value) is None


strings = st.text(alphabet=st.characters(codec=None, exclude_categories=())).filter(surrogates_apart)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type and value: 1 is not 1.0, -0.0 is not 0.0, and the order of keys counts."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


@given(values)
@settings(max_examples=300, deadline=None)
def test_values_survive(value: Any) -> None:
    data = to_bytes(encode(value, "v"))
    assert same(decode(data, "v"), value)
    assert b"\n" not in data
    for character in data.decode():
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


@given(st.dictionaries(strings, values, max_size=4), st.lists(st.dictionaries(strings, values, max_size=3)))
@settings(max_examples=60, deadline=None)
def test_sessions_survive(tmp_path_factory: pytest.TempPathFactory, head: Any, messages: Any) -> None:
    store = PythonFileSessionStore(tmp_path_factory.mktemp("s"))
    session = {**head, "id": "s", "messages": messages}
    session.pop("perdure", None)
    want = json.loads(json.dumps(session))
    store.save_dict(session)
    loaded = store.load_dict("s")
    assert loaded is not None
    assert loaded == session
    assert {k: v for k, v in loaded.items() if k != "perdure"} == want
    before = (store.directory / "s.json").read_bytes()
    store.save_dict(loaded)
    after = (store.directory / "s.json").read_bytes()
    assert after == before.replace(b'"revision": 1,', b'"revision": 2,', 1)


class Colour(enum.IntEnum):
    RED = 3


class Name(str):
    pass


def test_subclasses_and_big_numbers() -> None:
    value = {Name("k"): Colour.RED, "t": (1, Name("x")), "big": 10**4299, "neg": -(10**4299)}
    data = to_bytes(encode(value, "v"))
    assert decode(data, "v") == {"k": 3, "t": [1, "x"], "big": 10**4299, "neg": -(10**4299)}
    assert encode({"1": 1, "true": 2, "null": 3, "a1": 4}, "v") == '{"1": 1, "true": 2, "null": 3, "a1": 4}'


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> Any:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"x": float("nan")}, "m.x"),
        ([float("inf")], "m[0]"),
        ({"x": {1: "a"}}, "m.x"),
        ({"x": {None: "a"}}, "m.x"),
        ({"x": {True: "a"}}, "m.x"),
        ({"x": {1.5: "a"}}, "m.x"),
        ({"x": {(1, 2): "a"}}, "m.x"),
        ({"content": [{"input": {"when": datetime.datetime(2026, 1, 1)}}]}, "m.content[0].input.when"),
        ({"a b": b"x"}, 'm["a b"]'),
        ({"x": {1, 2}}, "m.x"),
        (cycle(), "m.a[0]"),
        ({"x": 10**4300}, "m.x"),
        ({"x": -(10**4300)}, "m.x"),
        (nested(513), "m" + "[0]" * 512),
        (nested(20_000), "m" + "[0]" * 512),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_refused_values_are_named_by_their_path(value: Any, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        encode(value, "m")
    assert caught.value.path == path
    assert str(caught.value).startswith(path + ": ")


def test_depth_512_is_fine_and_shared_values_are_no_cycle() -> None:
    deep = nested(512)
    assert decode(encode(deep, "m").encode(), "m") == deep
    assert not too_deep(deep)
    assert too_deep([deep])
    shared: dict[str, Any] = {"1": [1]}
    assert encode([shared, shared], "m") == '[{"1": [1]}, {"1": [1]}]'


def test_nothing_is_written_when_a_value_is_refused(tmp_path: Path) -> None:
    store = PythonFileSessionStore(tmp_path / "new")
    session = new_session_dict("s", messages=[text("user", "a"), {"content": [{"input": {"when": {1, 2}}}]}])
    with pytest.raises(SerializationError) as caught:
        store.save_dict(session)
    assert caught.value.path == "messages[1].content[0].input.when"
    assert not (tmp_path / "new").exists()
    assert "perdure" not in session
    for wrong, path in [({"messages": 5}, "messages"), ({"messages": ["x"]}, "messages[0]")]:
        with pytest.raises(SerializationError) as caught:
            store.save_dict({"id": "s", **wrong})
        assert caught.value.path == path
    with pytest.raises(SerializationError) as caught:
        store.save_dict({"id": "s", "config": {"x y": [b""]}, "messages": []})
    assert caught.value.path == 'config["x y"][0]'


# --- names


@pytest.mark.parametrize(
    ("id", "stem"),
    [
        ("my-session_1.x", "my-session_1.x"),
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a.", "a%2E"),
        (".hidden", "%2Ehidden"),
        ("a b ", "a%20b%20"),
        ("50%", "50%25"),
        ("é", "%C3%A9"),
        ("😀", "%F0%9F%98%80"),
        ("CON", "%43ON"),
        ("con.txt", "%63on.txt"),
        ("Lpt9", "%4Cpt9"),
        ("com0", "%63om0"),
        ("CON ", "CON%20"),
        ("CONSOLE", "CONSOLE"),
        ("NUL.", "%4EUL%2E"),
        ("a" * 180, "a" * 180),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
    ],
)
def test_stems(id: str, stem: str) -> None:
    assert stem_of(id) == stem
    assert id_of(stem) == id


def test_long_stems_are_cut_between_escapes_and_hashed() -> None:
    import hashlib

    long = "a" * 181
    assert stem_of(long) == "a" * 140 + "%-" + hashlib.sha256(long.encode()).hexdigest()[:32]
    for lead in range(3):
        id = "x" * lead + "é" * 100
        kept = stem_of(id).partition("%-")[0]
        assert 138 <= len(kept) <= 140
        assert re.fullmatch(r"x*(%[0-9A-F]{2})*", kept)
    assert len(stem_of("é" * 4096)) <= 180


ids = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=70)
tricky = st.text(alphabet="aA.%-_/\\2FéE~ \U0001f600coNn", min_size=1, max_size=6)


@given(ids | tricky | st.text("ab%é", min_size=170, max_size=260), ids | tricky)
@settings(max_examples=500, deadline=None)
def test_stems_are_one_to_one_and_plain(id: str, other: str) -> None:
    stem = stem_of(id)
    assert re.fullmatch(r"(?!\.)[A-Za-z0-9_.%-]{1,180}(?<!\.)", stem)
    assert id_of(stem) == (None if "%-" in stem else id)
    if other != id:
        assert stem_of(other) != stem


def test_other_candidate_names() -> None:
    assert candidate_stems("a/b\\c") == ["a%2Fb%5Cc", "a_b_c"]
    assert candidate_stems("plain") == ["plain"]
    assert a3s_stem_of(".hidden/x") is None
    assert a3s_stem_of("x" * 251) is None
    assert id_of("a%-0") is None
    assert id_of("a%2fb") is None
    assert id_of("é") is None
    assert id_of("CON") is None


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 4097, 5, None, b"x", "\ud83d", "\ud83d\ude00"])
def test_bad_ids(tmp_path: Path, id: Any) -> None:
    store = PythonFileSessionStore(tmp_path)
    for call in (store.load_dict, store.delete, store.exists, check_id):
        with pytest.raises(InvalidSessionIdError):
            call(id)
    with pytest.raises(InvalidSessionIdError):
        store.save_dict({"id": id, "messages": []})


@pytest.mark.parametrize("id", ["..", "/etc/passwd", "x" * 4096, "😀", "CON", "a. ", "a/b", "é" * 400, "x" * 249])
def test_odd_ids_are_ids(tmp_path: Path, id: str) -> None:
    store = PythonFileSessionStore(tmp_path / "s")
    store.save_dict(new_session_dict(id, messages=[text("user", "x")]))
    loaded = store.load_dict(id)
    assert loaded is not None
    assert loaded["id"] == id
    assert store.list() == [id]
    assert store.infos()[0][0].id == id
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert len(list((tmp_path / "s").iterdir())) == 1
    assert store.delete(id)
    assert list((tmp_path / "s").iterdir()) == []
