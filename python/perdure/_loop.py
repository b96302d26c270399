"""Async code from sync code: stepped in place if it never waits, else run on one loop thread of perdure's own."""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from perdure.errors import ConfigError

__all__ = ["in_calling_thread", "off_loop", "refuse_running_loop", "run", "step"]

_T = TypeVar("_T")
_Job = Callable[[], None]

_jobs: contextvars.ContextVar[queue.SimpleQueue[_Job | None] | None] = contextvars.ContextVar(
    "perdure_jobs", default=None
)


def refuse_running_loop(instead: str) -> None:
    """Raise if this thread runs an event loop, which a sync call would block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
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


class _LoopThread:
    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        # A daemon: a turn that hangs must not keep the interpreter from exiting.
        self.thread = threading.Thread(target=self._run, name="perdure-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run on the loop and wait; meanwhile this thread does what the coroutine asks it to.

        Ctrl-C cancels the coroutine and waits until it has come to its end, so that nothing is half-done.
        """
        jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        tasks: list[asyncio.Task[_T]] = []
        cancelled = False

        def start() -> None:
            context = contextvars.copy_context()
            context.run(_jobs.set, jobs)
            task = context.run(self.loop.create_task, coroutine)
            tasks.append(task)
            task.add_done_callback(lambda _: jobs.put(None))
            if cancelled:
                task.cancel()

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self.loop.call_soon_threadsafe(start)
        interrupt: BaseException | None = None
        while True:
            try:
                job = jobs.get()
                if job is None:
                    break
                job()
            except BaseException as error:  # KeyboardInterrupt, SystemExit from a signal handler
                interrupt, cancelled = error, True
                self.loop.call_soon_threadsafe(cancel)
        task = tasks[0]
        if interrupt is not None:
            if not task.cancelled():
                task.exception()  # seen, so that asyncio does not report it as lost
            raise interrupt
        return task.result()


_thread: _LoopThread | None = None
_guard = threading.Lock()


def _loop_thread() -> _LoopThread:
    global _thread
    with _guard:
        # A forked child has the object but not the thread.
        if _thread is None or _thread.process != os.getpid():
            _thread = _LoopThread()
        return _thread


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on perdure's loop thread and wait for it."""
    return _loop_thread().run(coroutine)


async def off_loop(work: Callable[[], _T]) -> _T:
    """Do `work`, which may take long, without blocking an event loop: on a thread if one runs here, else at once."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return work()
    return await loop.run_in_executor(None, work)


def in_calling_thread(work: Callable[[], _T]) -> asyncio.Future[_T] | None:
    """Have the thread that waits in `run` do `work`; None if nobody waits (the coroutine runs on a user's loop).

    A user's sync store is called on the thread that uses the session, as it would be without a turn.
    """
    jobs = _jobs.get()
    if jobs is None:
        return None
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def job() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(
                settle,
                None,
                error if isinstance(error, Exception) else RuntimeError(f"interrupted by {type(error).__name__}"),
            )
            if not isinstance(error, Exception):
                raise
        else:
            loop.call_soon_threadsafe(settle, result, None)

    jobs.put(job)
    return future
