"""Every example runs as it stands, in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.config import load_config

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def example(name: str, directory: Path, warning: str = "") -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=directory,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, warning)
    return done.stdout


def test_every_example_is_tested() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert names == {"agent.hcl", "quickstart.py", "async_quickstart.py", "custom_store.py"}


def test_agent_hcl() -> None:
    config = load_config(EXAMPLES / "agent.hcl")
    assert (config.default_model, config.sessions_dir) == ("local/smollm2", ".a3s/sessions")
    # What is commented out has to be right as well.
    lines = (EXAMPLES / "agent.hcl").read_text().splitlines()
    at = lines.index('# default_model = "openai/gpt-4o"')
    other = load_config("\n".join(line.removeprefix("# ") for line in lines[at:]))
    assert other.find_model().name == "openai/gpt-4o"


def test_custom_store(tmp_path: Path) -> None:
    assert len((EXAMPLES / "custom_store.py").read_text().splitlines()) < 45
    # A store that is told so once is no less a store.
    warning = "SqliteSessions does not compare revisions: of two writers of one session the last one wins\n"
    for count in (1, 2):
        assert example("custom_store.py", tmp_path, warning) == f"['mine']: {count} messages\n"


@pytest.mark.model
@pytest.mark.timeout(300)
def test_quickstart(tmp_path: Path) -> None:
    out = example("quickstart.py", tmp_path)
    assert "Resumed with 2 messages" in out
    assert out.count("is on disk]") == 3
    assert len(list((tmp_path / ".a3s" / "sessions").glob("*.json"))) == 1


@pytest.mark.model
@pytest.mark.timeout(300)
def test_async_quickstart(tmp_path: Path) -> None:
    out = example("async_quickstart.py", tmp_path)
    assert out.count(": 2 messages") == 2
