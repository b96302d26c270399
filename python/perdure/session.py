"""`Session`: the same as `AsyncSession`, for code without an event loop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from perdure import _loop
from perdure._core import Messages, SessionData
from perdure.async_session import AsyncSession, Prompt
from perdure.errors import SessionBusyError
from perdure.types import SaveReceipt, SendResult, TurnEvent, Usage

__all__ = ["Session"]

_T = TypeVar("_T")


class Session:
    """A session for code without an event loop. Made by `Agent.session` and `.resume_session`.

    What each method does is written at `AsyncSession`. Saving to a sync store happens on the calling thread, with no
    event loop between; turns run on a loop thread of perdure's while the caller waits. Safe to share between threads.
    On a thread that runs an event loop the methods that would block it raise `ConfigError` and name `AsyncSession`.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._turns = threading.Lock()
        # Held while something runs outside of the loop thread. Entered again by a callback that uses the session.
        self._gate = threading.RLock()
        self._in_turn = False
        self._open_in: int | None = None  # the thread that has a stream open and is between two of its events

    def __repr__(self) -> str:
        return repr(self._session).replace("AsyncSession", "Session", 1)

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._session.session_id

    @property
    def data(self) -> SessionData:
        """An independent copy of the session as it is now; O(1)."""
        return self._session.data

    @property
    def workspace(self) -> Path:
        """The directory in which tools work."""
        return self._session.workspace

    @property
    def running(self) -> bool:
        """Whether a turn is under way."""
        return self._session.running

    @property
    def last_save_error(self) -> Exception | None:
        """The error of the last automatic save, None after a save that worked."""
        return self._session.last_save_error

    def history(self) -> Messages:
        """The messages as they are now: an immutable sequence, `len` is free, items are fresh dicts."""
        return self._session.history()

    @property
    def usage(self) -> Usage:
        """Tokens of the whole session."""
        return self._session.usage

    @property
    def tasks(self) -> list[Any]:
        """The task list, a fresh one. Assign a list to change it; it is stored with the next save."""
        return self._session.tasks

    @tasks.setter
    def tasks(self, tasks: Sequence[Any]) -> None:
        self._session.tasks = tasks

    @property
    def tags(self) -> list[str]:
        """Labels that listings show. Assign a list to change them."""
        return self._session.tags

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self._session.tags = tags

    @property
    def name(self) -> str:
        """A title for people. Assign a string to change it; it is stored with the next save."""
        return self._session.name

    @name.setter
    def name(self, name: str) -> None:
        self._session.name = name

    def append(self, *messages: Mapping[str, Any]) -> None:
        """Add messages at the end; see `AsyncSession.append`."""
        _loop.refuse_running_loop("AsyncSession")
        with self._gate:
            if not self._in_turn and self._session._append_in_place(messages):
                return
        self._now(lambda: self._session.append(*messages))

    def rewind(self, to: int) -> None:
        """Keep the first `to` messages; see `AsyncSession.rewind`."""
        self._now(lambda: self._session.rewind(to))

    def save(self, *, force: bool = False) -> SaveReceipt:
        """Store the session as it is now; see `AsyncSession.save`."""
        return self._now(lambda: self._session.save(force=force))

    def reload(self) -> None:
        """Take the stored state; see `AsyncSession.reload`."""
        self._now(self._session.reload)

    def fork(self, new_id: str | None = None, *, at: int | None = None) -> str:
        """Store a copy of this session as it is now under another id; see `AsyncSession.fork`."""
        return self._now(lambda: self._session.fork(new_id, at=at))

    def send(self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None) -> SendResult:
        """Run one turn; see `AsyncSession.send`. Ctrl-C ends it and leaves a valid, saved history."""
        _loop.refuse_running_loop("AsyncSession")
        if history is not None:
            return _loop.run(self._session.send(prompt, history))
        with self._turn():
            return _loop.run(self._session.send(prompt))

    def continue_turn(self) -> SendResult:
        """Finish a turn that was interrupted; see `AsyncSession.continue_turn`."""
        _loop.refuse_running_loop("AsyncSession")
        with self._turn():
            return _loop.run(self._session.continue_turn())

    def stream(
        self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None
    ) -> Generator[TurnEvent, None, None]:
        """The same as `send`, event by event; see `AsyncSession.stream`. Closing the generator ends the turn."""
        _loop.refuse_running_loop("AsyncSession")
        return self._stream(lambda: self._session.stream(prompt, history), aside=history is not None)

    def close(self) -> None:
        """Save what is pending and let go of the session's files; see `AsyncSession.close`."""
        # The model's connections belong to the loop thread.
        self._now(self._session.close, on_loop=self._session._runner is not None)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._now(lambda: self._session.__aexit__(kind, error, trace), on_loop=self._session._runner is not None)

    def _now(self, make: Callable[[], Coroutine[Any, Any, _T]], *, on_loop: bool = False) -> _T:
        """In place, unless a turn is running on the loop thread: then there."""
        _loop.refuse_running_loop("AsyncSession")
        if not on_loop:
            with self._gate:
                if not self._in_turn:
                    return _loop.step(make())
        return _loop.run(make())

    def _stream(
        self, make: Callable[[], AsyncGenerator[TurnEvent, None]], *, aside: bool
    ) -> Generator[TurnEvent, None, None]:
        with contextlib.nullcontext() if aside else self._turn():
            events = _loop.iterate(make())
            try:
                for event in events:
                    if not aside:
                        self._open_in = threading.get_ident()
                    yield event
                    if not aside:
                        self._open_in = None
            finally:
                if not aside:
                    self._open_in = None
                events.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One turn at a time; while it lasts, other calls go to the loop thread too."""
        self._session._refuse_own_tool()
        if self._open_in == threading.get_ident():
            raise SessionBusyError(
                f"a stream of session {self.session_id!r} is open in this thread: iterate to its end, or close it",
                session_id=self.session_id,
            )
        with self._turns:
            try:
                with self._gate:
                    self._in_turn = True
                yield
            finally:
                with self._gate:
                    self._in_turn = False
