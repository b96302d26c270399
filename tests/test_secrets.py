"""SecretMasker: a key is found however it is written, and nothing else is touched."""

from __future__ import annotations

import base64
import itertools
import json
import re
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import SerializationError
from perdure.secrets import MASK, SecretMasker

KEY = 'sk-cañary+/ 0123"456789?abc'
PLAIN = "sk-proj-0123456789abcdefABCDEF"


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        quote(KEY, safe=""),
        re.sub("%..", lambda escape: escape.group().lower(), quote(KEY, safe="")),
        quote(KEY),
        quote_plus(KEY),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(KEY)[1:-1])[1:-1],
        base64.b64encode(KEY.encode()).decode(),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
        base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("="),
    ],
)
def test_every_form_is_masked(written: str) -> None:
    masked = SecretMasker([KEY]).text(f"<{written}>")
    assert MASK in masked
    assert masked == f"<{MASK}>"


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user", "some body"])
@pytest.mark.parametrize("key", [PLAIN, PLAIN + "x", PLAIN + "xy"])
def test_a_basic_authorization_header_is_masked(user: str, key: str) -> None:
    before, after = f"{user}:", ":realm"
    header = base64.b64encode(f"{before}{key}{after}".encode()).decode()
    left, mask, right = SecretMasker([key]).text(f"Authorization: Basic {header}").partition(MASK)
    assert mask
    # Of the key no more than the few bits that share a character with its neighbours is left.
    assert len(left.removeprefix("Authorization: Basic ")) <= -(-len(before) * 8 // 6)
    assert len(right.rstrip("=")) <= -(-len(after) * 8 // 6) + 1


def test_the_same_object_comes_back_when_nothing_has_to_change() -> None:
    masker = SecretMasker([PLAIN])
    clean: dict[str, Any] = {"a": ["x", {"b": 1.5}, ("t", None)], "c": True}
    dirty = {"keep": clean, "list": [clean, f"key={PLAIN}"], f"k {PLAIN}": 1, "t": (PLAIN, 1)}
    text = "nothing to see"
    assert masker.text(text) is text
    assert masker.value(clean) is clean
    masked = masker.value(dirty)
    assert masked == {"keep": clean, "list": [clean, f"key={MASK}"], f"k {MASK}": 1, "t": (MASK, 1)}
    assert masked["keep"] is clean
    assert dirty["list"] == [clean, f"key={PLAIN}"], "nothing is changed in place"
    assert list(masked) == ["keep", "list", f"k {MASK}", "t"], "the order of keys stays"


def test_keys_that_become_equal_stay_apart() -> None:
    other = PLAIN[::-1]
    masked = SecretMasker([PLAIN, other]).value({PLAIN: 1, other: 2, MASK: 3})
    assert sorted(masked.values()) == [1, 2, 3]
    assert not any(secret in key for key in masked for secret in (PLAIN, other))


def test_a_secret_that_begins_with_another_is_masked_whole() -> None:
    assert SecretMasker([PLAIN, PLAIN + "-long"]).text(f"{PLAIN}-long") == MASK


def test_short_values_are_no_secrets() -> None:
    masker = SecretMasker(["none", "x", "", "1234567"])
    assert not masker
    assert masker.text("none of it, 1234567") == "none of it, 1234567"
    assert SecretMasker(["12345678"]).text("a 12345678 b") == f"a {MASK} b"


def test_no_secret_in_its_own_repr() -> None:
    assert "sk-" not in repr(SecretMasker([PLAIN]))


def test_the_environment_loses_what_holds_a_key() -> None:
    environment = {
        "PATH": "/bin",
        "OPENAI_API_KEY": PLAIN,
        "URL": f"https://u:{PLAIN}@host/",
        "B64": base64.b64encode(PLAIN.encode()).decode(),
    }
    assert SecretMasker([PLAIN]).scrub_environment(environment) == {"PATH": "/bin"}
    assert SecretMasker([]).scrub_environment(environment) == environment
    assert len(environment) == 4


def test_nesting_up_to_the_limit_and_beyond() -> None:
    def nest(levels: int, inner: object) -> object:
        for _ in range(levels):
            inner = [inner]
        return inner

    masker = SecretMasker([PLAIN])
    assert masker.value(nest(512, PLAIN)) == nest(512, MASK)
    for levels in (513, 20_000):
        with pytest.raises(SerializationError, match="512"):
            masker.value(nest(levels, PLAIN))
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(SerializationError, match="512"):
        masker.value(cycle)


@given(
    before=st.text(alphabet="sk-pro 0", max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    after=st.text(max_size=9),
)
def test_a_stream_masks_what_is_cut_in_pieces(before: str, cuts: list[int], after: str) -> None:
    masker = SecretMasker([PLAIN])
    text = f"{before}{PLAIN}{after}{PLAIN[:20]}"
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    stream = masker.stream()
    pieces = [stream.feed(text[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) + stream.end() == masker.text(text)
    assert not any(PLAIN in piece for piece in pieces)
    assert stream.end() == ""


def test_a_stream_holds_back_only_what_may_be_a_key() -> None:
    stream = SecretMasker([PLAIN]).stream()
    assert stream.feed("Hello wor") == "Hello wor"
    assert stream.feed("ld sk-p") == "ld "
    assert stream.feed("y") == "sk-py"
    assert SecretMasker([]).stream().feed("sk-p") == "sk-p"
