"""Blocking calls beside an event loop, on daemon threads.

Not the loop's default executor: a program may have filled that with its own slow work, and it is joined at exit, where
one store that never returns would keep the interpreter from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Workers"]

_T = TypeVar("_T")


class Workers:
    """At most `most` threads that do what they are given in the order in which it came; started when needed."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._threads = self._idle = self._queued = 0

    def submit(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Have `work` done; the future is the running loop's. Cancelling it does not stop the work."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def run() -> None:
            outcome = outcome_of(work)
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        with self._guard:
            self._queued += 1
            self._work.put(run)
            start = self._queued > self._idle and self._threads < self._most
            self._threads += start
        if start:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        return future

    def stop(self) -> None:
        """End the threads once they are through with what they were given; for workers that nobody uses any more.

        Takes no lock: the garbage collector calls this, at any point of any thread.
        """
        for _ in range(self._most):
            self._work.put(None)

    def _serve(self) -> None:
        while True:
            with self._guard:
                self._idle += 1
            run = self._work.get()
            if run is None:
                return
            with self._guard:
                self._idle -= 1
                self._queued -= 1
            run()
            # Not kept until the next one comes: it may hold a session.
            del run


def outcome_of(work: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
    """What `work` gives or raises, in a form that a future takes."""
    try:
        return work(), None
    except StopIteration as error:
        # A future refuses it: in a coroutine it would mean something else.
        wrapped = RuntimeError("a StopIteration was raised")
        wrapped.__cause__ = error
        return None, wrapped
    except BaseException as error:
        return None, error


_all: weakref.WeakSet[Workers] = weakref.WeakSet()


def _after_fork() -> None:
    # A forked child has no threads but its own, and the locks as they happened to be.
    for workers in list(_all):
        workers._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
