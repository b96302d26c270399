"""What the tests of agent.hcl share: an example, its variables, and what is said about a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.config import load_config
from perdure.errors import ConfigError

CANARY = "sk-canary-0123456789abcdef"

EXAMPLE = """
# the example of the documentation
default_model = "openai/gpt-4o"
sessions_dir  = ".a3s/sessions"
max_tool_rounds = 50
providers {
  name     = "openai"
  api_key  = env("PERDURE_TEST_KEY")
  base_url = "https://api.example.com/v1"
  models {
    id = "gpt-4o"
    name = "GPT-4o"
    tool_call = true
  }
  models "gpt-4o-mini" {
    api_key = env("PERDURE_TEST_OTHER_KEY", "sk-other-0123456789")
    tool_call = false
    limit {
      context = 128000
      output  = 4096
    }
  }
}
providers "anthropic" {
  apiKey = env("PERDURE_TEST_UNSET")
}
"""


def set_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that the example asks for."""
    monkeypatch.setenv("PERDURE_TEST_KEY", CANARY)
    for name in ("PERDURE_TEST_OTHER_KEY", "PERDURE_TEST_UNSET"):
        monkeypatch.delenv(name, raising=False)


def refusal(source: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    return caught.value
