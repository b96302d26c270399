"""Keeps api keys out of everything that perdure writes, shows or hands to a tool."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

from perdure.errors import SerializationError

__all__ = ["MASK", "SHORTEST_SECRET", "MaskedStream", "SecretMasker"]

MASK = "[api key masked]"
"""What stands where a key stood."""

SHORTEST_SECRET = 8
"""Values of fewer characters are not masked.

Real keys are 20 characters and longer. What is shorter is a placeholder for a server that wants no key
(`none`, `EMPTY`, `x`), and masking it would tear ordinary words out of the history. `load_config` says so in
the log.
"""

_DEEPEST = 512  # what a session file accepts, too

_T = TypeVar("_T")


class SecretMasker:
    """Replaces known secrets wherever they appear.

    They are found as they are, URL-encoded, JSON-escaped and in base64, there also inside a longer encoded
    text such as a Basic authorization header. Values of fewer than `SHORTEST_SECRET` characters are ignored.
    Only whole values are found: masking is no help against somebody who takes a key apart.
    """

    __slots__ = ("_pattern", "_words")

    def __init__(self, values: Iterable[str] = ()) -> None:
        words: set[str] = set()
        for value in values:
            if len(value) >= SHORTEST_SECRET:
                words |= _forms(value)
        # Longest first: a form that begins with a shorter one must win.
        self._words = tuple(sorted(words, key=lambda word: (-len(word), word)))
        self._pattern = re.compile("|".join(map(re.escape, self._words))) if words else None

    def __bool__(self) -> bool:
        """Whether there is anything to mask."""
        return self._pattern is not None

    @property
    def words(self) -> list[str]:
        """What is masked, in all its forms."""
        return list(self._words)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'active' if self else 'nothing to mask'})"

    def text(self, text: str) -> str:
        """`text` with every secret replaced by `MASK`; the very same object if there is none in it."""
        if self._pattern is None or self._pattern.search(text) is None:
            return text
        return self._pattern.sub(MASK, text)

    def value(self, value: _T) -> _T:
        """`value` with every secret in its strings replaced: in dicts (keys, too), lists and tuples.

        Nothing is changed in place, and what holds no secret is returned as the very same object. Other types
        are left alone. Raises `SerializationError` where nesting is deeper than 512, as the stores do.
        """
        if self._pattern is None:
            return value
        masked: _T = self._walk(value, 0)
        return masked

    def stream(self) -> MaskedStream:
        """A masker for one text that arrives in pieces, so that a key cut in two is found as well."""
        return MaskedStream(self)

    def scrub_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """A copy of `environment` (such as `os.environ`) without the variables that hold a secret."""
        pattern = self._pattern
        return {name: value for name, value in environment.items() if pattern is None or pattern.search(value) is None}

    def _walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if not isinstance(value, (dict, list, tuple)):
            return value
        if depth >= _DEEPEST:
            raise SerializationError(f"a value is nested deeper than {_DEEPEST} levels")
        # Loops, not comprehensions: one interpreter frame a level, and 512 levels fit the recursion limit.
        changed = False
        if isinstance(value, dict):
            fields: dict[Any, Any] = {}
            for key, item in value.items():
                new_key = self.text(key) if isinstance(key, str) else key
                new_item = self._walk(item, depth + 1)
                if new_key is not key:
                    new_key = _unused(new_key, value, fields)
                    changed = True
                changed = changed or new_item is not item
                fields[new_key] = new_item
            return fields if changed else value
        items: list[Any] = []
        for item in value:
            new_item = self._walk(item, depth + 1)
            changed = changed or new_item is not item
            items.append(new_item)
        if not changed:
            return value
        return tuple(items) if isinstance(value, tuple) else items

    def _held(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a secret."""
        longest = min(len(text), len(self._words[0]) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            for word in self._words:
                if word.startswith(tail):
                    return length
        return 0


class MaskedStream:
    """Masks a text that comes in pieces; holds back what may be the beginning of a secret."""

    __slots__ = ("_masker", "_rest")

    def __init__(self, masker: SecretMasker) -> None:
        self._masker = masker
        self._rest = ""

    def feed(self, piece: str) -> str:
        """Take the next piece; gives back what can be shown by now, perhaps nothing."""
        pattern = self._masker._pattern
        if pattern is None:
            return piece
        text = self._rest + piece
        shown: list[str] = []
        end = 0
        for match in pattern.finditer(text):
            shown += (text[end : match.start()], MASK)
            end = match.end()
        rest = text[end:]
        held = self._masker._held(rest)
        shown.append(rest[: len(rest) - held])
        self._rest = rest[len(rest) - held :]
        return "".join(shown)

    def end(self) -> str:
        """The text is over: gives back what was held back."""
        rest, self._rest = self._rest, ""
        return rest


def _unused(key: str, *taken: Mapping[Any, Any]) -> str:
    """Two keys that differ only in their secrets must stay two keys."""
    number, name = 1, key
    while any(name in fields for fields in taken):
        number += 1
        name = f"{key} ({number})"
    return name


def _forms(secret: str) -> set[str]:
    """Every way of writing `secret` that is looked for."""
    data = secret.encode("utf-8", "surrogatepass")
    percent = quote(data, safe="")
    forms = {
        secret,
        percent,
        re.sub("%[0-9A-F]{2}", lambda escape: escape.group().lower(), percent),
        quote(data),
        quote_plus(data),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }
    # A JSON text inside a JSON string, as in a tool call's arguments.
    forms |= {json.dumps(form)[1:-1] for form in forms}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(data).decode("ascii")
        forms |= {whole, whole.rstrip("=")}
        for before in range(3):
            # The characters that depend on the secret alone, when `before` bytes of its first group of three
            # are somebody else's.
            encoded = encode(b"\0" * before + data).decode("ascii")
            first, last = (8 * before + 5) // 6, 8 * (before + len(data)) // 6
            forms.add(encoded[first:last])
    return forms
