"""Blocking work beside the event loop: on a daemon thread of its own, with a time limit, and cancellable.

A thread of its own and not a pool's: a pool is joined when the interpreter or the loop ends, and one call
that hangs on a dead network mount would then hang the whole program.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from .types import ToolFailure

__all__ = ["CancelToken", "TimedOut", "in_thread"]

T = TypeVar("T")

# How long a cancelled job gets to kill its processes and clean up before it is left alone, in seconds.
_SETTLE = 5.0


class TimedOut(Exception):
    """The work did not finish in time."""


class CancelToken:
    """Tells work on another thread to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises `ToolFailure` once cancelled. Called between steps, and before a change takes effect."""
        if self._event.is_set():
            raise ToolFailure("the call was cancelled")


async def in_thread(work: Callable[[], T], *, timeout: float | None = None, token: CancelToken | None = None) -> T:
    """Run `work` on a daemon thread, in a copy of the caller's context variables, and give its result.

    timeout  seconds; then `TimedOut`, and the thread's outcome is dropped
    token    set when the time is over or the caller is cancelled; the work is expected to end soon after
             that, and is waited for, so that a cancelled call leaves no process behind
    """
    loop = asyncio.get_running_loop()
    # Carries the outcome as a value: a future refuses some exceptions and complains about those nobody
    # fetched.
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(outcome: tuple[T | None, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)

    def body() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (context.run(work), None)
        except BaseException as error:
            outcome = (None, error)
        try:
            loop.call_soon_threadsafe(deliver, outcome)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits any more

    threading.Thread(target=body, name="perdure-tool", daemon=True).start()
    try:
        await asyncio.wait({done}, timeout=timeout)
        if not done.done() and token is not None:
            token.cancel()
            await asyncio.wait({done}, timeout=_SETTLE)
            raise TimedOut
    except asyncio.CancelledError:
        if token is not None:
            token.cancel()
            await asyncio.wait({done}, timeout=_SETTLE)
        raise
    except GeneratorExit:
        # The coroutine is being thrown away; nothing may be awaited here.
        if token is not None:
            token.cancel()
        raise
    if not done.done():
        raise TimedOut
    value, error = done.result()
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
