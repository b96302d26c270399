"""Async code from sync code: stepped in place if it never waits, else run on one loop thread of perdure's own."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import os
import sys
import threading
import time
import weakref
from asyncio import _get_running_loop
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from perdure._workers import Workers, outcome_of
from perdure.errors import ConfigError

__all__ = ["LoopLock", "in_calling_thread", "iterate", "off_loop", "refuse_running_loop", "run", "step", "submit"]

_T = TypeVar("_T")

# Only where a waiting thread does not notice Ctrl-C it has to look up from time to time, in seconds.
_LOOK_UP = 0.1 if sys.platform == "win32" else None

# How long turns that are still open at the end of the interpreter get to save what they have, in seconds.
_LAST_WORDS = 5.0

_workers = Workers("perdure-worker", 32)


def refuse_running_loop(instead: str) -> None:
    """Raise if this thread runs an event loop, which a sync call would block."""
    if running_loop() is not None:
        raise ConfigError(
            f"this thread runs an event loop, and a sync call would block it: use {instead} and await its methods"
        )


def step(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never waits: no event loop, no other thread."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a bug in perdure, please report it: a step that should not wait did")


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on perdure's loop thread and wait for it.

    Ctrl-C cancels it and waits until it has come to its end, so that nothing is half-done.
    """
    call = _Call(_loop_thread(), coroutine)
    call.serve(lambda: False)
    return call.result()


def iterate(items: AsyncGenerator[_T, None]) -> Generator[_T, None, None]:
    """Iterate over an async generator, as one task on perdure's loop thread. It goes on only while an item is asked
    for.

    Closing this generator closes that one, and waits for it.
    """
    ready: deque[_T] = deque()
    wanted = asyncio.Event()

    async def hand_over() -> None:
        try:
            async for item in items:
                ready.append(item)
                call.wake()
                await wanted.wait()
                wanted.clear()
        finally:
            await items.aclose()

    thread = _loop_thread()
    call = _Call(thread, hand_over())
    thread.open.add(call)
    try:
        while True:
            call.serve(lambda: bool(ready))
            if not ready:
                break
            yield ready.popleft()
            if not thread.thread.is_alive():
                return  # the interpreter is ending, and has closed the turn
            thread.loop.call_soon_threadsafe(wanted.set)
    finally:
        call.end()
        thread.open.discard(call)
    call.result()


async def off_loop(work: Callable[[], _T]) -> _T:
    """Do `work`, which may take long, without blocking an event loop: on a thread if one runs here, else at once."""
    return work() if running_loop() is None else await submit(work)


def submit(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Have a thread do `work`. Cancelling the future does not stop it."""
    return _workers.submit(work)


def in_calling_thread(work: Callable[[], _T]) -> asyncio.Future[_T] | None:
    """Have the thread that waits in `run` or `iterate` do `work`; None if nobody waits (this is a user's loop).

    A user's sync store is called on the thread that uses the session, as it would be without a turn.
    """
    call = _calls.get()
    if call is None:
        return None
    job = _Job(work)
    call.ask(job)
    return job.future


class LoopLock:
    """An `asyncio.Lock` that works on one event loop after another, and without one as long as nobody holds it."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def held(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncGenerator[None, None]:
        """Wait for the lock, and let go of it at the end of the `async with`."""
        loop = running_loop()
        if self._loop is not loop:
            # A lock cannot be taken along; one that is held on a loop that is over is not held by anybody.
            if self._lock.locked() and not (self._loop is None or self._loop.is_closed()):
                raise ConfigError(
                    "the session is in use on another event loop; an AsyncSession belongs to one at a time"
                )
            self._lock, self._loop = asyncio.Lock(), loop
        lock = self._lock
        async with lock:
            yield


class _Job:
    """Work for the thread that waits."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._begun = False
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def run(self) -> None:
        """Do it. Whatever interrupts the work comes out again, after it was told to the one who asked."""
        if self._begun:  # and interrupted before its outcome was told
            self._tell(None, RuntimeError("interrupted"))
            return
        self._begun = True
        result, error = outcome_of(self._work)
        if error is None or isinstance(error, Exception):
            self._tell(result, error)
        else:
            self._tell(None, RuntimeError(f"interrupted by {type(error).__name__}"))
            raise error

    def _tell(self, result: Any, error: Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Call(Generic[_T]):
    """A coroutine on the loop thread, seen from the thread that waits for it.

    Every step of `serve` may be interrupted by Ctrl-C between any two instructions and is then done again; that is why
    nothing is taken off a queue before it is dealt with, and why everything may happen twice.
    """

    def __init__(self, thread: _LoopThread, coroutine: Coroutine[Any, Any, _T]) -> None:
        self._thread = thread
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._context.run(_calls.set, self)
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Event()
        self._task: asyncio.Task[_T] | None = None
        self._asked = False
        self._over = False

    def ask(self, job: _Job) -> None:
        self._jobs.append(job)
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def serve(self, enough: Callable[[], bool], *, until: float | None = None) -> None:
        """Do what the coroutine asks this thread to do until `enough()`, its end, or the time `until`.

        After an interruption: cancel it, go on to its end, raise.
        """
        interruption: BaseException | None = None
        cancelled = True
        while True:
            try:
                if not self._asked:
                    self._thread.loop.call_soon_threadsafe(self._start)
                    self._asked = True
                if not cancelled:
                    self._thread.loop.call_soon_threadsafe(self._cancel)
                    cancelled = True
                self._wake.clear()
                if self._jobs:
                    self._jobs[0].run()
                    self._jobs.popleft()
                elif self._over or (interruption is None and enough()) or not self._thread.thread.is_alive():
                    break
                elif until is None:
                    self._wake.wait(_LOOK_UP)
                elif not self._wake.wait(max(until - time.monotonic(), 0.0)):
                    break
            except BaseException as error:
                interruption, cancelled = error, False
        if interruption is not None:
            raise interruption

    def end(self, *, until: float | None = None) -> None:
        """Cancel it, if it is not over, and wait for its end."""
        if self._asked and not self._over and self._thread.thread.is_alive():
            self._thread.loop.call_soon_threadsafe(self._cancel)
            self.serve(lambda: False, until=until)
        elif not self._asked:
            self._coroutine.close()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.exception()  # seen, so that asyncio does not report it as lost

    def result(self) -> _T:
        if self._task is None or not self._task.done():
            raise RuntimeError("the interpreter is ending")
        return self._task.result()

    def _start(self) -> None:
        if self._task is None:
            self._task = self._context.run(self._thread.loop.create_task, self._coroutine)
            self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        self._start()
        assert self._task is not None
        self._task.cancel()

    def _ended(self, _: object) -> None:
        self._over = True
        self._wake.set()


_calls: contextvars.ContextVar[_Call[Any] | None] = contextvars.ContextVar("perdure_calls", default=None)


class _LoopThread:
    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.open: weakref.WeakSet[_Call[Any]] = weakref.WeakSet()
        # A daemon: a turn that hangs must not keep the interpreter from exiting.
        self.thread = threading.Thread(target=self._run, name="perdure-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def stop(self) -> None:
        """End what is still running, in good order but not for ever."""
        until = time.monotonic() + _LAST_WORDS
        for call in list(self.open):
            call.end(until=until)
        try:
            asyncio.run_coroutine_threadsafe(self._cancel_all(until), self.loop).result(_LAST_WORDS)
        except concurrent.futures.TimeoutError:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_LAST_WORDS)
        if not self.thread.is_alive():
            self.loop.close()

    async def _cancel_all(self, until: float) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(until - time.monotonic(), 0.1))
        await self.loop.shutdown_asyncgens()


_thread: _LoopThread | None = None
_guard = threading.Lock()
# A parent's loop, as a forked child has it. Kept, so that nothing closes it: its selector is shared with the parent.
_inherited: list[_LoopThread] = []


def _loop_thread() -> _LoopThread:
    global _thread
    with _guard:
        if _thread is not None and _thread.process != os.getpid():
            _inherited.append(_thread)
            _thread = None
        if _thread is None:
            _thread = _LoopThread()
            # Registered this late it runs before the stores are closed.
            atexit.register(_thread.stop)
        return _thread


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs on this thread."""
    return _get_running_loop()


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    if _thread is not None:
        atexit.unregister(_thread.stop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
