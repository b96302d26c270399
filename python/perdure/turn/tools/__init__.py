"""Tools that a model may use: read, write, edit, ls, glob, grep, bash, and the user's Python functions."""

from __future__ import annotations

from .box import ToolBox
from .types import Masker, ToolOutcome, ToolSpec

__all__ = ["Masker", "ToolBox", "ToolOutcome", "ToolSpec"]
