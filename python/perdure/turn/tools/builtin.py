"""The table of the built-in tools: what the model is told, and the check of what it sends."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .files import edit_file, list_directory, read_file, write_file
from .search import glob_files, grep_files
from .shell import run_command
from .types import ToolFailure, ToolSpec

__all__ = ["BUILTIN", "Builtin", "check_arguments", "close_match"]

_PATH = {"type": "string", "description": "Relative to the workspace."}
_START = {"type": "string", "description": "Directory, relative to the workspace; left out: the workspace."}


@dataclass(frozen=True)
class Builtin:
    """A built-in tool. `run` takes a `Call` and the arguments as keywords; `changes` says that it needs
    permission."""

    spec: ToolSpec
    run: Callable[..., Any]
    changes: bool = False


def _tool(
    name: str,
    description: str,
    required: str,
    run: Callable[..., Any],
    *,
    changes: bool = False,
    **properties: Any,
) -> Builtin:
    schema = {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }
    return Builtin(ToolSpec(name, description, schema), run, changes)


def _integer(description: str, default: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "default": default, "description": description}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "default": False, "description": description}


BUILTIN: dict[str, Builtin] = {
    tool.spec.name: tool
    for tool in (
        _tool(
            "read",
            "Read a text file. Long files come in pieces; the last line says how to go on.",
            "path",
            read_file,
            path=_PATH,
            offset=_integer("First line, counted from 1.", 1),
            limit=_integer("Number of lines.", 2000),
        ),
        _tool(
            "write",
            "Create a file or replace its whole content. Missing directories are created.",
            "path content",
            write_file,
            changes=True,
            path=_PATH,
            content={"type": "string", "description": "The whole new content."},
        ),
        _tool(
            "edit",
            "Replace a piece of text in a file. The old text must occur once, or replace_all be true.",
            "path old new",
            edit_file,
            changes=True,
            path=_PATH,
            old={"type": "string", "description": "The text as it is in the file, white space included."},
            new={"type": "string", "description": "What to put in its place."},
            replace_all=_flag("Replace every occurrence."),
        ),
        _tool("ls", "List a directory.", "", list_directory, path=_START),
        _tool(
            "glob",
            "Find files by name. * stands for anything within a name, ** for any number of directories.",
            "pattern",
            glob_files,
            pattern={"type": "string", "description": 'For example "**/*.py".'},
            path=_START,
        ),
        _tool(
            "grep",
            "Find lines in text files by a regular expression (Python syntax). Gives path:line:text.",
            "pattern",
            grep_files,
            pattern={"type": "string", "description": "The regular expression."},
            path={**_PATH, "description": "File or directory, relative to the workspace."},
            glob={"type": "string", "description": 'Only files of this name pattern, for example "*.py".'},
            ignore_case=_flag("Upper and lower case are the same."),
        ),
        _tool(
            "bash",
            "Run a shell command in the workspace. There is no input, and whatever it leaves running in the "
            "background is ended with it.",
            "command",
            run_command,
            changes=True,
            command={"type": "string", "description": "The command line."},
            timeout={
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Seconds, to shorten the limit.",
            },
        ),
    )
}

_KINDS = {"string": "a string", "integer": "an integer", "number": "a number", "boolean": "true or false"}


def close_match(name: str, names: Any) -> str:
    """ "; did you mean 'X'?", or a full stop."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def expected(spec: ToolSpec) -> str:
    """The arguments of a tool in one line, for the model to correct itself."""
    required = spec.parameters.get("required", [])
    parts = []
    for name, schema in spec.parameters.get("properties", {}).items():
        kind = schema.get("type") or "any"
        default = f" = {json.dumps(schema['default'])}" if "default" in schema else ""
        parts.append(f"{name}: {kind}{default}" + ("" if name in required or default else ", optional"))
    return f"{spec.name} takes ({'; '.join(parts)})"


def check_arguments(spec: ToolSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a built-in, checked against its schema. Raises a `ToolFailure` with all that is wrong.

    A null for an optional argument counts as left out, and 5.0 as 5: models write both.
    """
    properties = spec.parameters["properties"]
    required = spec.parameters["required"]
    wrong = []
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in properties:
            wrong.append(f"there is no argument {name!r}{close_match(str(name), properties)}".rstrip("."))
            continue
        if value is None and name not in required:
            continue
        kind = properties[name]["type"]
        if kind == "integer" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _fits(kind, value):
            wrong.append(f"{name} must be {_KINDS[kind]}, not {_kind_of(value)}")
        checked[name] = value
    wrong.extend(f"{name} is missing" for name in required if name not in arguments)
    if wrong:
        raise ToolFailure(f"{'; '.join(wrong)}. {expected(spec)}")
    return checked


def _fits(kind: str, value: Any) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    types: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float)}
    return isinstance(value, types[kind])


def _kind_of(value: Any) -> str:
    names = {
        bool: "a boolean",
        str: "a string",
        int: "an integer",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
