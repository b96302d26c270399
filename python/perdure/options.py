"""SessionOptions: what a session is to do, as keywords or step by step."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from perdure._checks import (
    check_bool,
    check_callable,
    check_choice,
    check_count,
    check_directory,
    check_number,
    check_prompt,
    check_redact,
    check_store,
    check_tags,
    check_tasks,
    check_text,
    check_tools,
    unknown_name,
)
from perdure.errors import ConfigError, InvalidSessionIdError

if TYPE_CHECKING:
    from typing import TypeAlias

    from perdure.config import AgentConfig
    from perdure.stores.protocol import SessionStore

    Confirm: TypeAlias = Callable[[str, dict[str, Any]], bool | Awaitable[bool]]
    Tools: TypeAlias = Sequence[str | Callable[..., Any]]

__all__ = ["ResolvedOptions", "SessionOptions", "check_session_id", "new_session_id"]

_LONGEST_ID = 4096

_Options = TypeVar("_Options", bound="SessionOptions")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SessionOptions:
    """The options of a session. None, the default everywhere, means "not given".

    What is not given comes from agent.hcl, and then from the default named below. Options are immutable; each
    `with_…` method returns a copy with one option changed, so that `SessionOptions(auto_save=True)` and
    `SessionOptions().with_auto_save(True)` are the same. Unknown names and values that do not fit raise
    `ConfigError`; an id that is none raises `InvalidSessionIdError`.
    """

    session_id: str | None = None
    """The session's id, 1 to 4,096 characters without NUL. Default: a new one, see `new_session_id`."""
    file_session_store: str | os.PathLike[str] | None = None
    """Directory of session files, relative to the workspace. Not together with `session_store`."""
    session_store: SessionStore | str | None = None
    """A store, or the URL of one. Default of both: agent.hcl's `sessions_dir` or `storage_url`, else none."""
    auto_save: bool | None = None
    """Save every step and turn. Default False. Without a store: `ConfigError`."""
    journal: bool | None = None
    """File store: saves go to a journal and cost what is new. Default False."""
    durability: Literal["full", "process"] | None = None
    """File store: "full" survives a power cut, "process" the end of the process. Default "full"."""
    resume: bool | None = None
    """Take up the session `session_id` if it exists, instead of `SessionExistsError`. Default False."""
    model: str | None = None
    """The model, as `provider/model`. Default: `default_model` of agent.hcl."""
    system_prompt: str | None = None
    """What the model is told before the conversation. Default: none."""
    temperature: float | None = None
    """Sampling temperature, at least 0. Default: the provider's."""
    max_tool_rounds: int | None = None
    """Model calls with tool results in one turn, at least 1. Default 50."""
    tool_timeout: float | None = None
    """Seconds that one tool call may take. Default 120."""
    tools: Tools | None = None
    """Names of built-in tools and Python functions. Default: all built-in tools."""
    permissive: bool | None = None
    """Run tools that change something without asking. Default False."""
    confirm: Confirm | None = None
    """Asked before such a tool runs: `confirm(name, input)` gives a bool or an awaitable of one."""
    name: str | None = None
    """A title for people. Default ""."""
    tags: Sequence[str] | None = None
    """Labels that listings show. Default: none."""
    planning_enabled: bool | None = None
    """Kept in the session. Default False."""
    tasks: Sequence[Mapping[str, Any]] | None = None
    """The session's task list, JSON objects. Default: empty."""
    on_save_error: Callable[[Exception], object] | None = None
    """Called with the error when an automatic save fails, beside the warning on logger `perdure`."""
    redact: Callable[[str], str] | Literal[False] | None = None
    """Takes each text and gives back what is to be kept of it. Default: none; api keys are masked anyway."""
    store_timeout: float | None = None
    """Seconds that one call of the store may take. Default 60."""
    lock_timeout: float | None = None
    """Seconds to wait for another process that has the session. Default 0: `SessionLockedError` at once."""

    if not TYPE_CHECKING:  # For type checkers the keywords are those of the fields.

        def __new__(cls, *_: object, **options: object) -> SessionOptions:
            # The generated __init__ would raise a bare TypeError for a misspelt name.
            _refuse_unknown(options)
            return object.__new__(cls)

    def __post_init__(self) -> None:
        for option, check in _CHECKS.items():
            value = getattr(self, option)
            if value is not None:
                object.__setattr__(self, option, check(value, option))
        if self.file_session_store is not None and self.session_store is not None:
            raise ConfigError(
                "file_session_store and session_store are both given; a session has one store",
                option="session_store",
            )

    def __repr__(self) -> str:
        """The options that are given, without URLs, prompts and tasks."""
        shown = []
        for option, value in self.given().items():
            text = repr(value)
            if option == "session_store" and isinstance(value, str):
                text = f"'{value.partition(':')[0]}:…'"
            elif option == "system_prompt":
                text = f"<{len(value)} characters>"
            elif option == "tasks":
                text = f"<{len(value)} tasks>"
            shown.append(f"{option}={text}")
        return f"SessionOptions({', '.join(shown)})"

    def given(self) -> dict[str, Any]:
        """The options that are given, by name."""
        every = ((option, getattr(self, option)) for option in _CHECKS)
        return {option: value for option, value in every if value is not None}

    def merged(self: _Options, overrides: Mapping[str, Any]) -> _Options:
        """These options under those of a call: what `overrides` gives (is not None) wins.

        A store in `overrides` takes the place of either kind of store. Raises as the constructor does.
        """
        _refuse_unknown(overrides)
        changes = {option: value for option, value in overrides.items() if value is not None}
        if not _STORES.isdisjoint(changes):
            changes = {**dict.fromkeys(_STORES), **changes}
        return replace(self, **changes)

    def resolve(self, config: AgentConfig) -> ResolvedOptions:
        """Fill what is not given from agent.hcl and then from the defaults.

        Raises `ConfigError` for `auto_save` without a store, `resume` without `session_id`, `journal` or
        `durability="process"` together with a `session_store`, which would do nothing, and for settings of
        agent.hcl that contradict each other.
        """
        given = self.given()
        values = {option: getattr(config, option) for option in _CONFIG_OPTIONS}
        values = {option: value for option, value in values.items() if value is not None} | given
        values.pop("redact", None)
        if _STORES.isdisjoint(given):
            values["file_session_store"], values["session_store"] = config.store()
        self._refuse_idle(values, config)
        resolved = ResolvedOptions(
            **{"session_id": new_session_id(), **values},
            redact=self.redact or None,
        )
        if resolved.auto_save and not resolved.has_store:
            raise ConfigError(
                "auto_save needs a place to save to: give file_session_store or session_store, or set "
                "sessions_dir or storage_url in agent.hcl",
                path=config.path,
                option="auto_save",
            )
        if resolved.resume and self.session_id is None:
            raise ConfigError("resume needs the session_id of the session to take up", option="resume")
        return resolved

    def _refuse_idle(self, values: Mapping[str, Any], config: AgentConfig) -> None:
        """Options of the file store that would do nothing with the store that there is."""
        store = values.get("session_store")
        if store is None or (isinstance(store, str) and store.lower().startswith("file:")):
            return
        for option, default in (("journal", False), ("durability", "full")):
            if values.get(option, default) == default:
                continue
            if self.session_store is not None and getattr(self, option) is not None:
                message = f"{option} goes with file_session_store; a session_store has to be told itself"
                raise ConfigError(message, option=option)
            if self.session_store is None:
                message = (
                    f"{option} goes with session files, and agent.hcl keeps sessions elsewhere; set sessions_dir there"
                )
                raise ConfigError(message, path=config.path, option=option)

    def with_session_id(self: _Options, session_id: str | None) -> _Options:
        """A copy with another `session_id`."""
        return replace(self, session_id=session_id)

    def with_file_session_store(self: _Options, directory: str | os.PathLike[str] | None) -> _Options:
        """A copy that keeps the session as a file in `directory`."""
        return replace(self, file_session_store=directory)

    def with_session_store(self: _Options, store: SessionStore | str | None) -> _Options:
        """A copy that keeps the session in `store`, a store or the URL of one."""
        return replace(self, session_store=store)

    def with_auto_save(self: _Options, auto_save: bool | None = True) -> _Options:
        """A copy with another `auto_save`."""
        return replace(self, auto_save=auto_save)

    def with_journal(self: _Options, journal: bool | None = True) -> _Options:
        """A copy with another `journal`."""
        return replace(self, journal=journal)

    def with_durability(self: _Options, durability: Literal["full", "process"] | None) -> _Options:
        """A copy with another `durability`."""
        return replace(self, durability=durability)

    def with_resume(self: _Options, resume: bool | None = True) -> _Options:
        """A copy with another `resume`."""
        return replace(self, resume=resume)

    def with_model(self: _Options, model: str | None) -> _Options:
        """A copy with another `model`."""
        return replace(self, model=model)

    def with_system_prompt(self: _Options, system_prompt: str | None) -> _Options:
        """A copy with another `system_prompt`."""
        return replace(self, system_prompt=system_prompt)

    def with_temperature(self: _Options, temperature: float | None) -> _Options:
        """A copy with another `temperature`."""
        return replace(self, temperature=temperature)

    def with_max_tool_rounds(self: _Options, max_tool_rounds: int | None) -> _Options:
        """A copy with another `max_tool_rounds`."""
        return replace(self, max_tool_rounds=max_tool_rounds)

    def with_tool_timeout(self: _Options, seconds: float | None) -> _Options:
        """A copy with another `tool_timeout`, in seconds."""
        return replace(self, tool_timeout=seconds)

    def with_tools(self: _Options, tools: Tools | None) -> _Options:
        """A copy with other `tools`: all of them, not one more."""
        return replace(self, tools=tools)

    def with_permissive(self: _Options, permissive: bool | None = True) -> _Options:
        """A copy with another `permissive`."""
        return replace(self, permissive=permissive)

    def with_confirm(self: _Options, confirm: Confirm | None) -> _Options:
        """A copy with another `confirm`."""
        return replace(self, confirm=confirm)

    def with_name(self: _Options, name: str | None) -> _Options:
        """A copy with another `name`."""
        return replace(self, name=name)

    def with_tags(self: _Options, tags: Sequence[str] | None) -> _Options:
        """A copy with other `tags`: all of them, not one more."""
        return replace(self, tags=tags)

    def with_planning_enabled(self: _Options, planning_enabled: bool | None = True) -> _Options:
        """A copy with another `planning_enabled`."""
        return replace(self, planning_enabled=planning_enabled)

    def with_tasks(self: _Options, tasks: Sequence[Mapping[str, Any]] | None) -> _Options:
        """A copy with another task list."""
        return replace(self, tasks=tasks)

    def with_on_save_error(self: _Options, on_save_error: Callable[[Exception], object] | None) -> _Options:
        """A copy with another `on_save_error`."""
        return replace(self, on_save_error=on_save_error)

    def with_redact(self: _Options, redact: Callable[[str], str] | Literal[False] | None) -> _Options:
        """A copy with another `redact`."""
        return replace(self, redact=redact)

    def with_store_timeout(self: _Options, seconds: float | None) -> _Options:
        """A copy with another `store_timeout`, in seconds."""
        return replace(self, store_timeout=seconds)

    def with_lock_timeout(self: _Options, seconds: float | None) -> _Options:
        """A copy with another `lock_timeout`, in seconds."""
        return replace(self, lock_timeout=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedOptions:
    """Every option with its value; see `SessionOptions` for the meanings.

    At most one of `file_session_store` and `session_store` is set. Where None stays possible it means: no
    store, agent.hcl's `default_model` (`model`), the provider's own (`temperature`), all built-in tools
    (`tools`), or none.
    """

    session_id: str
    file_session_store: str | None = None
    session_store: SessionStore | str | None = field(default=None, repr=False)
    auto_save: bool = False
    journal: bool = False
    durability: Literal["full", "process"] = "full"
    resume: bool = False
    model: str | None = None
    system_prompt: str | None = field(default=None, repr=False)
    temperature: float | None = None
    max_tool_rounds: int = 50
    tool_timeout: float = 120.0
    tools: tuple[str | Callable[..., Any], ...] | None = None
    permissive: bool = False
    confirm: Confirm | None = None
    name: str = ""
    tags: tuple[str, ...] = ()
    planning_enabled: bool = False
    tasks: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    on_save_error: Callable[[Exception], object] | None = None
    redact: Callable[[str], str] | None = None
    store_timeout: float = 60.0
    lock_timeout: float = 0.0

    @property
    def has_store(self) -> bool:
        """Whether the session has a place to be saved to."""
        return self.file_session_store is not None or self.session_store is not None


def check_session_id(session_id: object) -> str:
    """The id itself, if it is one: a str of 1 to 4,096 characters without NUL.

    Raises `InvalidSessionIdError`. Which file name an id gets is the store's affair.
    """
    if not isinstance(session_id, str):
        raise InvalidSessionIdError(f"a session id is a string, not {type(session_id).__name__}")
    if not session_id:
        raise InvalidSessionIdError("a session id must not be empty")
    if len(session_id) > _LONGEST_ID:
        raise InvalidSessionIdError(f"a session id has at most {_LONGEST_ID} characters, not {len(session_id)}")
    if "\0" in session_id:
        raise InvalidSessionIdError("a session id must not hold a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in session_id):
        raise InvalidSessionIdError("a session id must not hold a lone surrogate")
    return session_id


class _IdSource:
    """Ids that sort by the time of their making: 48 bits of milliseconds, then 80 random bits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> str:
        fresh = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
        with self._lock:
            if fresh >> 80 <= self._last >> 80:
                # The same millisecond, or the clock went back: on from the last id. The step is random so
                # that two processes after a fork do not make the same ids.
                fresh = self._last + 1 + secrets.randbits(64)
            self._last = fresh
        return "".join(_CROCKFORD[fresh >> shift & 31] for shift in range(125, -1, -5))


_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_ids = _IdSource()


def new_session_id() -> str:
    """A new id: 26 characters of 0-9 and a-z, unique, sorting after every earlier one of this process."""
    return _ids.next()


def _after_fork() -> None:
    # The lock may have been held by a thread that the child does not have.
    _ids._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _refuse_unknown(options: Mapping[str, object]) -> None:
    for option in options:
        if option not in _CHECKS:
            raise ConfigError(unknown_name("option", str(option), _CHECKS), option=str(option))


def _check_id(value: object, option: str) -> str:
    return check_session_id(value)


_STORES = frozenset({"file_session_store", "session_store"})

# In the order of the fields; a test holds the two together.
_CHECKS: dict[str, Callable[[object, str], object]] = {
    "session_id": _check_id,
    "file_session_store": check_directory,
    "session_store": check_store,
    "auto_save": check_bool,
    "journal": check_bool,
    "durability": check_choice("full", "process"),
    "resume": check_bool,
    "model": check_text,
    "system_prompt": check_prompt,
    "temperature": check_number,
    "max_tool_rounds": check_count,
    "tool_timeout": check_number,
    "tools": check_tools,
    "permissive": check_bool,
    "confirm": check_callable,
    "name": check_prompt,
    "tags": check_tags,
    "planning_enabled": check_bool,
    "tasks": check_tasks,
    "on_save_error": check_callable,
    "redact": check_redact,
    "store_timeout": check_number,
    "lock_timeout": check_number,
}

_CONFIG_OPTIONS = (
    "max_tool_rounds",
    "journal",
    "durability",
    "system_prompt",
    "temperature",
    "tool_timeout",
    "store_timeout",
    "lock_timeout",
    "auto_save",
    "permissive",
    "planning_enabled",
    "tools",
)
