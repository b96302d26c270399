"""Models and their keys in agent.hcl: which is meant, and what is said when one is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from config_helpers import CANARY, EXAMPLE, set_variables
from perdure.config import AgentConfig, ModelConfig, load_config
from perdure.errors import ConfigError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch)


def test_find_model() -> None:
    config = load_config(EXAMPLE)
    found = config.find_model()
    assert (found.name, found.api_key, found.base_url) == (
        "openai/gpt-4o",
        CANARY,
        "https://api.example.com/v1",
    )
    assert found.require_key() == CANARY
    assert config.find_model("openai/gpt-4o-mini").require_key() == "sk-other-0123456789"
    # A provider without models blocks takes any id, also one with slashes.
    assert config.find_model("anthropic/a/b").model == ModelConfig("a/b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("openai/gpt-4", "it has: gpt-4o, gpt-4o-mini; did you mean 'gpt-4o'?"),
        ("opnai/gpt-4o", "there are: openai, anthropic, local; did you mean 'openai'?"),
        ("gpt-4o", "not of the form provider/model; did you mean 'openai/gpt-4o'?"),
        ("openai/", "not of the form provider/model"),
        ("/gpt-4o", "not of the form provider/model"),
        ("", "model must not be empty"),
        ("local/llama", "smollm2, or give the path of a GGUF file"),
        ("x" * 100_000, "not of the form provider/model"),
    ],
)
def test_find_model_that_is_not_there(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(EXAMPLE).find_model(name)
    assert words in str(caught.value)
    assert caught.value.option == "model"
    assert len(str(caught.value)) < 500


def test_the_default_model_is_checked_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "agent.hcl"
    file.write_text('\ndefault_model = "openai/x"\nproviders "openai" {\n models "y" {\n }\n}\n')
    config = load_config(file)
    with pytest.raises(ConfigError) as caught:
        config.validate()
    error = caught.value
    assert (error.path, error.line, error.column, error.option) == (str(file), 2, 1, "default_model")
    AgentConfig().validate()
    with pytest.raises(ConfigError, match="no model is chosen"):
        AgentConfig().find_model()


def test_a_missing_key_is_an_error_only_when_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "agent.hcl"
    file.write_text(
        """
providers "anthropic" {
  api_key = env("PERDURE_TEST_UNSET")
}
providers "my-server" {
}
providers "half" {
  api_key = "sk-0123456789"
  base_url = "https://a.example"
  models "key" {
    api_key = env("PERDURE_TEST_UNSET")
  }
  models "url" {
    base_url = env("PERDURE_TEST_UNSET")
  }
}
"""
    )
    config = load_config(file)

    def missing(name: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            config.find_model(name).require_key()
        return caught.value

    error = missing("anthropic/claude")
    assert "PERDURE_TEST_UNSET, which api_key names, is not set, or empty" in str(error)
    assert "'anthropic'" in str(error)
    assert (error.path, error.line, error.option) == (str(file), 2, "api_key")
    assert 'api_key = env("MY_SERVER_API_KEY")' in str(missing("my-server/x"))
    # An override that is not set must not send the provider's key, or a key to the provider's server.
    assert "api_key names" in str(missing("half/key"))
    assert "base_url names" in str(missing("half/url"))
    assert config.find_model("half/url").base_url is None


def test_a_key_is_stripped_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_TEST_KEY", f" {CANARY}\n")
    assert load_config(EXAMPLE).providers[0].api_key == CANARY
    for empty in ("", " \n"):
        monkeypatch.setenv("PERDURE_TEST_KEY", empty)
        with pytest.raises(ConfigError, match="PERDURE_TEST_KEY, which api_key names, is not set, or empty"):
            load_config(EXAMPLE).find_model().require_key()
        text = 'providers "a" {\n api_key = "sk-0123456789"\n base_url = env("PERDURE_TEST_KEY")\n}\n'
        with pytest.raises(ConfigError, match="base_url names, is not set, or empty"):
            load_config(text).find_model("a/b").require_key()


def test_the_local_provider_needs_nothing() -> None:
    config = AgentConfig()
    for name, model in (
        ("local", "smollm2"),
        ("local/smollm2", "smollm2"),
        ("local//opt/m.gguf", "/opt/m.gguf"),
        ("local/m.gguf", "m.gguf"),
    ):
        found = config.find_model(name)
        assert (found.provider.name, found.model.id, found.is_local) == ("local", model, True)
        assert found.require_key() == ""
    elsewhere = load_config('providers "local" {\n base_url = "http://127.0.0.1:1/v1"\n}\n').find_model("local/any")
    assert not elsewhere.is_local
    with pytest.raises(ConfigError, match="no api_key"):
        elsewhere.require_key()
