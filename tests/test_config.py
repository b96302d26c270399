"""agent.hcl: what it may say, and what is said about one that is wrong."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from config_helpers import CANARY, EXAMPLE, refusal, set_variables
from perdure._config_source import _json_place
from perdure.config import AgentConfig, ModelConfig, ProviderConfig, load_config
from perdure.errors import ConfigError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch)


def test_the_example(tmp_path: Path) -> None:
    config = load_config(EXAMPLE)
    openai, anthropic = config.providers
    assert (config.default_model, config.sessions_dir, config.max_tool_rounds) == (
        "openai/gpt-4o",
        ".a3s/sessions",
        50,
    )
    assert (openai.name, openai.api_key, openai.base_url) == ("openai", CANARY, "https://api.example.com/v1")
    assert openai.models == (
        ModelConfig("gpt-4o", name="GPT-4o"),
        ModelConfig(
            "gpt-4o-mini",
            tool_call=False,
            api_key="sk-other-0123456789",
            context_tokens=128000,
            max_output_tokens=4096,
        ),
    )
    assert anthropic == ProviderConfig("anthropic")
    assert config.secrets() == (CANARY, "sk-other-0123456789")
    assert config.path is None
    config.validate()

    for name in ("agent.hcl", "agent.acl", "agent.conf"):
        file = tmp_path / name
        file.write_text(EXAMPLE, encoding="utf-8-sig")
        for source in (file, str(file)):
            assert load_config(source) == AgentConfig(**{**_fields(config), "path": str(file)})


def _fields(config: AgentConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_json_with_either_kind_of_keys() -> None:
    camel = {
        "defaultModel": "openai/gpt-4o",
        "sessionsDir": "s",
        "maxToolRounds": 5,
        "toolTimeout": 1.5,
        "autoSave": False,
        "tools": ["read", "bash"],
        "providers": [
            {
                "name": "openai",
                "apiKey": '${env("PERDURE_TEST_KEY")}',
                "baseUrl": "http://127.0.0.1:8080/v1",
                "models": [{"id": "gpt-4o", "toolCall": False, "limit": {"context": 10}}],
            }
        ],
    }
    config = load_config(json.dumps(camel))
    assert config.auto_save is False
    assert config.tools == ("read", "bash")
    assert config.tool_timeout == 1.5
    assert config.providers[0].api_key == CANARY
    assert config.providers[0].models == (ModelConfig("gpt-4o", tool_call=False, context_tokens=10),)
    snake = json.dumps(camel).replace("defaultModel", "default_model").replace("apiKey", "api_key")
    assert load_config(snake) == config
    assert load_config("\n") == load_config("{}") == AgentConfig()


def test_what_counts_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "odd = {name}"
    Path(odd).write_text('default_model = "local"\n')
    assert load_config(odd).path == odd
    assert load_config('default_model = "local"').path is None
    for missing in ("agent.hcl", "a=b/agent.json", "agent"):
        assert "no such configuration file" in str(refusal(missing))
        assert refusal(missing).path == missing


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    big = tmp_path / "big.hcl"
    big.write_bytes(b"#" * (256 * 1024 + 1))
    assert "262144 bytes" in str(refusal(big))
    big.write_bytes(b"#" * (256 * 1024))
    assert load_config(big).path == str(big)

    latin = tmp_path / "latin.hcl"
    latin.write_bytes(b'# caf\n# caf\xe9\ndefault_model = "x"\n')
    error = refusal(latin)
    assert (error.path, error.line, error.column) == (str(latin), 2, 6)
    assert "UTF-8" in str(error)

    assert "directory" in str(refusal(tmp_path))
    assert "empty" in str(refusal(""))
    assert "NUL" in str(refusal("a\0.hcl"))
    for source in (5, None, b"x = 1"):
        assert "path or text" in str(refusal(source))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "agent.hcl"
    os.mkfifo(fifo)
    assert "no regular file" in str(refusal(fifo))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "agent.hcl"
    file.touch(mode=0)
    assert "ermission" in str(refusal(file))


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('a = 1\nb = "x', 2, None, "not valid HCL"),
        ("{\n", 2, 1, "not valid JSON"),
        ('{"tools": [1,]}', 1, 14, "trailing comma"),
        ("max_tool_rounds = 1\nmax_tool_rounds = 2\n", 2, 1, "redefined"),
        (
            "\n  max_tool_rounds = true\n",
            2,
            3,
            "max_tool_rounds must be a whole number of at least 1, not True",
        ),
        ("max_tool_rounds = 0\n", 1, 1, "at least 1, not 0"),
        ("tool_timeout = -1\n", 1, 1, "tool_timeout must be a number of at least 0, not -1"),
        ('temperature = "0.5"\n', 1, 1, "temperature must be a number of at least 0, not str"),
        ('durability = "ful"\n', 1, 1, "\"full\" or \"process\", not 'ful'; did you mean 'full'?"),
        ('storage_backend = "disk"\n', 1, 1, '"file" or "memory" or "custom"'),
        ('tools = ["red"]\n', 1, 1, "did you mean 'read'?"),
        ('tools = "read"\n', 1, 1, "a list of tool names"),
        ('defualt_model = "x/y"\n', 1, 1, "unknown key 'defualt_model'"),
        ('defualt_model = "x/y"\n', 1, 1, "did you mean 'default_model'?"),
        ('default_model = "a/b"\ndefaultModel = "c/d"\n', 2, 1, "as default_model and as defaultModel"),
        ('system_prompt = "é"; x\n', 1, 20, "not valid HCL"),
        ("default_model = openai/gpt-4o\n", 1, 23, "quotes"),
        ("default_model = gpt\n", 1, 17, "quotes"),
        ('default_model = file("x")\n', 1, 17, "unknown function"),
        ("default_model = env()\n", 1, 17, "name of a variable"),
        ('tools = [for t in ["read"] : t]\n', 1, None, "for is not supported"),
        ("max_tool_rounds = 1 % 0\n", 1, 21, "arithmetic"),
        ("tools = [1][0]\n", 1, 9, "not supported"),
        ('tools = ["read"]\ntools {\n}\n', 2, 1, "both a block and a value"),
        ('sessions_dir = env("PERDURE_TEST_UNSET")\n', 1, 1, "variable PERDURE_TEST_UNSET is not set"),
        ('sessions_dir = ""\n', 1, 1, "sessions_dir must not be empty"),
        ('storage_url = "sessions"\n', 1, 1, "a directory is sessions_dir"),
        ("# x\nproviders = [{ name = 5 }]\n", 2, 1, "name must be a string, not 5"),
        ("providers = 5\n", 1, 1, "providers must be a block or an object, not int"),
        ("providers {\n}\n", 1, 1, "needs a name"),
        ('providers "a" "b" {\n}\n', 1, 1, "one label"),
        ('providers "a" {\n name = "b"\n}\n', 1, 1, "keep one of them"),
        ('providers "a/b" {\n}\n', 1, 1, "slash"),
        ('providers "a" {\n}\nproviders "a" {\n}\n', 3, 1, "two providers 'a'"),
        ('providers "a" {\n base_url = "ftp://x"\n}\n', 2, 2, "https://"),
        ('providers "a" {\n models {\n  name = "x"\n }\n}\n', 2, 2, "needs an id"),
        ('providers "a" {\n models "x" {\n }\n models "x" {\n }\n}\n', 4, 2, "two models 'x'"),
        ('providers "a" {\n models "x" {\n  tool_call = 1\n }\n}\n', 3, 3, "tool_call must be true or false"),
        ('{"providers": [{"name": "a"},\n  {"name": "b", "apikey": "x"}]}', 2, 17, "did you mean 'api_key'?"),
        ('{"providers": [{"name": "a", "models": [{"id": "x"}, {"name": "y"}]}]}', 1, 54, "needs an id"),
        ('{"a": "}],[{", "tools": ["x"]}', 1, 2, "unknown key 'a'"),
        ('{"autoSave": "${env(\\"PERDURE_TEST_UNSET\\")}"}', 1, 2, "is not set"),
        ("[]\n", 1, None, "object"),
        ("x = \ud800", None, None, "surrogate"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    text: str, line: int | None, column: int | None, words: str, tmp_path: Path
) -> None:
    error = refusal(text)
    assert words in str(error)
    if line is None or column is None:
        assert error.path is None
    else:
        assert (error.line, error.column) == (line, column)
        file = tmp_path / "agent.hcl"
        file.write_text(text)
        assert str(refusal(file)).startswith(f"{file}:{line}:{column}: ")


def test_places_in_json_count_items_of_every_kind() -> None:
    text = '{"a": ["x", "y", [2, {"k": 0}], {"k": ",\\"}", "l": []}],\n "b": 1, "b": 2}'
    for where, place in (
        (("a",), (1, 2)),
        (("a", 2, 1, "k"), (1, 23)),
        (("a", 3, "l"), (1, 47)),
        (("a", 3, "nothing"), (1, 33)),
        (("b",), (2, 10)),
        (("nothing",), None),
    ):
        assert _json_place(text, where) == place


@pytest.mark.parametrize(
    "text",
    [
        f'providers "a" {{\n api_key = {CANARY}\n}}\n',
        f'providers "a" {{\n api_key = "{CANARY}\n}}\n',
        f'providers "a" {{\n api_key = "{CANARY}" x\n}}\n',
        f'api_key = "{CANARY}"\n',
        f'temperature = "{CANARY}"\n',
        f'providers "a" {{\n base_url = "{CANARY}"\n}}\n',
        'temperature = env("PERDURE_TEST_KEY")\n',
        'temperature = !env("PERDURE_TEST_KEY")\n',
        'temperature = env("PERDURE_TEST_KEY") < 1\n',
        'temperature = env("PERDURE_TEST_KEY") ? 1 : 2\n',
        'temperature = "${nothing} ${env("PERDURE_TEST_KEY")}"\n',
        'temperature = [env("PERDURE_TEST_KEY")] == 1 && true ? env(["PERDURE_TEST_KEY"]) : env(5)\n',
        f'{{"providers": [{{"name": "a", "api_key": {CANARY}}}]}}',
        f'{{"providers": [{{"name": "a", "api_key": ["{CANARY}"]}}]}}',
    ],
)
def test_no_error_shows_a_key(text: str) -> None:
    error = refusal(text)
    assert "canary" not in f"{error!s} {error!r} {error.option}"


def test_no_repr_shows_a_key() -> None:
    config = load_config(EXAMPLE + 'storage_url = "postgresql://me:hunter2hunter2@db/x"\nsystem_prompt = "p-canary"\n')
    shown = repr(config) + repr(config.find_model()) + repr(config.find_model("openai/gpt-4o-mini"))
    assert "canary" not in shown
    assert "sk-other" not in shown
    assert "hunter2" not in shown
    assert "gpt-4o-mini" in shown
    assert "hunter2hunter2" in config.secrets()
    assert pickle.loads(pickle.dumps(config)) == config


def test_keys_of_a3s_are_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    text = """
    skill_dirs = ["./skills"]
    mcp_servers "x" {
      command = "y"
    }
    providers "openai" {
      models "m" {
        family = "f"
        temperature = true
        cost {
          input = 1.5
        }
      }
    }
    """
    with caplog.at_level(logging.WARNING, "perdure"):
        assert load_config(text).providers[0].models == (ModelConfig("m"),)
    (record,) = caplog.records
    assert record.name == "perdure"
    assert "cost, family, mcp_servers, skill_dirs, temperature" in record.getMessage()
    caplog.clear()
    load_config(EXAMPLE)
    assert not caplog.records


def test_a_short_key_is_said_to_be_shown(caplog: pytest.LogCaptureFixture) -> None:
    load_config('providers "mine" {\n api_key = "zqj"\n}\n')
    (record,) = caplog.records
    assert "'mine'" in record.getMessage()
    assert "zqj" not in record.getMessage()


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("", (None, None)),
        ('sessions_dir = "d"', ("d", None)),
        ('storage_url = "sqlite:///x"', (None, "sqlite:///x")),
        ('storage_backend = "memory"\nsessions_dir = "d"', (None, "memory://")),
        ('storage_backend = "file"\nsessions_dir = "d"\nstorage_url = "sqlite:///x"', ("d", None)),
        (
            'storage_backend = "custom"\nsessions_dir = "d"\nstorage_url = "sqlite:///x"',
            (None, "sqlite:///x"),
        ),
        ('storage_backend = "custom"', (None, None)),
        ('storage_backend = "file"', (None, None)),
        ('sessions_dir = "d"\nstorage_url = "sqlite:///x"', "both are given"),
        ('storage_backend = "file"\nstorage_url = "sqlite:///x"', "needs sessions_dir"),
    ],
)
def test_where_sessions_lie(text: str, store: tuple[str | None, str | None] | str) -> None:
    config = load_config(text + "\n")
    if isinstance(store, str):
        with pytest.raises(ConfigError, match=store):
            config.store()
    else:
        assert config.store() == store


def test_env_sees_what_python_sees_and_what_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'system_prompt = "<${env("PERDURE_TEST_X", "default")}>"\n'
    assert load_config(text).system_prompt == "<default>"
    monkeypatch.setenv("PERDURE_TEST_X", "é")
    assert load_config(text).system_prompt == "<é>"
    # In Python only: os.environ without putenv.
    monkeypatch.setattr(os, "environ", {"PERDURE_TEST_X": "python"})
    assert load_config(text).system_prompt == "<python>"
    # In the process only.
    monkeypatch.setattr(os, "environ", {})
    assert load_config(text).system_prompt == "<é>"


@pytest.mark.skipif(sys.platform == "win32", reason="environment variables are Unicode there")
def test_a_variable_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_TEST_X", "\udcff")
    assert "not valid UTF-8" in str(refusal('system_prompt = env("PERDURE_TEST_X")\n'))


N = 100_000
HOSTILE = {
    "blocks": "a {\n" * (N // 2),
    "braces": "{" * N,
    "brackets": "a = " + "[" * N,
    "parentheses": "a = " + "(" * N,
    "objects": "a = " + "{a=" * (N // 2),
    "json arrays": "[" * N,
    "json objects": '{"a":' * (N // 2),
    "closed": "a = " + "[" * N + "]" * N,
    "not": "a = " + "!" * N,
    "minus": "a = " + "-" * N + "1",
    "plus": "a = 1" + "+1" * N,
    "compare": "a = 1" + "==1" * (N // 2),
    "attributes": "a = b" + ".c" * N,
    "indexes": "a = [1]" + "[0]" * (N // 2),
    "splats": "a = [1]" + "[*]" * (N // 2),
    "conditionals": "a = " + "true?1:" * (N // 4) + "1",
    "templates": "a = " + '"${' * (N // 2),
    "directives": 'a = "' + "%{if true}" * (N // 5),
    "calls": "a = " + "f(" * N,
    "heredoc": "a = <<E\n" + "${" * N,
    "comment": "/*" * N,
    "labels": "a " + "b " * N,
    "quotes": "a = " + '"' * N,
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_hostile_nesting_is_an_error_and_no_crash(shape: str, tmp_path: Path) -> None:
    text = HOSTILE[shape]
    assert len(text) <= 256 * 1024
    for name in ("agent.hcl", "agent.json"):
        file = tmp_path / name
        file.write_text(text)
        error = refusal(file)
        assert error.line is not None
        assert error.column is not None
        assert len(str(error)) < 500 + len(str(file))


def test_what_only_looks_nested_is_read() -> None:
    braces = "{[(" * 1000
    heredoc = f'<<-E\n  {braces} "$${{x}}\n  E\n'
    text = f'# {braces}\n/* {braces} */\nsystem_prompt = {heredoc}sessions_dir = "{braces}"\n'
    config = load_config(text)
    assert config.system_prompt == f'{braces} "${{x}}\n'
    assert config.sessions_dir == braces
    deep = "[" * 60 + "1" + "]" * 60
    assert load_config(f"skill_dirs = {deep}\n") == AgentConfig()


def test_the_stack_of_the_caller_does_not_matter() -> None:
    read: list[AgentConfig] = []
    before = threading.stack_size(128 * 1024)
    try:
        deep = "[" * 60 + "1" + "]" * 60
        thread = threading.Thread(target=lambda: read.append(load_config(f"skill_dirs = {deep}\n")))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert read == [AgentConfig()]
