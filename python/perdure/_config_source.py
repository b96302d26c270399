"""The text of a configuration: reading the file, parsing it, and saying where in it something stands."""

from __future__ import annotations

import bisect
import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from perdure._checks import snake_case, unknown_name
from perdure.errors import ConfigError

LARGEST_CONFIG = 256 * 1024
"""Bytes of configuration that are read at most."""

Check = Callable[[object, str], Any]
Steps = tuple["str | int", ...]


class Source:
    """One configuration text: parsed, with the means to say where in it something stands."""

    def __init__(self, text: str, form: str, path: str | None) -> None:
        from perdure._core import parse_config

        self.path = path
        self.ignored: list[str] = []
        self._text = text
        self._is_json = form == "json"
        self._positions: dict[Steps, tuple[int, int, str | None]] = {}
        try:
            self.tree = parse_config(text, form, self._positions)
        except ConfigError as error:
            error.path = path
            raise
        except UnicodeEncodeError:
            raise ConfigError("the text holds a lone surrogate, which no file can hold", path=path) from None

    def place(self, where: Steps) -> tuple[int, int] | None:
        """Line and column of the key at `where`, or of the nearest thing around it."""
        if self._is_json:
            return _json_place(self._text, where)
        for length in range(len(where), 0, -1):
            line, column, _ = self._positions.get(where[:length], (0, 0, None))
            if line:
                return line, column
        return None

    def variable(self, where: Steps) -> str | None:
        """The variable, if the value at `where` is `env("NAME")` without a default."""
        return self._positions.get(where, (0, 0, None))[2]

    def refuse(self, where: Steps, message: str, option: str | None) -> NoReturn:
        line, column = self.place(where) or (None, None)
        raise ConfigError(message, path=self.path, line=line, column=column, option=option) from None

    def fields(
        self, value: object, where: Steps, kind: str, known: Iterable[str], ignored: Iterable[str] = ()
    ) -> dict[str, tuple[Any, Steps]]:
        """The fields of an object under their snake_case names, each with its path; refuses unknown ones."""
        if not isinstance(value, dict):
            self.refuse(where, f"{kind} must be a block or an object, not {type(value).__name__}", kind)
        known, ignored = frozenset(known), frozenset(ignored)
        fields: dict[str, tuple[Any, Steps]] = {}
        for key, item in value.items():
            name, inner = snake_case(key), (*where, key)
            if name in ignored:
                self.ignored.append(name)
            elif name not in known:
                self.refuse(inner, unknown_name("key", key, known, f" in {kind}"), key)
            elif name in fields:
                self.refuse(inner, f"{name} is given twice, as {fields[name][1][-1]} and as {key}", name)
            else:
                fields[name] = (item, inner)
        return fields

    def checked(self, fields: Mapping[str, tuple[Any, Steps]], checks: Mapping[str, Check]) -> dict[str, Any]:
        """The fields that `checks` knows and that are not null, each checked."""
        values: dict[str, Any] = {}
        for name, check in checks.items():
            value, where = fields.get(name, (None, ()))
            if name not in fields:
                continue
            variable = self.variable(where)
            if name in ("api_key", "base_url"):
                # Only needed when a model is: until then a session must open without it.
                values[f"{name}_variable"] = variable
                value = value if not isinstance(value, str) or value.strip() else None
            elif value is None and variable is not None:
                hint = f'set it, or give a default: env("{variable}", null)'
                self.refuse(where, f"{name}: the environment variable {variable} is not set; {hint}", name)
            if value is not None:
                try:
                    values[name] = check(value, name)
                except ConfigError as error:
                    self.refuse(where, str(error), name)
        return values

    def items(self, fields: Mapping[str, tuple[Any, Steps]], name: str) -> Sequence[tuple[Any, Steps]]:
        """The blocks `name`: a list, or one of them by itself."""
        value, where = fields.get(name, (None, ()))
        if value is None:
            return ()
        if isinstance(value, list):
            return [(item, (*where, index)) for index, item in enumerate(value)]
        return [(value, where)]


def is_path(source: str) -> bool:
    if "\n" not in source and source.lower().endswith((".hcl", ".acl", ".json")):
        return True
    if not re.search(r"[\n\r{}=]", source):
        return True
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # too long, a NUL
        return False


def read_file(path: str) -> str:
    if not path.strip():
        raise ConfigError("the configuration is empty; give a path, or HCL or JSON text")

    def refuse(message: str, line: int | None = None, column: int | None = None) -> NoReturn:
        raise ConfigError(message, path=path, line=line, column=column) from None

    try:
        # O_NONBLOCK: opening a FIFO must not wait for somebody who writes to it.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
                refuse(f"the configuration cannot be read: it is {kind}")
            data = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        if error.errno == errno.ENOENT:
            refuse("there is no such configuration file")
        refuse(f"the configuration cannot be read: {os.strerror(error.errno or 0)}")
    except ValueError:
        refuse("the path of the configuration holds a NUL character")
    if len(data) > LARGEST_CONFIG:
        refuse(f"the configuration is larger than {LARGEST_CONFIG} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - before.rfind(b"\n")
        refuse("the configuration is not valid UTF-8", before.count(b"\n") + 1, column)


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def _json_place(text: str, where: Steps) -> tuple[int, int] | None:
    """Line and column of the key at `where` in a valid JSON text, or of the nearest thing around it."""
    best: tuple[int, int] | None = None  # length of the path that was found, offset
    path: list[str | int] = []  # for each open container the key or index that is being read
    key_comes = False
    for token in _JSON_TOKEN.finditer(text):
        word = token.group()
        is_key = key_comes and word[0] == '"'
        if is_key:
            path[-1] = json.loads(word)
        on_the_way = (is_key or word == "{") and path and tuple(path) == where[: len(path)]
        # Of keys that occur twice the last one counts, as for the parser.
        if on_the_way and (best is None or len(path) > best[0] or (is_key and len(path) == best[0])):
            best = (len(path), token.start())
        if word == "{":
            path.append("")
            key_comes = True
        elif word == "[":
            path.append(0)
            key_comes = False
        elif word in ("}", "]"):
            path.pop()
        elif word == ",":
            key_comes = isinstance(path[-1], str)
            if isinstance(last := path[-1], int):
                path[-1] = last + 1
        else:
            key_comes = False
    if best is None:
        return None
    lines = [0, *(end.end() for end in re.finditer("\n", text))]
    line = bisect.bisect_right(lines, best[1])
    return line, best[1] - lines[line - 1] + 1
