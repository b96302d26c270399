"""JSON in and out with the fidelity rules of docs/format.md, on the standard library's `json`.

Writing is one `json` call and a few quick searches in its result. They only tell that something *may* be
wrong, and the value itself is walked then: the usual message costs what `json` costs.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from perdure.errors import SerializationError, SessionCorruptError

MAX_DEPTH = 512
MAX_INT_DIGITS = 4300

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# What stands for itself in the text that `json` writes but is to be escaped; it can only be inside of strings
# there.
_TO_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_C1_CONTROLS = re.compile(rb"\xc2[\x80-\x9f]")
# What `json` makes of a key that is a number, a bool or None. A string may look the same: the walk decides.
# It begins with what all have in common and looks back from there, since `re` is fast at finding plain text
# only.
_MAYBE_OTHER_KEY = re.compile(r'": (?:(?<=[0-9]": )|(?<="true": )|(?<="false": )|(?<="null": ))')
_MAYBE_LONG_INT = re.compile(r"[0-9]{4301}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', re.DOTALL)

_LIMIT = 10**MAX_INT_DIGITS

ADVICE = "the file was left as it is: restore it from a backup, or move it away"


def encode(value: Any, path: str) -> str:
    """The value as JSON text, for `to_bytes`. `path`: its place in the session, for `SerializationError`."""
    try:
        text = _encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        refuse(value, path)
        raise SerializationError(f"{path}: cannot be written as JSON: {error}", path=path) from error
    if (
        text.count("{") + text.count("[") > MAX_DEPTH
        or _MAYBE_OTHER_KEY.search(text)
        or (len(text) > MAX_INT_DIGITS and _may_have_long_ints() and _MAYBE_LONG_INT.search(text))
    ):
        refuse(value, path)
    return text


def to_bytes(text: str) -> bytes:
    """JSON text as UTF-8, with the escapes that the format wants and `json` does not write."""
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        data = b"\x7f"
    if (
        b"\x7f" in data
        or b"\xe2\x80\xa8" in data
        or b"\xe2\x80\xa9" in data
        or (b"\xc2" in data and _C1_CONTROLS.search(data))
    ):
        data = _TO_ESCAPE.sub(lambda m: f"\\u{ord(m[0]):04x}", text).encode()
    return data


def _may_have_long_ints() -> bool:
    """Whether somebody lifted Python's own limit, which is the same as ours."""
    limit: int = getattr(sys, "get_int_max_str_digits", lambda: 0)()
    return limit != MAX_INT_DIGITS


def refuse(value: Any, path: str) -> None:
    """Raise `SerializationError` for the first thing in the value that cannot be written; return if none."""
    open_ids: list[int] = []
    stack: list[tuple[Iterator[tuple[str, Any]], str]] = [(iter([("", value)]), path)]
    while stack:
        children, parent = stack[-1]
        step = next(children, None)
        if step is None:
            stack.pop()
            if open_ids:
                open_ids.pop()
            continue
        part, child = step
        here = parent + part
        if child is None or isinstance(child, (str, bool)):
            continue
        if isinstance(child, int):
            if not -_LIMIT < child < _LIMIT:
                _fail(here, f"an integer of more than {MAX_INT_DIGITS} digits")
        elif isinstance(child, float):
            if not math.isfinite(child):
                _fail(here, "NaN or Infinity, which JSON does not have")
        elif isinstance(child, (dict, list, tuple)):
            if id(child) in open_ids:
                _fail(here, f"a cycle: this {type(child).__name__} is inside of itself")
            if len(open_ids) >= MAX_DEPTH:
                _fail(here, f"nested over {MAX_DEPTH} levels deep")
            open_ids.append(id(child))
            stack.append((_members(child, here) if isinstance(child, dict) else _items(child), here))
        else:
            _fail(here, f"a value of type {type(child).__name__}, which JSON does not have; convert it first")


def _members(value: dict[Any, Any], here: str) -> Iterator[tuple[str, Any]]:
    for key, child in value.items():
        if not isinstance(key, str):
            _fail(here, f"a key of type {type(key).__name__}; keys are strings")
        yield key_part(key), child


def _items(value: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    return ((f"[{at}]", child) for at, child in enumerate(value))


def key_part(key: str) -> str:
    """A key as part of a path: `.name`, or `["any text"]` with long ones cut."""
    if len(key) <= 60 and _IDENTIFIER.fullmatch(key):
        return f".{key}"
    return f"[{json.dumps(key if len(key) <= 60 else key[:59] + '…')}]"


def _fail(path: str, what: str) -> NoReturn:
    path = path.lstrip(".")
    raise SerializationError(f"{path}: {what}", path=path)


class _UnreadableNumber:
    """Stands in a decoded value for a number that Python cannot hold."""


def decode(data: bytes, path: str, session_id: str | None = None, first_line: int = 1) -> Any:
    """The JSON value in `data`, or `SessionCorruptError` with line and column in `path`.

    A number that is beyond a double or has over 4,300 digits is `SerializationError` with its place.
    """

    def corrupt(what: str, at: int) -> SessionCorruptError:
        line = data.count(b"\n", 0, at) + first_line
        column = at - (data.rfind(b"\n", 0, at) + 1) + 1
        return SessionCorruptError(
            f"{path}:{line}:{column}: {what}; {ADVICE}",
            session_id=session_id,
            path=path,
            line=line,
            column=column,
        )

    def loads(text: str, float_hook: Any, int_hook: Any) -> Any:
        try:
            return json.loads(text, parse_float=float_hook, parse_int=int_hook, parse_constant=_constant)
        except json.JSONDecodeError as error:
            at = len(text[: error.pos].encode())
            if error.pos >= len(text.rstrip()):
                raise corrupt("ends in the middle of the JSON, it was cut off", at) from None
            raise corrupt(f"not valid JSON ({error.msg})", at) from None
        except _ConstantError:
            found = next(m for m in _STRING_OR_CONSTANT.finditer(text) if m[1])
            at = len(text[: found.start()].encode())
            raise corrupt("NaN or Infinity, which JSON does not have", at) from None
        except RecursionError:
            raise corrupt(f"nested over {MAX_DEPTH} levels deep", 0) from None

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise corrupt("not UTF-8", error.start) from None
    try:
        return loads(text, _float, _int())
    except (ValueError, OverflowError):
        # A number that Python cannot hold. Read again with a mark in its place, to tell where it is.
        place = next(_unreadable(loads(text, _float_or_mark, _int_or_mark), ""), "")
    raise SerializationError(
        f"{path}: {place}: a number that is beyond a double or has over {MAX_INT_DIGITS} digits cannot be "
        "read as a Python number; the file was left as it is",
        path=place,
    )


def too_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether the value has more than `limit` levels of arrays and objects."""
    level, depth = [value], 0
    while level := [
        child
        for parent in level
        if isinstance(parent, (dict, list))
        for child in (parent.values() if isinstance(parent, dict) else parent)
        if isinstance(child, (dict, list))
    ]:
        depth += 1
        if depth >= limit:
            return True
    return False


class _ConstantError(Exception):
    pass


def _constant(name: str) -> NoReturn:
    raise _ConstantError(name)


def _float(token: str) -> float:
    number = float(token)
    if math.isinf(number):
        raise OverflowError
    return number


def _int() -> Any:
    return _checked_int if _may_have_long_ints() else int


def _checked_int(token: str) -> int:
    if len(token.lstrip("-")) > MAX_INT_DIGITS:
        raise OverflowError
    return int(token)


def _float_or_mark(token: str) -> float | _UnreadableNumber:
    number = float(token)
    return _UnreadableNumber() if math.isinf(number) else number


def _int_or_mark(token: str) -> int | _UnreadableNumber:
    try:
        return _checked_int(token)
    except (ValueError, OverflowError):
        return _UnreadableNumber()


def _unreadable(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, _UnreadableNumber):
        yield path.lstrip(".")
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _unreadable(child, path + key_part(key))
    elif isinstance(value, list):
        for at, child in enumerate(value):
            yield from _unreadable(child, f"{path}[{at}]")
