"""The tools of one session: which there are, who may run them, and running them."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError

from .builtin import BUILTIN, Builtin, check_arguments, close_match
from .files import Call
from .functions import FunctionTool
from .output import bounded, printable, well_formed
from .paths import Workspace
from .types import Masker, ToolFailure, ToolOutcome, ToolSpec
from .worker import CancelToken, TimedOut, in_thread

__all__ = ["ToolBox"]

Confirm = Callable[[str, dict[str, Any]], "bool | Awaitable[bool]"]

# Tools that watch the time themselves get this much longer before their thread is given up, in seconds.
_OWN_CLOCK = {"bash": 10.0, "grep": 10.0}


class ToolBox:
    """The tools that a model may use in a workspace.

    workspace   the directory that the file tools cannot leave. A command that `bash` runs is not confined
    tools       names of built-in tools and Python functions; None: all built-in tools
    permissive  write, edit, bash and functions with `perdure_confirm = True` run without asking
    confirm     asked otherwise: called with the tool's name and a copy of its input, sync (on a thread of its
                own) or async; the call is allowed if it returns True
    timeout     seconds that one call may take; None: no limit
    max_output  characters of a result; of a longer one the head and the tail are kept
    masker      hides secrets in every result, and takes them out of the environment of commands

    Raises `ConfigError` for a workspace that is no directory, an unknown or doubled tool, and a function that
    cannot be described to a model. Safe to use from several tasks and threads at once.
    """

    def __init__(
        self,
        workspace: str | os.PathLike[str],
        *,
        tools: Sequence[str | Callable[..., Any]] | None = None,
        permissive: bool = False,
        confirm: Confirm | None = None,
        timeout: float | None = 120.0,
        max_output: int = 30_000,
        masker: Masker | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"the time-out of tools must be over 0 seconds, not {timeout!r}", option="tool_timeout")
        if max_output < 200:
            raise ConfigError(f"max_output must be at least 200 characters, not {max_output!r}", option="max_output")
        self._permissive = permissive
        self._confirm = confirm
        self._timeout = timeout
        self._max_output = max_output
        self._masker = masker
        self._tools = _collect(tools)
        # Without a built-in tool no file is touched, and the workspace may even be gone.
        wants_files = any(isinstance(tool, Builtin) for tool in self._tools.values())
        self._workspace = Workspace(workspace) if wants_files else None

    @property
    def workspace(self) -> Path | None:
        """The real path of the workspace; None if there is no built-in tool."""
        return self._workspace.root if self._workspace else None

    def names(self) -> tuple[str, ...]:
        """The tools' names, in the order in which the model is told of them."""
        return tuple(self._tools)

    def definitions(self) -> list[ToolSpec]:
        """What the model is told. Each call gives a copy of its own."""
        return [copy.deepcopy(tool.spec) for tool in self._tools.values()]

    async def run(self, name: str, arguments: Mapping[str, Any], *, tool_use_id: str) -> ToolOutcome:
        """Run one call. Whatever goes wrong is told to the model; only cancellation and exit come out as
        exceptions.

        On cancellation the tool's processes are ended first.
        """
        try:
            content, failed = await self._run(name, arguments)
        except ToolFailure as failure:
            content, failed = str(failure), True
        except TimedOut:
            content, failed = self._too_long(name), True
        except OSError as error:
            content, failed = _system_error(error, arguments), True
        except Exception as error:
            content, failed = f"{type(error).__name__}: {_text_of(error)}", True
        try:
            content = self._mask(content)
        except Exception as error:
            # Rather nothing than an unmasked text.
            content, failed = f"the result is withheld: masking it failed with {type(error).__name__}", True
        return ToolOutcome(bounded(well_formed(content), self._max_output), failed)

    async def _run(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        tool = self._tools.get(name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            raise ToolFailure(f"there is no tool {name!r}{close_match(str(name), self._tools)} Tools: {known}")
        if not isinstance(arguments, Mapping):
            raise ToolFailure(f"the arguments of {name} must be a JSON object, not {type(arguments).__name__}")
        if isinstance(tool, FunctionTool):
            checked = tool.check(arguments)
            if tool.needs_confirmation:
                await self._allow(name, arguments)
            return await tool.run(checked, self._timeout), False
        checked = check_arguments(tool.spec, arguments)
        if tool.changes:
            await self._allow(name, checked)
        return await self._run_builtin(name, tool, checked)

    async def _run_builtin(self, name: str, tool: Builtin, arguments: dict[str, Any]) -> tuple[str, bool]:
        assert self._workspace is not None
        token = CancelToken()
        call = Call(self._workspace, self._max_output, self._mask, self._timeout, token, self._environment)
        limit = None if self._timeout is None else self._timeout + _OWN_CLOCK.get(name, 0.0)
        result = await in_thread(lambda: tool.run(call, **arguments), timeout=limit, token=token)
        if isinstance(result, str):
            return result, False
        text, failed = result
        return str(text), bool(failed)

    async def _allow(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Raises `ToolFailure` unless the call is allowed."""
        if self._permissive:
            return
        confirm = self._confirm
        if confirm is None:
            raise ToolFailure(
                f"{name} is not allowed in this session. The user can allow it with the option "
                "permissive=True, or decide on each call with confirm=..."
            )
        asked = copy.deepcopy(dict(arguments))
        try:
            if inspect.iscoroutinefunction(confirm) or inspect.iscoroutinefunction(type(confirm).__call__):
                answer: Any = confirm(name, asked)
            else:
                # On a thread: it may well wait for a person at the keyboard.
                answer = await in_thread(lambda: confirm(name, asked))
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:
            # The type only: the text may hold anything.
            raise ToolFailure(f"{name} was not run: asking for permission failed with {type(error).__name__}") from None
        if answer is not True:
            raise ToolFailure(
                f"{name} was not run: the user refused this call. Do not repeat it; ask or go another way"
            )

    def _mask(self, text: str) -> str:
        return self._masker.text(text) if self._masker is not None else text

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        return dict(self._masker.scrub_environment(environment)) if self._masker is not None else environment

    def _too_long(self, name: str) -> str:
        text = f"{name} took more than {self._timeout:g} s and was given up"
        if isinstance(self._tools.get(name), FunctionTool):
            return f"{text}; it may still be running, its result is dropped"
        return text


def _collect(tools: Sequence[str | Callable[..., Any]] | None) -> dict[str, Builtin | FunctionTool]:
    if tools is None:
        return dict(BUILTIN)
    if isinstance(tools, str) or not isinstance(tools, (list, tuple, set, frozenset, Sequence)):
        raise ConfigError(f"tools must be a list of names and functions, not {type(tools).__name__}", option="tools")
    found: dict[str, Builtin | FunctionTool] = {}
    for item in tools:
        tool: Builtin | FunctionTool
        if isinstance(item, str):
            if item not in BUILTIN:
                hint = close_match(item, BUILTIN)
                raise ConfigError(
                    f"there is no built-in tool {item!r}{hint} Built-in are: {', '.join(BUILTIN)}",
                    option="tools",
                )
            name, tool = item, BUILTIN[item]
        else:
            tool = FunctionTool(item)
            name = tool.spec.name
            if name in BUILTIN:
                raise ConfigError(
                    f"the function {name!r} has the name of a built-in tool; give it another name",
                    option="tools",
                )
        if name in found:
            raise ConfigError(f"the tool {name!r} is named twice", option="tools")
        found[name] = tool
    return found


def _system_error(error: OSError, arguments: Any) -> str:
    path = arguments.get("path") if isinstance(arguments, Mapping) else None
    where = f": {printable(path)}" if isinstance(path, str) else ""
    return f"{type(error).__name__}{where}: {error.strerror or _text_of(error)}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be shown)"
