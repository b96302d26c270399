"""The Rust core. Its public classes are exported by `perdure`; use them from there."""

import builtins
import os
from asyncio import Future
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, SupportsIndex, final, overload

from typing_extensions import Self, disjoint_base

from perdure.errors import PerdureError
from perdure.types import SaveReceipt, SessionInfo, StoreStats

__all__ = [
    "Appender",
    "FileSessionStore",
    "Mailbox",
    "MessageIterator",
    "Messages",
    "SessionData",
    "SessionDelta",
    "__version__",
    "build_profile",
    "close_all",
    "parse_config",
]

__version__: Final[str]
build_profile: Final[str]

_Message = Mapping[str, Any]
_Hook = Callable[[Any], Any]

def parse_config(
    text: str,
    format: str,
    positions: dict[tuple[str | int, ...], tuple[int, int, str | None]] | None = None,
) -> Any:
    """A configuration text (`format` "hcl" or "json") as plain dicts, lists and scalars.

    `env("NAME")` and `env("NAME", "default")` are evaluated; an unset variable without default is None. Every HCL
    block is a list of dicts, also a single one. `positions` is filled with the path of each value: its line, its
    column and, where it is an `env()` of an unset variable, that variable. Raises `ConfigError` with line and column.
    """

def close_all() -> None:
    """Close the files of every `FileSessionStore` of this process. Called when the interpreter exits."""

@final
class Messages(Sequence[dict[str, Any]]):
    """A session's messages as they were when this was made: an immutable sequence that decodes only what is looked at.

    `len` is free. Items are fresh dicts: changing one changes nothing here. A slice is a view again. Equal to a list or
    tuple with equal items.
    """

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice, /) -> Messages: ...
    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def index(self, value: Any, start: int = 0, stop: int = ..., /) -> int: ...
    def count(self, value: Any, /) -> int: ...
    def raw(self, index: int) -> bytes:
        """The message's JSON as it is stored: UTF-8, on one line."""

@final
class MessageIterator(Iterator[dict[str, Any]]):
    def __iter__(self) -> MessageIterator: ...
    def __next__(self) -> dict[str, Any]: ...
    def __length_hint__(self) -> int: ...

@final
class SessionData:
    """A session in memory: what stores get and give.

    Fields that are not named here are kept too: `get`, `set`, `keys`. All values are encoded when they are given, so a
    later change of the object that was passed in changes nothing, and every value that is read is a fresh one. Safe to
    share between threads.

    A session knows what it was loaded from or last saved as (its *base*: lineage and revision). A store that honours
    revisions saves it only if that is what is stored.

    Args:
        id: 1 to 4,096 characters, no NUL; else `InvalidSessionIdError`.
        **fields: `messages` (dicts), `config`, `state`, `tasks`, `tool_names`, `context_usage`, `total_usage`,
            `model_name`, `created_at`, `updated_at` (aware datetime or Unix seconds), `tags`, or any other JSON value
            under any other name. `SerializationError` names what cannot be written.
    """

    def __new__(cls, id: str, /, **fields: Any) -> SessionData: ...
    @property
    def id(self) -> str: ...
    @property
    def messages(self) -> Messages:
        """The messages as they are now; O(1)."""
    @property
    def revision(self) -> int:
        """Revision of the base; 0: never saved, or from a file that knows none."""
    @property
    def lineage(self) -> str | None:
        """32 hex digits that tell this session's life from another's of the same id; None before the first save."""
    @property
    def parent(self) -> dict[str, Any] | None:
        """`id`, `lineage`, `revision`, `at` of the session that this one was forked from."""
    @property
    def first_prompt(self) -> str | None:
        """Text of the first user message, at most 200 characters."""
    @property
    def tags(self) -> list[str]: ...
    @tags.setter
    def tags(self, tags: Sequence[str]) -> None: ...
    @property
    def config(self) -> dict[str, Any]:
        """`name`, `workspace`, `system_prompt` and so on; a fresh dict. Assign one to change it."""
    @config.setter
    def config(self, value: dict[str, Any]) -> None: ...
    @property
    def state(self) -> str: ...
    @state.setter
    def state(self, value: str) -> None: ...
    @property
    def tasks(self) -> list[Any]: ...
    @tasks.setter
    def tasks(self, value: Sequence[Any]) -> None: ...
    @property
    def tool_names(self) -> list[str]: ...
    @tool_names.setter
    def tool_names(self, value: Sequence[str]) -> None: ...
    @property
    def context_usage(self) -> dict[str, Any]: ...
    @context_usage.setter
    def context_usage(self, value: dict[str, Any]) -> None: ...
    @property
    def total_usage(self) -> dict[str, Any]: ...
    @total_usage.setter
    def total_usage(self, value: dict[str, Any]) -> None: ...
    @property
    def model_name(self) -> str | None: ...
    @model_name.setter
    def model_name(self, value: str | None) -> None: ...
    @property
    def created_at(self) -> datetime:
        """Aware, UTC, whole seconds."""
    @property
    def updated_at(self) -> datetime:
        """Time of the last change; aware, UTC, whole seconds."""
    @property
    def _first_loaded(self) -> int:
        """Index of the first message that is in memory; 0 once all are."""
    def _load_all(self) -> None:
        """Read and check what has not been read of the file yet. Raises as `FileSessionStore.load`."""
    def __len__(self) -> int:
        """Number of messages."""
    def __bool__(self) -> bool:
        """True, also without messages."""
    def get(self, key: str, default: Any = None) -> Any:
        """A head field by its name in the file."""
    def set(self, key: str, value: Any) -> None:
        """Set a head field. Raises `SerializationError` for `id`, `perdure`, `messages` and what is not JSON."""
    def keys(self) -> list[str]:
        """Names of the head fields in file order, without `id`, `perdure` and `messages`."""
    def append(self, *messages: _Message, default: _Hook | None = None) -> None:
        """Add messages at the end: all of them, or none.

        `default` is called for a value that is not JSON and returns one that is. Raises `SerializationError` with the
        path, such as `messages[3].content[0].input.when`.
        """
    def truncate(self, count: int) -> None:
        """Keep the first `count` messages. Raises `ValueError` if there are fewer."""
    def replace(self, index: int, message: _Message, *, default: _Hook | None = None) -> None:
        """Put another message in the place of one. Raises `IndexError`, `SerializationError`."""
    def freeze(self) -> SessionData:
        """An independent copy as of now, its base included; O(1)."""
    def fork(self, new_id: str, at: int | None = None) -> SessionData:
        """A new, unsaved session of the first `at` messages (all, if None), with this one as `parent`."""
    def to_json(self) -> bytes:
        """The bytes of a snapshot file (docs/format.md) at the base's revision."""
    @staticmethod
    def from_json(json: bytes | bytearray | str) -> SessionData:
        """A session from a snapshot file's bytes, perdure's or A3S Code's. Raises `SessionCorruptError`."""
    def to_dict(self) -> dict[str, Any]:
        """The same as plain objects."""
    @staticmethod
    def from_dict(fields: dict[str, Any], *, default: _Hook | None = None) -> SessionData:
        """A session from what `to_dict` gives. Raises `SerializationError`, `SessionCorruptError`."""
    def delta(self, *, always: bool = False) -> SessionDelta | None:
        """What the next save has to write, or None if nothing changed since the base (with `always` an empty one)."""
    def settle(self, delta: SessionDelta, *, saved: bool = True) -> None:
        """Move the base to `delta`, which a store has saved. Changes made since it was taken stay unsaved.

        `saved=False`: the store failed. If it cannot know whether the delta is stored, the next save accepts both.
        Raises `ValueError` for a delta of another session.
        """
    def rebase(self, stored: SessionData) -> None:
        """Take the base of `stored`: the next save overwrites that state, knowingly."""
    def detach(self) -> None:
        """Forget the base: the next save creates."""

@final
class Appender:
    """Appends messages to a session and saves it, in one call.

    `secrets`: texts that must not be stored as they are. Not part of the public interface.
    """

    def __new__(cls, store: FileSessionStore, secrets: Sequence[str]) -> Self: ...
    def append(self, data: SessionData, messages: tuple[_Message, ...], /) -> bool:
        """Append and save. False: a message is in short form, no dict or may hold a secret; nothing was done.

        Raises `SerializationError` with nothing appended, and what `FileSessionStore.save` raises.
        """
    def append_later(
        self, data: SessionData, messages: tuple[_Message, ...], mailbox: Mailbox, future: Future[None], /
    ) -> bool:
        """Append now and save on a thread; the outcome goes to the mailbox, with `future`."""

@final
class Mailbox:
    """Outcomes of saves. `notify` is called, on any thread, when the first one is there."""

    def __new__(cls, notify: Callable[[], object]) -> Self: ...
    def take(self) -> list[tuple[Future[None], Exception | None]]: ...

@final
class SessionDelta:
    """What one save writes: messages from `first_index` on are replaced by `messages`.

    Equal to the stored count it is an append, less is a rewind or an edit.
    """

    @property
    def session_id(self) -> str: ...
    @property
    def lineage(self) -> str: ...
    @property
    def base_revision(self) -> int | None:
        """What has to be stored; None: nothing."""
    @property
    def revision(self) -> int:
        """What will be stored."""
    @property
    def first_index(self) -> int: ...
    @property
    def message_count(self) -> int:
        """Messages after the save."""
    @property
    def messages(self) -> list[bytes]:
        """JSON of each new message, UTF-8, on one line."""
    @property
    def head(self) -> bytes:
        """JSON object of `id`, `perdure` and all head fields, as they will be stored."""
    @property
    def session(self) -> SessionData:
        """The whole session as it will be stored: a clone of its own, O(1)."""

@disjoint_base
class FileSessionStore:
    """Sessions in a directory, one readable JSON file each (docs/format.md).

    A save is acknowledged when it survives a power cut: the file is written beside the old one, synced, renamed, and
    the directory synced. Steps inside of a turn go to a journal beside it. In journal mode every save does: it costs
    what is new, whatever the length of the history, until the journal outgrows twice the file (and 64 KiB) and is
    folded into it. Safe to use from any thread; all stores of a process on one directory work together, and processes
    keep apart with a lock a session. May be subclassed; a subclass with an `__init__` of its own calls
    `super().__init__(dir)`.

    Args:
        dir: made with mode 0700 if it is not there; its parents too.
        journal: journal mode. A session that was saved stays locked for other processes until it is released, the
            store is closed or, where very many are open, others need its file descriptors.
        durability: "full", or "process": lines of the journal are not synced and may be lost to a power cut; whole
            files are synced all the same, so the session never is.
        lock_timeout: seconds to wait for another process that has the session open, before `SessionLockedError`. A
            process that is just saving is waited for in any case.

    Raises `StoreError` if the directory cannot be opened, `ConfigError` for bad arguments.
    """

    revisions: bool
    threadsafe: bool
    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    def __init__(
        self,
        dir: str | os.PathLike[str],
        *,
        journal: bool = False,
        durability: str = "full",
        lock_timeout: float = 0.0,
    ) -> None: ...
    @property
    def path(self) -> Any:
        """The directory, a `pathlib.Path`."""
    @property
    def durability(self) -> str: ...
    @property
    def journal(self) -> bool: ...
    def save(self, data: SessionData, /, *, create: bool = False, force: bool = False) -> SaveReceipt:
        """Save a session and move its base. An unchanged one writes nothing.

        `create`: it is a copy, the id has to be free. `force`: overwrite whatever is stored (but never a damaged file).
        Raises `SessionExistsError`, `SessionConflictError`, `SessionLockedError`, `SessionCorruptError`, `StoreError`;
        what was stored stays as it was.
        """
    def save_many(
        self, datas: Iterable[SessionData], /, *, create: bool = False, force: bool = False
    ) -> builtins.list[SaveReceipt | PerdureError]:
        """Save many sessions at the same time, on threads of the engine's: a receipt or an error each, in their order.

        Syncs that wait together are confirmed together by most file systems, so this is many times faster than one
        after the other. Raises `TypeError` for what is not a `SessionData`; then nothing is saved.
        """
    def checkpoint(self, id: str, /) -> SaveReceipt:
        """Put what the journal of a session holds into its file, so that everything can be read there.

        The revision stays. Raises `SessionNotFoundError`, `SessionLockedError`, `SessionCorruptError`, `StoreError`.
        """
    def stats(self) -> StoreStats:
        """What this process has written to the directory since it opened it first."""
    def append(self, delta: SessionDelta, /, *, step: bool = False) -> SaveReceipt:
        """Save what changed. `step`: inside of a turn, to the journal. The caller settles; raises as `save`."""
    def load(self, id: str, /) -> SessionData | None:
        """The session, or None. A warning is logged if the file was changed outside perdure.

        Of a file over 64 KiB without a journal only head and end are read and checked, whatever its length. The rest is
        when it is first needed: for an earlier message, a change, a save. It comes from the file that was opened, also
        if that has been replaced since; what is wrong with it raises then.

        Raises `SessionCorruptError` with path, line and column, `StoreError`.
        """
    def delete(self, id: str, /) -> bool:
        """Delete a session for good, power-safe; False if there is none."""
    def list(self) -> list[str]:
        """Ids of all sessions, sorted. Files that are not sessions are left out."""
    def exists(self, id: str, /) -> bool:
        """Whether there is such a session, be it damaged."""
    def infos(self, limit: int = 50, cursor: str | None = None) -> tuple[builtins.list[SessionInfo], str | None]:
        """A page of the listing, newest first, and the cursor of the next one. No history is loaded.

        Raises `ValueError` for a limit below 1 and for what is not a cursor of this store.
        """
    def health_check(self) -> None:
        """Write, sync and remove a small file. Raises `StoreError`."""
    def release(self, data: SessionData) -> None:
        """Close this session's files and let go of its lock. Saving it again opens them again.

        In journal mode a journal over a quarter of the file is folded into it first; if that fails, a warning is logged
        and nothing is lost.
        """
    def close(self) -> None:
        """`release` for all sessions of this directory. The store can be used afterwards."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None: ...
