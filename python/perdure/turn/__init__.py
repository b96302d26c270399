"""The turn: a model is called, its tools run, every step is recorded before the next one starts.

`loop` is the turn itself, `models` opens a model, `codec` converts messages, `repair` mends an interrupted
history. `repair` and `messages` need the standard library only, the others the extra `agent`; importing them
without it raises a `ConfigError` that says so.
"""

from __future__ import annotations

import sys

from perdure.errors import ConfigError

__all__ = ["missing_extra"]


def missing_extra(error: ImportError, *, extra: str = "agent") -> ConfigError:
    """The error for an import that failed because an optional package is absent or too old.

    The message names the package and says what needs it, because sessions themselves work without the extra.
    """
    if sys.version_info < (3, 11):
        return ConfigError("a model needs Python 3.11 or later; sessions without turns work on 3.10 too")
    wanted = error.name or "a package"
    return ConfigError(
        f"a model needs the extra {extra!r}, of which {wanted} cannot be imported: "
        f"run `pip install -U 'perdure[{extra}]'`"
    )
