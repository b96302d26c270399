"""perdure: durable sessions for AI agents.

Every finished step of a conversation is on disk before the next one starts. Start with `Agent.create("agent.hcl")`
and `SessionOptions`; the README has an example.
"""

from __future__ import annotations

import atexit as _atexit
import warnings as _warnings

from perdure import _core
from perdure._core import FileSessionStore, Messages, SessionData, SessionDelta
from perdure.agent import Agent
from perdure.async_agent import AsyncAgent
from perdure.async_session import AsyncSession
from perdure.errors import (
    ConfigError,
    InvalidSessionIdError,
    ModelError,
    PerdureError,
    SerializationError,
    SessionBusyError,
    SessionConflictError,
    SessionCorruptError,
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
    ToolRoundsError,
)
from perdure.options import SessionOptions
from perdure.session import Session
from perdure.stores.memory import MemorySessionStore
from perdure.stores.protocol import SessionStore
from perdure.stores.python_file import PythonFileSessionStore
from perdure.types import SaveReceipt, SendResult, SessionInfo, StoreStats, TurnEvent, Usage

__version__ = _core.__version__

__all__ = [
    "Agent",
    "AsyncAgent",
    "AsyncSession",
    "ConfigError",
    "FileSessionStore",
    "InvalidSessionIdError",
    "MemorySessionStore",
    "Messages",
    "ModelError",
    "PerdureError",
    "PythonFileSessionStore",
    "SaveReceipt",
    "SendResult",
    "SerializationError",
    "Session",
    "SessionBusyError",
    "SessionConflictError",
    "SessionCorruptError",
    "SessionData",
    "SessionDelta",
    "SessionExistsError",
    "SessionInfo",
    "SessionLockedError",
    "SessionNotFoundError",
    "SessionOptions",
    "SessionStore",
    "StoreError",
    "StoreStats",
    "ToolRoundsError",
    "TurnEvent",
    "Usage",
    "__version__",
]

_atexit.register(_core.close_all)

if _core.build_profile == "debug":
    _warnings.warn("perdure is a debug build: it is slow", RuntimeWarning, stacklevel=2)
