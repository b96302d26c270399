"""From the configuration to a model of pydantic-ai."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import httpx2
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.providers import infer_provider_class

from perdure.errors import ConfigError
from perdure.turn import missing_extra

__all__ = ["ResolvedModelLike", "build_model", "compatible_model"]


class _Provider(Protocol):
    @property
    def name(self) -> str: ...


class _Model(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def tool_call(self) -> bool | None: ...
    @property
    def max_output_tokens(self) -> int | None: ...


class ResolvedModelLike(Protocol):
    """`perdure.config.ResolvedModel`, as far as opening a model needs it."""

    @property
    def provider(self) -> _Provider: ...
    @property
    def model(self) -> _Model: ...
    @property
    def api_key(self) -> str | None: ...
    @property
    def base_url(self) -> str | None: ...
    def require_key(self) -> str: ...


def build_model(resolved: ResolvedModelLike) -> Model[Any]:
    """The model, not yet connected. Raises `ConfigError` without the key, package or provider it needs."""
    name = resolved.provider.name
    problem: ConfigError
    try:
        if name == "openai":
            return _openai(resolved)
        if name == "anthropic":
            return _anthropic(resolved)
        return _by_name(resolved)
    except ImportError as error:
        problem = missing_extra(error) if name in ("openai", "anthropic") else _no_package(name, error)
    except UserError as error:
        problem = ConfigError(f"provider {name!r}: {error.message}", option="providers")
    raise problem


def compatible_model(
    name: str, model_id: str, url: str, key: str | None, client: httpx2.AsyncClient | None
) -> Model[Any]:
    """A model on any OpenAI-compatible server. `name` decides what signed parts of a history it gets back."""
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    provider = OpenAICompatibleProvider(name, base_url=url, api_key=key or "none", http_client=client)
    return OpenAIChatModel(model_id, provider=provider)


def _openai(resolved: ResolvedModelLike) -> Model[Any]:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=resolved.base_url, api_key=resolved.require_key())
    return OpenAIChatModel(resolved.model.id, provider=provider)


def _anthropic(resolved: ResolvedModelLike) -> Model[Any]:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    key, url = resolved.require_key(), resolved.base_url
    provider = AnthropicProvider(api_key=key, base_url=url) if url else AnthropicProvider(api_key=key)
    return AnthropicModel(resolved.model.id, provider=provider)


def _by_name(resolved: ResolvedModelLike) -> Model[Any]:
    name, url = resolved.provider.name, resolved.base_url
    if _names_unset_variable(resolved):
        resolved.require_key()
    try:
        kind = infer_provider_class(name)
    except ValueError:
        kind = None
    if kind is None:
        if url:
            return compatible_model(name, resolved.model.id, url, resolved.require_key(), None)
        raise ConfigError(
            f"unknown provider {name!r}: use 'openai', 'anthropic', 'local' or a provider of pydantic-ai, "
            "or give it a base_url if its server is OpenAI-compatible",
            option="providers",
        )
    # Without a key in the configuration the provider looks for its own environment variable.
    takes = inspect.signature(kind.__init__).parameters
    given = {key: value for key, value in (("api_key", resolved.api_key), ("base_url", url)) if value}
    for key in given:
        if key not in takes:
            raise ConfigError(f"provider {name!r} takes no {key}", option="providers")
    arguments: dict[str, Any] = dict(given)
    return infer_model(f"{name}:{resolved.model.id}", lambda _: kind(**arguments))


def _names_unset_variable(resolved: ResolvedModelLike) -> bool:
    """Whether the key or the base_url is to come from an environment variable that is not set."""
    return any(
        value is None and getattr(holder, f"{what}_variable", None) is not None
        for what, value in (("api_key", resolved.api_key), ("base_url", resolved.base_url))
        for holder in (resolved.model, resolved.provider)
    )


def _no_package(name: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"provider {name!r} needs a package that is not installed ({error.name or 'unknown'}): "
        f"run `pip install 'pydantic-ai-slim[{name}]'`",
        option="providers",
    )
