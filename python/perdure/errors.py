"""Every error that perdure raises. All derive from `PerdureError`.

The classes live in Python so that a user can read them; the Rust core raises the very same classes.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "ConfigError",
    "InvalidSessionIdError",
    "ModelError",
    "PerdureError",
    "SerializationError",
    "SessionBusyError",
    "SessionConflictError",
    "SessionCorruptError",
    "SessionExistsError",
    "SessionLockedError",
    "SessionNotFoundError",
    "StoreError",
    "ToolRoundsError",
]


class PerdureError(Exception):
    """Root of every error that perdure raises on purpose."""


class ConfigError(PerdureError):
    """The configuration or the options are wrong, or something they name is missing.

    `path`, `line`, `column` (1-based) tell where in a config file, `option` which option; each may be None.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
        option: str | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.line = line
        self.column = column
        self.option = option

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        message = super().__str__()
        return f"{where}: {message}" if where else message


class _SessionError(PerdureError):
    """Common part: the session's id, as far as it is known."""

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class SessionNotFoundError(_SessionError, LookupError):
    """No session has this id. `close_ids` names the stored ids that look most like it."""

    def __init__(self, message: str, *, session_id: str | None = None, close_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message, session_id=session_id)
        self.close_ids = close_ids


class SessionExistsError(_SessionError):
    """A session with this id (or one whose file name differs only in case) is stored already."""


class SessionConflictError(_SessionError):
    """Somebody else changed or deleted the stored session since this copy of it was loaded or saved.

    `expected` and `found` are revisions; `found` is None when nothing is stored any more. What to do: `reload()`
    and apply the change again, `fork` to keep both, or `save(force=True)` to overwrite knowingly.
    """

    def __init__(
        self,
        message: str,
        *,
        session_id: str | None = None,
        expected: int | None = None,
        found: int | None = None,
    ) -> None:
        super().__init__(message, session_id=session_id)
        self.expected = expected
        self.found = found


class SessionLockedError(_SessionError):
    """Another process holds the session's lock. `pid`, `host`, `since` (Unix seconds) tell who, where known."""

    def __init__(
        self,
        message: str,
        *,
        session_id: str | None = None,
        pid: int | None = None,
        host: str | None = None,
        since: int | None = None,
    ) -> None:
        super().__init__(message, session_id=session_id)
        self.pid = pid
        self.host = host
        self.since = since


class SessionBusyError(_SessionError):
    """A turn is running: `append`, `rewind` and fork have to wait until it is over."""


class SessionCorruptError(_SessionError):
    """A session's file is damaged. It is never overwritten.

    `path` is the file, `line` and `column` (1-based, column in bytes) the place, where known.
    """

    def __init__(
        self,
        message: str,
        *,
        session_id: str | None = None,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message, session_id=session_id)
        self.path = path
        self.line = line
        self.column = column


class InvalidSessionIdError(PerdureError, ValueError):
    """A session id is not a string of 1 to 4,096 characters without NUL."""


class SerializationError(PerdureError, TypeError):
    """A value cannot be written as JSON, or a stored value cannot be turned into a Python object.

    `path` names the place, such as `messages[3].content[0].input.when`.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class StoreError(PerdureError, OSError):
    """A store could not read or write. `errno` and `filename` are set where the system gave them."""

    def __init__(self, message: str, *, errno: int | None = None, filename: str | None = None) -> None:
        # OSError with one argument keeps the message; errno and filename are set beside it.
        super().__init__(message)
        self.errno: Any = errno
        self.filename: Any = filename

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else os.strerror(self.errno or 0)


class ModelError(PerdureError):
    """The model's server could not be reached, refused, failed or broke off in the middle.

    `status` is the HTTP status where there was one. Finished steps of the turn stay in the session.
    """

    def __init__(self, message: str, *, model: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.status = status


class ToolRoundsError(PerdureError):
    """A turn used up `max_tool_rounds`. Its steps are kept; `continue_turn()` goes on with a fresh allowance."""
