"""Checks of single values, for agent.hcl and `SessionOptions` alike.

Each check takes the value and the name of the option, and returns the value or raises `ConfigError`. Messages
repeat numbers and misspelt names only: any other string may be a key.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from perdure.errors import ConfigError

BUILTIN_TOOLS = ("read", "write", "edit", "ls", "glob", "grep", "bash")
"""The names of the built-in tools."""


def shorten(text: str, limit: int = 80) -> str:
    """A quoted string for a message, cut to `limit` characters."""
    return repr(text if len(text) <= limit else f"{text[: limit - 1]}…")


def refuse_value(option: str, expected: str, value: object) -> NoReturn:
    """Raise the `ConfigError` for a value that does not fit."""
    shown = type(value).__name__
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**18):
        shown = repr(value)
    elif value is None:
        shown = "None"
    raise ConfigError(f"{option} must be {expected}, not {shown}", option=option)


def check_bool(value: object, option: str) -> bool:
    """True or False, nothing that only looks like it."""
    if not isinstance(value, bool):
        refuse_value(option, "true or false", value)
    return value


def check_text(value: object, option: str) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        refuse_value(option, "a string", value)
    if not value.strip():
        raise ConfigError(f"{option} must not be empty", option=option)
    return value


def check_prompt(value: object, option: str) -> str:
    """Any string, the empty one too."""
    if not isinstance(value, str):
        refuse_value(option, "a string", value)
    return value


def check_count(value: object, option: str) -> int:
    """A whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse_value(option, "a whole number of at least 1", value)
    return value


def check_number(value: object, option: str) -> float:
    """A finite number, not negative; for times in seconds, too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        refuse_value(option, "a number of at least 0", value)
    try:
        return float(value)
    except OverflowError:
        refuse_value(option, "a number of at least 0", value)


def check_choice(*choices: str) -> Callable[[object, str], str]:
    """A check for one of `choices`."""

    def check(value: object, option: str) -> str:
        expected = " or ".join(json.dumps(choice) for choice in choices)
        if not isinstance(value, str):
            refuse_value(option, expected, value)
        if value not in choices:
            hint = suggestion(nearest(value, choices))
            raise ConfigError(f"{option} must be {expected}, not {shorten(value)}{hint}", option=option)
        return value

    return check


def check_tool_name(value: str, option: str) -> str:
    """The name of a built-in tool."""
    if value not in BUILTIN_TOOLS:
        hint = suggestion(nearest(value, BUILTIN_TOOLS))
        there_are = f"there are: {', '.join(BUILTIN_TOOLS)}"
        raise ConfigError(
            f"{option}: there is no built-in tool {shorten(value)}; {there_are}{hint}", option=option
        )
    return value


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    return f"unknown {kind} {shorten(name)}{suggestion(nearest(snake_case(name), known))}"


def url_secrets(url: str | None) -> tuple[str, ...]:
    """The password in a URL, as it stands there and decoded."""
    try:
        password = urlsplit(url).password if url else None
    except ValueError:
        return ()
    return tuple(dict.fromkeys((password, unquote(password)))) if password else ()


def nearest(name: str, known: Iterable[str]) -> str | None:
    # difflib takes quadratic time; a name that long is no misspelling.
    return next(iter(difflib.get_close_matches(name[:200], list(known), n=1)), None)


def suggestion(name: str | None) -> str:
    return f"; did you mean {name!r}?" if name else ""


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda upper: f"_{upper.group().lower()}", name)
