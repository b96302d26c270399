"""Python functions as tools: name, description and schema come from the function itself."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from perdure.errors import ConfigError

from .builtin import expected
from .types import ToolFailure, ToolSpec
from .worker import TimedOut, in_thread

__all__ = ["FunctionTool"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
# How long an async function that is cancelled because its time is over may take to clean up, in seconds.
_SETTLE = 2.0


class FunctionTool:
    """A function that a model may call.

    Raises `ConfigError` (option "tools") for what cannot be described to a model: a lambda, a parameter
    without annotation, *args and **kwargs, an annotation that no JSON schema can be made of; and if the extra
    is missing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        name = _checked_name(function)
        _check_signature(name, function)
        try:
            from pydantic_ai import Tool
            from pydantic_ai.exceptions import UserError
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"Python functions as tools need an extra that is not installed ({error.name} is missing): "
                "pip install 'perdure[agent]'",
                option="tools",
            ) from None
        from pydantic import ValidationError
        from pydantic.errors import PydanticUserError

        self._validation_error: type[Exception] = ValidationError
        try:
            with warnings.catch_warnings():
                # A return type without a schema is fine: the result is written as JSON from what it is.
                warnings.simplefilter("ignore", UserWarning)
                tool: Any = Tool(function, takes_ctx=False)
        except (UserError, PydanticUserError, NameError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the function {name!r} cannot be a tool: {type(error).__name__}: {error}", option="tools"
            ) from error
        schema = tool.function_schema
        self._validate: Callable[..., dict[str, Any]] = schema.validator.validate_python
        description = tool.description or name.replace("_", " ")
        self.spec = ToolSpec(name, description, dict(schema.json_schema))
        self.needs_confirmation = getattr(function, "perdure_confirm", False) is True
        call = function if inspect.isroutine(function) else type(function).__call__
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function wants them. Raises `ToolFailure` that lists what is wrong."""
        try:
            return self._validate(dict(arguments))
        except self._validation_error as error:
            wrong = []
            for item in error.errors(include_url=False, include_context=False, include_input=False):  # type: ignore[attr-defined]
                where = ".".join(str(part) for part in item["loc"])
                wrong.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
            raise ToolFailure(f"{'; '.join(wrong)}. {expected(self.spec)}") from None

    async def run(self, arguments: dict[str, Any], timeout: float | None) -> str:
        """Call the function and write its result as text. Its own exceptions come out as they are."""
        if self._is_async:
            result = await _awaited(self.function(**arguments), timeout)
        else:
            result = await in_thread(lambda: self.function(**arguments), timeout=timeout)
            if inspect.isawaitable(result):
                result = await _awaited(result, timeout)
        return result if isinstance(result, str) else _as_json(self.spec.name, result)


def _checked_name(function: Any) -> str:
    if not callable(function):
        raise ConfigError(
            f"a tool is the name of a built-in or a Python function, not {type(function).__name__}",
            option="tools",
        )
    if isinstance(function, type):
        raise ConfigError(f"the class {function.__name__} cannot be a tool; pass a function", option="tools")
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        what = "a lambda" if name == "<lambda>" else f"an object of type {type(function).__name__}"
        raise ConfigError(
            f"{what} has no name for the model to call it by; write it as a function with def", option="tools"
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the function name {name!r} cannot be a tool's name: ASCII letters, digits and _, at most 64",
            option="tools",
        )
    return name


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        raise ConfigError(
            f"the parameters of {name!r} cannot be found out; wrap it in a function with annotations",
            option="tools",
        ) from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"the function {name!r} takes {parameter}; a tool's parameters must be named one by one",
                option="tools",
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(
                f"the parameter {parameter.name!r} of {name!r} is positional-only; a model passes names",
                option="tools",
            )
        if parameter.annotation is parameter.empty:
            raise ConfigError(
                f"the parameter {parameter.name!r} of {name!r} has no type annotation, "
                "so the model cannot be told what to pass",
                option="tools",
            )


async def _awaited(awaitable: Any, timeout: float | None) -> Any:
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=_SETTLE)
        raise
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_SETTLE)
        if task.done() and not task.cancelled():
            task.exception()  # fetched, so that it is not reported as lost
        raise TimedOut
    return task.result()


def _as_json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        pass
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return to_json(value).decode("utf-8")
    except (PydanticSerializationError, TypeError, ValueError, RecursionError):
        raise ToolFailure(
            f"{name} ran, but what it returned ({type(value).__name__}) cannot be written as JSON; "
            "the function should return a string or plain data"
        ) from None
