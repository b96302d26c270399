"""`Session`: the same as `AsyncSession`, for code without an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from perdure import _loop
from perdure._core import Messages, SessionData
from perdure.async_session import AsyncSession, Prompt
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
        self._gate = threading.Lock()  # held while something runs outside of the loop thread
        self._in_turn = False

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
        """The error of the last automatic save, None after one that worked."""
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
        self._now(self._session.append(*messages))

    def rewind(self, to: int) -> None:
        """Keep the first `to` messages; see `AsyncSession.rewind`."""
        self._now(self._session.rewind(to))

    def save(self, *, force: bool = False) -> SaveReceipt:
        """Store the session as it is now; see `AsyncSession.save`."""
        return self._now(self._session.save(force=force))

    def reload(self) -> None:
        """Take the stored state; see `AsyncSession.reload`."""
        self._now(self._session.reload())

    def send(self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None) -> SendResult:
        """Run one turn; see `AsyncSession.send`. Ctrl-C ends it and leaves a valid, saved history."""
        return self._turn(self._session.send(prompt, history), aside=history is not None)

    def continue_turn(self) -> SendResult:
        """Finish a turn that was interrupted; see `AsyncSession.continue_turn`."""
        return self._turn(self._session.continue_turn())

    def stream(
        self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None
    ) -> Generator[TurnEvent, None, None]:
        """The same as `send`, event by event; see `AsyncSession.stream`. Closing the generator ends the turn."""
        _loop.refuse_running_loop("AsyncSession")
        return self._stream(prompt, history)

    def close(self) -> None:
        """Save what is pending and let go of the session's files; see `AsyncSession.close`."""
        if self._session._runner is None:
            self._now(self._session.close())
        else:
            # The model's connections belong to the loop thread.
            _loop.refuse_running_loop("AsyncSession")
            _loop.run(self._session.close())

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _now(self, work: Coroutine[Any, Any, _T]) -> _T:
        """In place, unless a turn is running on the loop thread: then there."""
        try:
            _loop.refuse_running_loop("AsyncSession")
        except BaseException:
            work.close()
            raise
        with self._gate:
            if not self._in_turn:
                return _loop.step(work)
        return _loop.run(work)

    def _turn(self, work: Coroutine[Any, Any, _T], *, aside: bool = False) -> _T:
        try:
            _loop.refuse_running_loop("AsyncSession")
        except BaseException:
            work.close()
            raise
        if aside:
            return _loop.run(work)
        with _InTurn(self):
            return _loop.run(work)

    def _stream(self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None) -> Generator[TurnEvent, None, None]:
        # The turn runs as one task on the loop thread and hands its events over one by one.
        events: queue.SimpleQueue[TurnEvent | None] = queue.SimpleQueue()
        wanted = threading.Semaphore(0)
        stopped = threading.Event()
        failure: list[BaseException] = []

        async def pump() -> None:
            loop = asyncio.get_running_loop()
            stream = self._session.stream(prompt, history)
            try:
                async for event in stream:
                    events.put(event)
                    await loop.run_in_executor(None, wanted.acquire)
                    if stopped.is_set():
                        return
            finally:
                await stream.aclose()

        def work() -> None:
            try:
                if history is not None:
                    _loop.run(pump())
                else:
                    with _InTurn(self):
                        _loop.run(pump())
            except BaseException as error:
                failure.append(error)
            finally:
                events.put(None)

        thread = threading.Thread(target=work, name="perdure-stream", daemon=True)
        thread.start()
        try:
            while True:
                event = events.get()
                if event is None:
                    break
                yield event
                wanted.release()
        finally:
            stopped.set()
            wanted.release()
            thread.join()
        if failure:
            raise failure[0]


class _InTurn:
    """One turn at a time; while it lasts, other calls go to the loop thread too."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session._turns.acquire()
        with self._session._gate:
            self._session._in_turn = True

    def __exit__(self, *_: object) -> None:
        with self._session._gate:
            self._session._in_turn = False
        self._session._turns.release()
