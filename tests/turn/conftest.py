"""What the tests of the turn share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .scripted import ScriptedServer

KEY = "sk-Canary-9f8e7d6c5b4a"
"""The api key of every test. It must turn up in requests and nowhere else."""


@dataclass(frozen=True)
class Provider:
    name: str


@dataclass(frozen=True)
class Config:
    id: str = "m-1"
    tool_call: bool | None = True
    max_output_tokens: int | None = None


@dataclass(frozen=True)
class Resolved:
    """A resolved model as `perdure.config` gives it."""

    provider: Provider
    model: Config
    api_key: str | None
    base_url: str | None

    def require_key(self) -> str:
        assert self.api_key is not None
        return self.api_key


def resolved(
    provider: str, base_url: str | None, *, api_key: str | None = KEY, tool_call: bool | None = True
) -> Resolved:
    return Resolved(Provider(provider), Config(tool_call=tool_call), api_key, base_url)


def url_of(server: ScriptedServer, provider: str) -> str:
    return server.anthropic_url if provider == "anthropic" else server.openai_url


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running
    assert not running.left, "the test scripted replies that nobody asked for"
