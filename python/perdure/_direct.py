"""The short way of an appended message to the file store: one call of the core, no thread and no task of its own.

An append is what an agent's loop does most, and its cost is what is left beside the disk's. Everything that needs more
(another store, a redactor, a secret in the message, a turn under way) goes the long way, through `StoreClient`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any

from perdure._core import Appender, FileSessionStore, Mailbox, SessionData
from perdure.redaction import Cleaner
from perdure.stores.client import StoreClient

__all__ = ["DirectSaves"]


class DirectSaves:
    """Appends that are saved at once, from code with or without an event loop."""

    def __init__(self, appender: Appender, client: StoreClient) -> None:
        self._appender = appender
        self._client = client
        self._on_their_way: set[asyncio.Future[None]] = set()

    @classmethod
    def of(cls, client: StoreClient | None, cleaner: Cleaner) -> DirectSaves | None:
        """For a file store and messages that are kept as they are; else None."""
        if client is None or type(client.store) is not FileSessionStore or cleaner.redacts:
            return None
        return cls(Appender(client.store, cleaner.masker.words), client)

    def append(self, data: SessionData, messages: tuple[Mapping[str, Any], ...]) -> bool:
        """Append and save. False: this is not for the short way; nothing was done.

        Raises `SerializationError` with nothing appended, else what the store raises: then the messages stay.
        """
        return self._appender.append(data, messages)

    async def append_beside_loop(self, data: SessionData, messages: tuple[Mapping[str, Any], ...]) -> bool:
        """The same while the event loop goes on. A cancelled one is waited for to its outcome."""
        loop = asyncio.get_running_loop()
        box = _mailbox(loop)
        future: asyncio.Future[None] = loop.create_future()
        if box is None or not self._appender.append_later(data, messages, box, future):
            return False
        self._on_their_way.add(future)
        future.add_done_callback(self._on_their_way.discard)
        await self._outcome(future, loop)
        return True

    async def settled(self) -> None:
        """Wait for what is still on its way. Raises `StoreError` if that takes too long."""
        # All of them: the last one to be begun need not be the last one to end.
        loop = asyncio.get_running_loop()
        saves = {save for save in self._on_their_way if save.get_loop() is loop and not save.done()}
        if saves:
            _, late = await asyncio.wait(saves, timeout=self._client.timeout or None)
            if late:
                raise self._client.too_long("append")

    async def _outcome(self, future: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: object = None) -> None:
            if not waiter.done():
                waiter.set_result(None)

        future.add_done_callback(wake)
        timer = loop.call_later(self._client.timeout, wake) if self._client.timeout else None
        cancelled: asyncio.CancelledError | None = None
        try:
            while True:
                try:
                    await waiter
                    break
                except asyncio.CancelledError as error:
                    # The save is under way, and somebody has to know how it ends.
                    cancelled = error
                    waiter = loop.create_future()
                    if future.done():
                        break
        finally:
            if timer is not None:
                timer.cancel()
        if cancelled is not None:
            raise cancelled from (future.exception() if future.done() else None)
        if not future.done():
            future.add_done_callback(_seen)
            raise self._client.too_long("append")
        future.result()


def _seen(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()


_boxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()


def _mailbox(loop: asyncio.AbstractEventLoop) -> Mailbox | None:
    """The mailbox of an event loop. Only the loop holds it: it goes when the loop goes."""
    box = _boxes.get(loop)
    if box is None:
        try:
            address = weakref.ref(loop)
        except TypeError:
            return None

        def notify() -> None:
            loop = address()
            if loop is not None:
                loop.call_soon_threadsafe(_deliver, loop)

        box = _boxes[loop] = Mailbox(notify)
    return box


def _deliver(loop: asyncio.AbstractEventLoop) -> None:
    for future, error in _boxes[loop].take():
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
