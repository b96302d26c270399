"""agent.hcl: which models there are, where sessions lie, and the defaults of a session's options.

`load_config` reads HCL or JSON into an `AgentConfig`. It writes nothing, uses no network and needs no key.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from typing import NoReturn

from perdure._checks import (
    BUILTIN_TOOLS,
    check_bool,
    check_choice,
    check_count,
    check_number,
    check_prompt,
    check_text,
    check_tool_name,
    nearest,
    refuse_value,
    shorten,
    suggestion,
    url_secrets,
)
from perdure._config_source import Check, Source, Steps, is_path, read_file
from perdure.errors import ConfigError
from perdure.secrets import SHORTEST_SECRET

__all__ = ["AgentConfig", "ModelConfig", "ProviderConfig", "ResolvedModel", "load_config"]

logger = logging.getLogger("perdure")

LOCAL_PROVIDER = "local"
"""The provider that needs no block, no key and no network."""

LOCAL_MODEL = "smollm2"
"""Its default model; every other model of it is the path of a GGUF file."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model of a provider: a `models` block.

    `api_key` and `base_url` take the place of the provider's. `context_tokens` and `max_output_tokens` are
    the model's limits (`limit { context = …, output = … }`), None where they are not given.
    `api_key_variable` and `base_url_variable` name the environment variable of an `env("NAME")`.
    """

    id: str
    name: str | None = None
    tool_call: bool = True
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = field(default=None, repr=False)
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    api_key_variable: str | None = field(default=None, compare=False)
    base_url_variable: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One provider: a `providers` block.

    A provider without `models` blocks takes any model id. `place` is line and column of the block, if known.
    """

    name: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = field(default=None, repr=False)
    models: tuple[ModelConfig, ...] = ()
    api_key_variable: str | None = field(default=None, compare=False)
    base_url_variable: str | None = field(default=None, compare=False)
    place: tuple[int, int] | None = field(default=None, repr=False, compare=False)


def _parts(provider: ProviderConfig) -> tuple[ProviderConfig | ModelConfig, ...]:
    return (provider, *provider.models)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was looked up: `api_key` and `base_url` are the model's own or else the provider's."""

    provider: ProviderConfig
    model: ModelConfig
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = field(default=None, repr=False)
    path: str | None = None

    @property
    def name(self) -> str:
        """The full name, such as `openai/gpt-4o`."""
        return f"{self.provider.name}/{self.model.id}"

    @property
    def is_local(self) -> bool:
        """Whether perdure runs the model itself, so that there is no key and no `base_url`."""
        return self.provider.name == LOCAL_PROVIDER and self.base_url is None

    def require_key(self) -> str:
        """The api key; "" for a model that perdure runs itself.

        Raises `ConfigError` if there is none, or if the environment variable of `base_url` is not set: the
        key would go to another server than the one that was meant.
        """
        unset = "the environment variable {}, which {} names, is not set, or empty"
        variable = self.model.base_url_variable or self.provider.base_url_variable
        if self.base_url is None and variable is not None:
            self._missing("base_url", unset.format(variable, "base_url"))
        if self.api_key is not None or self.is_local:
            return self.api_key or ""
        variable = self.model.api_key_variable or self.provider.api_key_variable
        if variable is not None:
            self._missing("api_key", unset.format(variable, "api_key"))
        example = re.sub(r"\W", "_", self.provider.name).upper()
        return self._missing(
            "api_key",
            f'there is no api_key; add api_key = env("{example}_API_KEY") to its providers block '
            '(api_key = "none" for a server that wants no key)',
        )

    def _missing(self, option: str, what: str) -> NoReturn:
        line, column = self.provider.place or (None, None)
        raise ConfigError(
            f"provider {self.provider.name!r} cannot be used for {self.name}: {what}",
            path=self.path,
            line=line,
            column=column,
            option=option,
        )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent.hcl says; None where it says nothing. `path` is the file, None for text.

    `repr` shows no key and no URL. The options mean what they mean in `SessionOptions`, which goes first.
    """

    default_model: str | None = None
    sessions_dir: str | None = None
    storage_url: str | None = field(default=None, repr=False)
    storage_backend: str | None = None
    max_tool_rounds: int | None = None
    journal: bool | None = None
    durability: str | None = None
    system_prompt: str | None = field(default=None, repr=False)
    temperature: float | None = None
    tool_timeout: float | None = None
    store_timeout: float | None = None
    lock_timeout: float | None = None
    auto_save: bool | None = None
    permissive: bool | None = None
    planning_enabled: bool | None = None
    tools: tuple[str, ...] | None = None
    providers: tuple[ProviderConfig, ...] = ()
    path: str | None = None
    default_model_place: tuple[int, int] | None = field(default=None, repr=False, compare=False)

    def secrets(self) -> tuple[str, ...]:
        """Every api key, and the passwords in `storage_url` and the `base_url`s: what must never be shown."""
        found: list[str] = list(url_secrets(self.storage_url))
        for provider in self.providers:
            for part in _parts(provider):
                found += filter(None, (part.api_key, *url_secrets(part.base_url)))
        return tuple(dict.fromkeys(found))

    def find_model(self, name: str | None = None) -> ResolvedModel:
        """Look up `provider/model`; None is `default_model`. The key is not looked at.

        `local/smollm2` and `local/<path of a GGUF file>` need no block; `local` is short for the first.
        Raises `ConfigError` for an unknown provider or model, with what there is and the nearest name.
        """
        if name is None:
            if self.default_model is None:
                message = 'no model is chosen: set default_model = "provider/model" in agent.hcl, or pass model'
                raise ConfigError(message, path=self.path, option="default_model")
            return self._find(self.default_model, "default_model", self.path, self.default_model_place)
        return self._find(check_text(name, "model"), "model", None, None)

    def validate(self) -> None:
        """Check what can be checked without a key: `default_model` has to exist. Raises `ConfigError`."""
        if self.default_model is not None:
            self.find_model()

    def store(self) -> tuple[str | None, str | None]:
        """Where sessions lie: a directory or a store URL; both None if agent.hcl says nothing.

        `storage_backend` decides if both are given. Raises `ConfigError` for what does not fit together.
        """
        if self.storage_backend == "memory":
            return None, "memory://"
        if self.storage_backend is None and self.sessions_dir is not None and self.storage_url is not None:
            what = 'both are given; choose with storage_backend = "file" or "custom", or remove one'
            raise ConfigError(f"sessions_dir and storage_url: {what}", path=self.path, option="storage_backend")
        if self.storage_backend == "file" and self.sessions_dir is None and self.storage_url is not None:
            what = 'storage_backend = "file" needs sessions_dir; a storage_url goes with "custom"'
            raise ConfigError(what, path=self.path, option="storage_backend")
        if self.storage_backend == "custom":
            return None, self.storage_url
        if self.storage_backend == "file":
            return self.sessions_dir, None
        return self.sessions_dir, self.storage_url

    def _find(self, name: str, option: str, path: str | None, place: tuple[int, int] | None) -> ResolvedModel:
        line, column = place or (None, None)

        def refuse(message: str) -> NoReturn:
            raise ConfigError(f"{option}: {message}", path=path, line=line, column=column, option=option)

        wanted, slash, model_id = name.partition("/")
        if name == LOCAL_PROVIDER:
            slash, model_id = "/", LOCAL_MODEL
        known = [f"{provider.name}/{model.id}" for provider in self.providers for model in provider.models]
        if not slash or not wanted or not model_id:
            hint = nearest(name, known) or next((full for full in known if full.endswith(f"/{name}")), None)
            refuse(f"{shorten(name)} is not of the form provider/model{suggestion(hint)}")
        provider = next((provider for provider in self.providers if provider.name == wanted), None)
        if provider is None and wanted == LOCAL_PROVIDER:
            provider = ProviderConfig(LOCAL_PROVIDER)
        if provider is None:
            names = [*(provider.name for provider in self.providers), LOCAL_PROVIDER]
            refuse(
                f"there is no provider {shorten(wanted)}; there are: {', '.join(names)}"
                + suggestion(nearest(wanted, names))
            )
        model = next((model for model in provider.models if model.id == model_id), None)
        if model is None:
            own_server = provider.base_url is not None or provider.base_url_variable is not None
            if wanted == LOCAL_PROVIDER and not own_server:
                if model_id != LOCAL_MODEL and not model_id.endswith(".gguf") and not re.search(r"[/\\]", model_id):
                    refuse(
                        f"the local provider has no model {shorten(model_id)}; there is {LOCAL_MODEL}, "
                        "or give the path of a GGUF file: local/path/to/model.gguf"
                    )
            elif provider.models:
                ids = [model.id for model in provider.models]
                refuse(
                    f"provider {wanted!r} has no model {shorten(model_id)}; it has: {', '.join(ids)}"
                    + suggestion(nearest(model_id, ids))
                )
            model = ModelConfig(model_id)
        return ResolvedModel(
            provider,
            model,
            # An override whose environment variable is not set must not fall back: `require_key` refuses it.
            api_key=model.api_key if model.api_key or model.api_key_variable else provider.api_key,
            base_url=model.base_url if model.base_url or model.base_url_variable else provider.base_url,
            path=self.path,
        )


def _check_key(value: object, option: str) -> str | None:
    if not isinstance(value, str):
        raise ConfigError(f"{option} must be a string, not {type(value).__name__}", option=option)
    # White space around a key is left over from a file; in an HTTP header it would break the request.
    return value.strip() or None


def _check_base_url(value: object, option: str) -> str:
    url = check_text(value, option).strip()
    if not re.match(r"https?://[^/\s]", url, re.IGNORECASE):
        raise ConfigError(f'{option} must be a URL that starts with "https://" or "http://"', option=option)
    return url


def _check_storage_url(value: object, option: str) -> str:
    url = check_text(value, option).strip()
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
        raise ConfigError(
            f'{option} must be a URL such as "sqlite:///sessions.db"; a directory is sessions_dir',
            option=option,
        )
    return url


def _check_tools(value: object, option: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        refuse_value(option, f"a list of tool names ({', '.join(BUILTIN_TOOLS)})", value)
    return tuple(dict.fromkeys(check_tool_name(name, option) for name in value))


_AGENT_KEYS: dict[str, Check] = {
    "default_model": check_text,
    "sessions_dir": check_text,
    "storage_url": _check_storage_url,
    "storage_backend": check_choice("file", "memory", "custom"),
    "max_tool_rounds": check_count,
    "journal": check_bool,
    "durability": check_choice("full", "process"),
    "system_prompt": check_prompt,
    "temperature": check_number,
    "tool_timeout": check_number,
    "store_timeout": check_number,
    "lock_timeout": check_number,
    "auto_save": check_bool,
    "permissive": check_bool,
    "planning_enabled": check_bool,
    "tools": _check_tools,
}
_PROVIDER_KEYS: dict[str, Check] = {"name": check_text, "api_key": _check_key, "base_url": _check_base_url}
_MODEL_KEYS: dict[str, Check] = {
    "id": check_text,
    "name": check_prompt,
    "tool_call": check_bool,
    "api_key": _check_key,
    "base_url": _check_base_url,
}
_LIMIT_KEYS: dict[str, Check] = {"context": check_count, "output": check_count}

# Keys that A3S Code knows and perdure has no use for. One file can serve both; the log says what is left out.
# fmt: off
_A3S_AGENT_KEYS = frozenset(
    {
        "agent_dirs", "api_timeout_ms", "auto_delegation", "auto_parallel", "document_parser",
        "global_instructions_dir", "llm_api_timeout_ms", "max_parallel_tasks", "mcp_servers",
        "memory", "memory_dir", "model_api_timeout_ms", "os", "project_doc_fallback_filenames",
        "project_doc_max_bytes", "queue", "search", "skill_dirs", "task_scheduler",
        "thinking_budget", "user_instructions_dir",
    }
)
_A3S_PROVIDER_KEYS = frozenset(
    {
        "headers", "session_id_header",
    }
)
_A3S_MODEL_KEYS = frozenset(
    {
        "attachment", "cost", "family", "headers", "modalities", "reasoning", "release_date",
        "session_id_header", "temperature",
    }
)
# fmt: on


def load_config(source: str | os.PathLike[str]) -> AgentConfig:
    """Read a configuration.

    source  a path (a `PathLike`; a str that ends in .hcl, .acl or .json, names an existing file, or holds
            neither a line break nor a brace nor `=`), or else HCL or JSON text; at most 256 KiB

    Keys may be snake_case or camelCase. Raises `ConfigError` with path, line and column for a file that
    cannot be read, bad syntax, unknown keys, wrong types, and environment variables that are not set (those
    of `api_key` and `base_url` only when a model is needed). Keys that A3S Code alone uses are named in a
    warning on logger `perdure`.
    """
    if isinstance(source, (str, os.PathLike)) and not isinstance(fspath := os.fspath(source), str):
        source = os.fsdecode(fspath)
    if isinstance(source, str) and not is_path(source):
        path, text = None, source
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        text = read_file(path)
    else:
        raise ConfigError(f"the configuration must be a path or text, not {type(source).__name__}")
    text = text.removeprefix("\ufeff")
    is_json = text.lstrip()[:1] in ("{", "[") or (path is not None and path.lower().endswith(".json"))
    return _agent(Source(text, "json" if is_json else "hcl", path))


def _agent(source: Source) -> AgentConfig:
    kind = "the configuration"
    fields = source.fields(source.tree, (), kind, (*_AGENT_KEYS, "providers"), _A3S_AGENT_KEYS)
    providers: list[ProviderConfig] = []
    for value, where in source.items(fields, "providers"):
        provider = _provider(source, value, where)
        if any(provider.name == other.name for other in providers):
            source.refuse(where, f"there are two providers {shorten(provider.name)}", "providers")
        providers.append(provider)
    values = source.checked(fields, _AGENT_KEYS)
    place = source.place(fields["default_model"][1]) if "default_model" in fields else None
    config = AgentConfig(**values, providers=tuple(providers), path=source.path, default_model_place=place)
    where_from = f" of {source.path}" if source.path else ""
    if source.ignored:
        names = ", ".join(sorted(set(source.ignored)))
        logger.warning("these keys%s are A3S Code's, and perdure does not use them: %s", where_from, names)
    for provider in providers:
        if any(0 < len(part.api_key or "") < SHORTEST_SECRET for part in _parts(provider)):
            logger.warning(
                "an api_key of provider %r%s has fewer than %d characters: a placeholder that is not masked",
                provider.name,
                where_from,
                SHORTEST_SECRET,
            )
    return config


def _provider(source: Source, value: object, where: Steps) -> ProviderConfig:
    fields = source.fields(value, where, "providers", (*_PROVIDER_KEYS, "models"), _A3S_PROVIDER_KEYS)
    values = source.checked(fields, _PROVIDER_KEYS)
    if "name" not in values:
        source.refuse(where, 'a providers block needs a name, such as name = "openai"', "name")
    if "/" in values["name"]:
        source.refuse(where, "the name of a provider must not hold a slash", "name")
    models: list[ModelConfig] = []
    for item, inner in source.items(fields, "models"):
        model = _model(source, item, inner)
        if any(model.id == other.id for other in models):
            source.refuse(inner, f"provider {values['name']!r} has two models {shorten(model.id)}", "models")
        models.append(model)
    return ProviderConfig(**values, models=tuple(models), place=source.place(where))


def _model(source: Source, value: object, where: Steps) -> ModelConfig:
    fields = source.fields(value, where, "models", (*_MODEL_KEYS, "limit"), _A3S_MODEL_KEYS)
    values = source.checked(fields, _MODEL_KEYS)
    if "id" not in values:
        source.refuse(where, 'a models block needs an id, such as id = "gpt-4o"', "id")
    for item, inner in source.items(fields, "limit"):
        limits = source.checked(source.fields(item, inner, "limit", _LIMIT_KEYS), _LIMIT_KEYS)
        values["context_tokens"] = limits.get("context")
        values["max_output_tokens"] = limits.get("output")
    return ModelConfig(**values)
