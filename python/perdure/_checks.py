"""Checks of single values, for agent.hcl and `SessionOptions` alike.

Each check takes the value and the name of the option, and returns the value or raises `ConfigError`. Messages
repeat numbers and misspelt names only: any other string may be a key.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from perdure.errors import ConfigError

BUILTIN_TOOLS = ("read", "write", "edit", "ls", "glob", "grep", "bash")
"""The names of the built-in tools."""

_STORE_METHODS = ("save", "load", "delete", "list", "exists")


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
        raise ConfigError(f"{option}: there is no built-in tool {shorten(value)}; {there_are}{hint}", option=option)
    return value


def check_directory(value: object, option: str) -> str:
    """The path of a directory, as a str."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(path := os.fspath(value), str):
        refuse_value(option, "a path", value)
    if not path.strip() or "\0" in path:
        raise ConfigError(f"{option} must be the path of a directory, not empty and without NUL", option=option)
    if "://" in path:
        raise ConfigError(f"{option} takes a directory; a URL goes to session_store", option=option)
    return path


def check_store(value: object, option: str) -> object:
    """A store (whatever has the five methods), or the URL of one."""
    if isinstance(value, str):
        if "://" not in value:
            raise ConfigError(
                f"{option} takes a store or the URL of one; a directory goes to file_session_store",
                option=option,
            )
        return value
    if isinstance(value, os.PathLike):
        raise ConfigError(f"{option} takes a store; a directory goes to file_session_store", option=option)
    if isinstance(value, type):
        raise ConfigError(f"{option} takes a store, not the class {value.__name__}: call it", option=option)
    missing = [name for name in _STORE_METHODS if not callable(getattr(value, name, None))]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(
            f"{option} is no store: {type(value).__name__} has no method {names}; a store has "
            f"{', '.join(_STORE_METHODS)}",
            option=option,
        )
    return value


def _items(value: object, option: str, expected: str) -> tuple[Any, ...]:
    # A str is a sequence, too, and tools="bash" would become four tools.
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        refuse_value(option, expected, value)
    return tuple(value)


def check_tools(value: object, option: str) -> tuple[str | Callable[..., Any], ...]:
    """Names of built-in tools and functions, no name twice."""
    expected = "a sequence of tool names and functions"
    tools = _items(value, option, expected)
    names: set[str] = set()
    for tool in tools:
        if isinstance(tool, str):
            name = check_tool_name(tool, option)
        elif callable(tool):
            name = getattr(tool, "__name__", type(tool).__name__)
        else:
            refuse_value(f"{option}: each item", "the name of a built-in tool or a function", tool)
        if name in names:
            raise ConfigError(f"{option}: there are two tools with the name {name!r}", option=option)
        names.add(name)
    return tools


def check_tags(value: object, option: str) -> tuple[str, ...]:
    """Strings."""
    tags = _items(value, option, "a sequence of strings")
    for tag in tags:
        check_prompt(tag, f"{option}: each item")
    return tags


def check_tasks(value: object, option: str) -> tuple[dict[str, Any], ...]:
    """JSON objects, copied: the options stay what they are when the caller goes on with its own."""
    tasks = _items(value, option, "a sequence of dicts")
    for task in tasks:
        if not isinstance(task, Mapping):
            refuse_value(f"{option}: each item", "a dict", task)
    return tuple(copy.deepcopy(dict(task)) for task in tasks)


def check_callable(value: object, option: str) -> object:
    """Something to call."""
    if not callable(value):
        refuse_value(option, "a function", value)
    return value


def check_redact(value: object, option: str) -> object:
    """A function or False."""
    if value is True:
        raise ConfigError(
            f"{option}=True: there is no built-in redactor; give a function that takes a text and returns "
            "the text to keep (api keys are masked without it)",
            option=option,
        )
    return value if value is False else check_callable(value, option)


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    return f"unknown {kind} {shorten(name)}{where}{suggestion(nearest(snake_case(name), known))}"


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
