"""A session's way to its store: sync or async, with or without `append`, whatever it raises or returns."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import inspect
import logging
import queue
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from perdure import _loop
from perdure._core import FileSessionStore, SessionData
from perdure.errors import (
    ConfigError,
    PerdureError,
    SessionConflictError,
    SessionCorruptError,
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from perdure.types import SaveReceipt

if TYPE_CHECKING:
    from perdure.secrets import SecretMasker

__all__ = ["PERMANENT", "StoreClient", "to_the_end"]

_log = logging.getLogger("perdure")
_T = TypeVar("_T")

PERMANENT = (SessionConflictError, SessionExistsError, SessionLockedError, SessionCorruptError)
"""Errors that another attempt does not cure: somebody has to decide."""

_REQUIRED = ("save", "load", "delete", "list", "exists")


class StoreClient:
    """Wraps one store for one session or agent.

    Coroutine methods are awaited (from a sync session: on perdure's loop thread). Sync methods are called at once by a
    sync session, on its own thread; from an event loop they run on a thread: any, if the store says `threadsafe = True`,
    else one that serves this store only. An async call that lasts over `timeout` seconds is a `StoreError`.
    """

    def __init__(self, store: Any, *, timeout: float, masker: SecretMasker, owned: bool) -> None:
        missing = [name for name in _REQUIRED if not callable(getattr(store, name, None))]
        if missing:
            raise ConfigError(
                f"session_store: a {type(store).__name__} is not a store, it has no {', '.join(missing)}; "
                f"a store has the methods {', '.join(_REQUIRED)}",
                option="session_store",
            )
        self.store = store
        self.revisions = getattr(store, "revisions", False) is True
        self._appends = callable(getattr(store, "append", None))
        self._timeout = timeout
        self._masker = masker
        self._owned = owned

    @property
    def folds(self) -> bool:
        """Whether the store wants to know that a turn is over."""
        return self._appends

    @property
    def location(self) -> str:
        """Where sessions lie, for people."""
        path = getattr(self.store, "path", None)
        return str(path) if path is not None else type(self.store).__name__

    async def save(self, data: SessionData, *, step: bool, always: bool, force: bool = False) -> SaveReceipt:
        """Save what changed since the base and move the base. `always`: also if nothing changed."""
        if force:
            stored = await self.load(data.id)
            if stored is None:
                data.detach()
            else:
                data.rebase(stored)
        delta = data.delta(always=always)
        if delta is None:
            return SaveReceipt(data.revision, 0, 0, 0.0, self.location)
        if not self.revisions:
            self._say_last_writer_wins()
        stored_it = False
        try:
            if self._appends:
                receipt = await self._call("append", delta, step=step)
            elif self.revisions:
                # Such a store compares and moves the base itself.
                receipt = await self._call("save", data)
            else:
                receipt = await self._call("save", delta.session)
            stored_it = True
        finally:
            if self._appends or not self.revisions:
                data.settle(delta, saved=stored_it)
        if isinstance(receipt, SaveReceipt):
            return receipt
        new_bytes = sum(map(len, delta.messages))
        return SaveReceipt(delta.revision, new_bytes, new_bytes, 0.0, self.location)

    async def load(self, id: str) -> SessionData | None:
        """The session or None; anything else that a store gives is a `StoreError`."""
        data = await self._call("load", id)
        if data is None or (isinstance(data, SessionData) and data.id == id):
            return data
        if isinstance(data, SessionData):
            raise StoreError(f"{self._name}.load({id!r}) gave session {data.id!r}")
        raise self._nonsense("load", data, "a SessionData or None")

    async def delete(self, id: str) -> bool:
        deleted = await self._call("delete", id)
        if isinstance(deleted, bool):
            return deleted
        raise self._nonsense("delete", deleted, "True or False")

    async def exists(self, id: str) -> bool:
        there = await self._call("exists", id)
        if isinstance(there, bool):
            return there
        raise self._nonsense("exists", there, "True or False")

    async def list(self) -> list[str]:
        ids = await self._call("list")
        if isinstance(ids, (list, tuple, set, frozenset)) and all(isinstance(id, str) for id in ids):
            return list(ids)
        raise self._nonsense("list", ids, "a list of ids")

    async def infos(self, limit: int, cursor: str | None) -> Any:
        """A page of a listing: `(infos, next cursor)`. A store without `infos` raises `StoreError`."""
        if not callable(getattr(self.store, "infos", None)):
            raise StoreError(
                f"{self._name} cannot list sessions with their heads (it has no infos); use list_sessions()"
            )
        return await self._call("infos", limit, cursor)

    async def not_found(self, id: str) -> SessionNotFoundError:
        """The error for a session that is not there; it names the ids that look most like it."""
        close: list[str] = []
        with contextlib.suppress(PerdureError):
            close = difflib.get_close_matches(id, await self.list(), n=3)
        hint = f"; there is {', '.join(map(repr, close))}" if close else ""
        return SessionNotFoundError(
            f"no session {id!r} in {self.location}{hint}", session_id=id, close_ids=tuple(close)
        )

    async def release(self, data: SessionData) -> None:
        """Let go of what the store holds for this session; of the store itself, if it was made for it."""
        if isinstance(self.store, FileSessionStore):
            await self._call("release", data)
        elif self._owned and callable(getattr(self.store, "close", None)):
            await self._call("close")

    @property
    def _name(self) -> str:
        return type(self.store).__name__

    def _nonsense(self, method: str, got: object, wanted: str) -> StoreError:
        return StoreError(f"{self._name}.{method}() gave a {type(got).__name__}, not {wanted}")

    def _say_last_writer_wins(self) -> None:
        if not _of(self.store).said_last_writer_wins:
            _of(self.store).said_last_writer_wins = True
            _log.warning("%s does not compare revisions: of two writers of one session the last one wins", self._name)

    async def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        method = functools.partial(getattr(self.store, name), *args, **kwargs)
        try:
            return await self._invoke(name, method)
        except (PerdureError, asyncio.CancelledError):
            raise
        except Exception as error:
            said = self._masker.text(str(error))
            reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
            failed = StoreError(
                f"{self._name}.{name}() failed: {reason}",
                errno=error.errno if isinstance(error, OSError) else None,
                filename=str(error.filename) if isinstance(error, OSError) and error.filename else None,
            )
            # A driver's error may quote what it was given; only one that holds no secret is shown on.
            raise failed from (error if said == str(error) else None)

    async def _invoke(self, name: str, method: Callable[[], Any]) -> Any:
        is_async = inspect.iscoroutinefunction(getattr(self.store, name))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if is_async:
                return _loop.run(self._limited(name, _awaited(method)))
            result = method()
            return _loop.run(self._limited(name, _awaited(lambda: result))) if inspect.isawaitable(result) else result
        if is_async:
            return await self._limited(name, method())
        result = await self._limited(name, self._off_loop(method))
        return await self._limited(name, result) if inspect.isawaitable(result) else result

    def _off_loop(self, method: Callable[[], Any]) -> Awaitable[Any]:
        if getattr(self.store, "threadsafe", False) is True:
            return asyncio.get_running_loop().run_in_executor(None, method)
        asked = _loop.in_calling_thread(method)
        if asked is not None:
            return asked
        return _of(self.store).submit(method)

    async def _limited(self, name: str, call: Awaitable[_T]) -> _T:
        future = asyncio.ensure_future(call)
        done, _ = await asyncio.wait({future}, timeout=self._timeout or None)
        if done:
            return future.result()
        future.cancel()
        raise StoreError(
            f"{self._name}.{name}() did not answer within {self._timeout:g} s (store_timeout); "
            "whether it took effect is unknown"
        )


async def _awaited(make: Callable[[], Any]) -> Any:
    return await make()


class _PerStore:
    """What belongs to a store object rather than to one session: its thread, and what was said of it."""

    def __init__(self) -> None:
        self.said_last_writer_wins = False
        self._work: queue.SimpleQueue[Callable[[], None]] | None = None
        self._guard = threading.Lock()

    def submit(self, method: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run on the one thread that serves this store."""
        with self._guard:
            if self._work is None:
                self._work = queue.SimpleQueue()
                # A daemon: a store that never returns must not keep the interpreter from exiting.
                threading.Thread(target=_serve, args=(self._work,), name="perdure-store", daemon=True).start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def work() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = (method(), None)
            except BaseException as error:
                outcome = (None, error)
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        self._work.put(work)
        return future


def _serve(work: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        work.get()()


_per_store: dict[int, tuple[Any, _PerStore]] = {}
_per_store_guard = threading.Lock()


def _of(store: Any) -> _PerStore:
    key = id(store)
    with _per_store_guard:
        found = _per_store.get(key)
        if found is None:
            try:
                weakref.finalize(store, _per_store.pop, key, None)
                kept = None
            except TypeError:
                kept = store  # cannot be watched: kept alive, so that its id stays its own
            found = _per_store[key] = (kept, _PerStore())
        return found[1]


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end even if the caller is cancelled, then let the cancellation through.

    A save that is under way has an outcome, and somebody has to know it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return await work
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()
        raise asyncio.CancelledError
    return task.result()
