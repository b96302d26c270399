"""Listings: what `sessions()` gives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from perdure import _loop
from perdure.errors import StoreError
from perdure.stores.client import StoreClient
from perdure.types import SessionInfo

__all__ = ["AsyncSessionListing", "SessionListing"]

_PAGE = 50


class AsyncSessionListing:
    """An async iterator over `SessionInfo`, newest first, fetched page by page."""

    def __init__(
        self, client: Callable[[], Coroutine[Any, Any, StoreClient]], limit: int | None, cursor: str | None
    ) -> None:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ValueError(f"limit: a number of sessions from 0 on, not {limit!r}")
        if cursor is not None and not isinstance(cursor, str):
            raise ValueError(f"cursor: a string, not {type(cursor).__name__}")
        self._open = client
        self._client: StoreClient | None = None
        self._left = limit
        self._ready: deque[SessionInfo] = deque()
        self._over = False
        self.cursor = cursor
        """Once the iteration is over: where another listing goes on. None: there is no more."""

    def __aiter__(self) -> AsyncSessionListing:
        return self

    async def __anext__(self) -> SessionInfo:
        while not self._ready:
            if self._over or self._left == 0:
                raise StopAsyncIteration
            await self._fetch()
        return self._ready.popleft()

    async def _fetch(self) -> None:
        if self._client is None:
            self._client = await self._open()
        wanted = _PAGE if self._left is None else min(self._left, _PAGE)
        infos, cursor = await self._client.infos(wanted, self.cursor)
        if cursor is not None and cursor == self.cursor:
            raise StoreError(f"{type(self._client.store).__name__}.infos() gave the cursor that it was called with")
        if self._left is not None:
            infos = infos[: self._left]
            self._left -= len(infos)
        self._ready.extend(infos)
        self.cursor, self._over = cursor, cursor is None


class SessionListing:
    """An iterator over `SessionInfo`, newest first, fetched page by page."""

    def __init__(self, listing: AsyncSessionListing) -> None:
        self._listing = listing

    def __iter__(self) -> SessionListing:
        return self

    def __next__(self) -> SessionInfo:
        _loop.refuse_running_loop("AsyncAgent")
        try:
            return _loop.step(self._listing.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def cursor(self) -> str | None:
        """Once the iteration is over: where another listing goes on. None: there is no more."""
        return self._listing.cursor
