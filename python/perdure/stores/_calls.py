"""Calling a user's store: sync or async, on the right thread, with a time limit, its errors named and masked."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from perdure import _loop
from perdure._workers import Workers
from perdure.errors import PerdureError, StoreError

if TYPE_CHECKING:
    from perdure.secrets import SecretMasker

__all__ = ["PerStore", "StoreCalls", "of_store", "to_the_end"]

_T = TypeVar("_T")


class StoreCalls:
    """The calls of one session or agent to its store.

    Coroutine methods are awaited (from a sync session: on perdure's loop thread). Sync methods are called at once by a
    sync session, on its own thread; from an event loop they run on a thread: any, if the store says
    `threadsafe = True`, else one that serves this store only. A call that lasts over `timeout` seconds is a
    `StoreError`, wherever there is an event loop to tell the time: a sync method called by a sync session outside of a
    turn takes as long as it takes.
    """

    def __init__(self, store: Any, *, timeout: float, masker: SecretMasker) -> None:
        self.store = store
        self.name = type(store).__name__
        self.timeout = timeout
        self._masker = masker
        self._late: asyncio.Future[Any] | None = None

    async def call(self, name: str, /, *args: Any, late: Callable[[], None] | None = None, **kwargs: Any) -> Any:
        """Call a method of the store. `late`: it is a save, seen to its end; what to do if it ends well too late."""
        method = functools.partial(getattr(self.store, name), *args, **kwargs)
        try:
            return await self._invoke(name, method, late)
        except asyncio.CancelledError:
            raise
        except PerdureError as error:
            self.mask(error)
            raise
        except Exception as error:
            if name == "infos" and isinstance(error, ValueError) and self._is_clean(error):
                raise  # what a store says to a cursor that is not one of its own
            said = self._masker.text(_text(error))
            reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
            filename = getattr(error, "filename", None)
            failed = StoreError(
                f"{self.name}.{name}() failed: {reason}",
                errno=error.errno if isinstance(error, OSError) else None,
                filename=self._masker.text(str(filename)) if filename else None,
            )
            # What it was made of may quote what the store was given; only one that holds no secret is shown on.
            raise failed from (error if self._is_clean(error) else None)

    def _is_clean(self, error: BaseException | None) -> bool:
        return error is None or (
            self._masker.text(_text(error)) == _text(error)
            and self._is_clean(error.__cause__)
            and (error.__suppress_context__ or self._is_clean(error.__context__))
        )

    def mask(self, error: PerdureError) -> None:
        """A store's own error goes on as it is, but for secrets."""
        if not self._is_clean(error):
            error.args = tuple(self._masker.text(a) if isinstance(a, str) else a for a in error.args)
            error.__cause__, error.__suppress_context__ = None, True

    async def _invoke(self, name: str, method: Callable[[], Any], late: Callable[[], None] | None) -> Any:
        is_async = inspect.iscoroutinefunction(getattr(self.store, name))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            result = method() if is_async else self._in_turn(method)()
            if not inspect.isawaitable(result):
                return result
            return _loop.run(self._limited(name, result, late))
        if is_async:
            return await self._limited(name, method(), late)
        result = await self._limited(name, self._off_loop(method), late)
        return await self._limited(name, result, late) if inspect.isawaitable(result) else result

    @property
    def _is_threadsafe(self) -> bool:
        return getattr(self.store, "threadsafe", False) is True

    def _in_turn(self, method: Callable[[], Any]) -> Callable[[], Any]:
        """One thread at a time, unless the store does not mind."""
        if self._is_threadsafe:
            return method
        calling = of_store(self.store).calling

        def alone() -> Any:
            with calling:
                return method()

        return alone

    def _off_loop(self, method: Callable[[], Any]) -> Awaitable[Any]:
        if self._is_threadsafe:
            return _loop.submit(method)
        method = self._in_turn(method)
        return _loop.in_calling_thread(method) or of_store(self.store).worker.submit(method)

    async def _limited(self, name: str, call: Awaitable[_T], late: Callable[[], None] | None) -> _T:
        future = asyncio.ensure_future(call)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout if self.timeout else None
        while not future.done():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise self._too_long(name, future, late)
            try:
                await asyncio.wait({future}, timeout=left)
            except asyncio.CancelledError:
                if late is None:
                    future.cancel()
                    raise
                # `to_the_end` lets it through once the save has an outcome.
        return future.result()

    def _too_long(self, name: str, future: asyncio.Future[Any], late: Callable[[], None] | None) -> StoreError:
        def ended(_: object) -> None:
            if not future.cancelled() and future.exception() is None and late is not None:
                late()

        future.add_done_callback(ended)
        if isinstance(future, asyncio.Task):
            future.cancel()
        if late is not None:
            self._late = future
        return self.too_long(name)

    def too_long(self, name: str) -> StoreError:
        """The error of a call that did not answer in time."""
        return StoreError(
            f"{self.name}.{name}() did not answer within {self.timeout:g} s (store_timeout); "
            "whether it took effect is unknown"
        )

    async def wait_for_late(self) -> None:
        """A save that took too long may still end: what comes after it has to know how."""
        late, self._late = self._late, None
        if late is None or late.done() or late.get_loop() is not _running():
            return
        await asyncio.wait({late}, timeout=self.timeout)
        if not late.done():
            self._late = late
            raise StoreError(
                f"{self.name}: an earlier save has not come to its end; it is waited for before the next one is tried"
            )


class PerStore:
    """What belongs to a store object rather than to one session."""

    def __init__(self) -> None:
        self.said_last_writer_wins = False
        self.worker = Workers("perdure-store", 1)
        self.calling = threading.RLock()


_per_store: dict[int, tuple[Any, PerStore]] = {}
_per_store_guard = threading.Lock()


def _forget(key: int) -> None:
    found = _per_store.pop(key, None)
    if found is not None:
        found[1].worker.stop()


def of_store(store: Any) -> PerStore:
    key = id(store)
    with _per_store_guard:
        found = _per_store.get(key)
        if found is None:
            try:
                weakref.finalize(store, _forget, key)
                kept = None
            except TypeError:
                kept = store  # cannot be watched: kept alive, so that its id stays its own
            found = _per_store[key] = (kept, PerStore())
        return found[1]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be shown)"


def _after_fork() -> None:
    global _per_store_guard
    # A forked child has these locks as they happened to be.
    _per_store_guard = threading.Lock()
    for _, of in _per_store.values():
        of.calling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end even if the caller is cancelled, then let the cancellation through.

    A save that is under way has an outcome, and somebody has to know it.
    """
    if _running() is None:
        return await work
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
