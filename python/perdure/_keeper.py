"""What a session keeps and how it is saved: automatic saves, their errors, what is pending, repairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from perdure._core import SessionData
from perdure._direct import DirectSaves
from perdure._loop import LoopLock, off_loop, running_loop
from perdure.errors import ConfigError, SerializationError
from perdure.redaction import Cleaner
from perdure.stores._calls import to_the_end
from perdure.stores.client import PERMANENT, StoreClient
from perdure.turn.repair import interrupted_results, last_prompt
from perdure.types import SaveReceipt

__all__ = ["Keeper"]

_log = logging.getLogger("perdure")


class Keeper:
    """A session's data and its way to the store. One save runs at a time."""

    def __init__(
        self,
        data: SessionData,
        client: StoreClient | None,
        cleaner: Cleaner,
        *,
        auto: bool,
        on_error: Callable[[Exception], object] | None,
    ) -> None:
        self.data = data
        self.client = client
        self.cleaner = cleaner
        self.auto = auto
        self.last_error: Exception | None = None
        """Of the last automatic save; None after a save that worked."""
        self.permanent: Exception | None = None
        """Set when a save in the middle of a turn met somebody else's session. No turn until that is settled."""
        self.dirty = False
        """Whether the user changed anything. Repairs and the like are not worth a save of their own."""
        self._on_error = on_error
        self._saving = LoopLock()
        self._direct = DirectSaves.of(client, cleaner) if auto else None
        self._mended = 0  # messages at the front without a dangling tool call

    def store(self) -> StoreClient:
        """Raises `ConfigError` without a store."""
        if self.client is None:
            raise ConfigError(
                "this session has no store: give file_session_store or session_store in SessionOptions, or set "
                "sessions_dir or storage_url in agent.hcl",
                option="file_session_store",
            )
        return self.client

    async def save(self, *, step: bool = False, force: bool = False) -> SaveReceipt:
        """Store what there is, also if the caller is cancelled meanwhile. Raises what the store raises."""
        client = self.store()
        receipt = await to_the_end(self._save(client, step=step, force=force))
        self.permanent = self.last_error = None
        return receipt

    async def _save(self, client: StoreClient, *, step: bool, force: bool) -> SaveReceipt:
        async with self._saving.hold():
            if self._direct is not None and running_loop() is not None:
                await self._direct.settled()
            return await client.save(self.data, step=step, force=force)

    async def save_prompt(self) -> int | None:
        """The automatic save before a model is called: the revision, None if it failed for now.

        Raises what will not go away by itself, so that no model is called for a session that cannot be kept.
        """
        return await self._auto_save(step=True)

    async def auto_save(self, *, step: bool) -> int | None:
        """An automatic save later in a turn: the revision, None if it failed. What failed is told and kept."""
        if self.permanent is not None:
            # Once somebody else has the session each further step would fail the same way.
            return None
        try:
            return await self._auto_save(step=step)
        except PERMANENT as error:
            self.permanent = error
            return None

    def append(self, messages: tuple[Mapping[str, Any], ...]) -> bool:
        """Add messages and save, the short way, blocking. False: it has to be the long way; nothing was done."""
        if self._direct is None or self._saving.held:
            return False
        try:
            done = self._direct.append(self.data, messages)
        except Exception as error:
            self._append_failed(error)
            raise
        return done and self._appended()

    async def append_beside_loop(self, messages: tuple[Mapping[str, Any], ...]) -> bool:
        """The same beside an event loop."""
        if self._direct is None or self._saving.held:
            return False
        await self.load_all()
        try:
            done = await self._direct.append_beside_loop(self.data, messages)
        except Exception as error:
            self._append_failed(error)
            raise
        return done and self._appended()

    def _appended(self) -> bool:
        self.dirty = True
        self.permanent = self.last_error = None
        return True

    def _append_failed(self, error: Exception) -> None:
        if isinstance(error, SerializationError):
            return  # nothing was added
        self.dirty = True
        self.store().mask(error)
        self.last_error = error
        self._tell(error)

    async def save_change(self) -> None:
        """The automatic save after a change that the user made. Raises: its caller can do something about it."""
        if not self.auto:
            return
        try:
            await self.save()
        except Exception as error:
            self.last_error = error
            self._tell(error)
            raise

    async def _auto_save(self, *, step: bool) -> int | None:
        if not self.auto:
            return None
        try:
            receipt = await self.save(step=step)
        except Exception as error:
            self.last_error = error
            _log.warning("session %r is not saved: %s", self.data.id, error)
            self._tell(error)
            if isinstance(error, PERMANENT):
                raise
            return None
        return receipt.revision

    def _tell(self, error: Exception) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception as raised:
            # Its text may hold anything.
            _log.warning("on_save_error raised %s", type(raised).__name__)

    @property
    def pending(self) -> bool:
        """Whether the user changed something that is not stored."""
        return self.client is not None and self.dirty and self.data.delta() is not None

    async def finish(self) -> None:
        """Save what is pending before the session is closed; say so if it is not to be saved."""
        if not self.pending:
            return
        if self.auto:
            await self.save()
        else:
            _log.warning(
                "session %r is closed with unsaved changes: it has no auto_save, and save() was not called",
                self.data.id,
            )

    async def reload(self) -> None:
        """Take the stored state. Raises `SessionNotFoundError`, and what the store raises."""
        client = self.store()
        async with self._saving.hold():
            stored = await client.load(self.data.id)
            if stored is None:
                raise await client.not_found(self.data.id)
            self.data, self._mended, self.dirty = stored, 0, False
            self.permanent = self.last_error = None
        await self.mend_resumed()

    def rewind(self, to: int) -> None:
        """Keep the first `to` messages. Raises `ValueError`."""
        self.data.truncate(to)
        self._mended = 0  # the cut may have parted a call from its result
        self.dirty = True

    def answered(self) -> None:
        """Everything up to here is known to be fine."""
        self._mended = len(self.data)

    def mend(self) -> None:
        """Give every tool call without a result one, so that the history can be sent. Saved with the next save."""
        self._put(interrupted_results(self.data.messages, start=self._mended))
        self.answered()

    async def mend_resumed(self) -> None:
        """The same for what a crash may have left. Where only the end of a long history was read, that is enough: it is
        mended at each resume, and as a whole before the next turn."""
        first = self.data._first_loaded
        start = last_prompt(self.data.messages, first) if first else None
        if start is None:
            await self.mend_whole()
        else:
            self._put(interrupted_results(self.data.messages, start=start))

    async def mend_for_turn(self) -> None:
        """The same for all that was not looked at yet."""
        if self._mended:
            self.mend()
        else:
            await self.mend_whole()

    async def load_all(self) -> None:
        """Read what has not been read of the session yet, off the event loop."""
        if self.data._first_loaded:
            await off_loop(self.data._load_all)

    async def mend_whole(self) -> None:
        """The same for a history of any length, off the event loop."""
        messages = self.data.messages
        missing = await off_loop(lambda: interrupted_results(messages))
        if len(self.data) == len(messages):
            self._put(missing)
            self.answered()

    def _put(self, missing: list[tuple[int, dict[str, object]]]) -> None:
        if missing:
            first = missing[0][0]
            tail = [self.data.messages[i] for i in range(first, len(self.data))]
            for index, result in reversed(missing):
                tail.insert(index - first, result)
            self.data.truncate(first)
            self.data.append(*tail)
