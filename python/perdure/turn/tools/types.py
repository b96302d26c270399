"""The plain values of the tool layer and the one exception that tools use among themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Masker", "ToolFailure", "ToolOutcome", "ToolSpec"]


@dataclass(frozen=True)
class ToolSpec:
    """What a model is told about a tool. `parameters` is the JSON schema of its arguments, always an
    object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ToolOutcome:
    """What the model is told about one call. With `is_error` the content says what went wrong and what to
    do."""

    content: str
    is_error: bool = False


class Masker(Protocol):
    """What hides secrets: in texts, and in the environment that a command gets."""

    def text(self, text: str, /) -> str: ...

    def scrub_environment(self, environment: Mapping[str, str], /) -> dict[str, str]: ...


class ToolFailure(Exception):
    """A tool could not do what it was asked. The text is meant for the model, as it is."""
