"""Commands, empty environments, and the CPythons of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")

# What a builder's shell has set must not reach an environment that is meant to be empty.
_DROPPED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_REQUIRE_VIRTUALENV", "__PYVENV_LAUNCHER__")


def clean_env() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in _DROPPED}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run to the end; the output is in the error if it fails."""
    line = [str(part) for part in command]
    done = subprocess.run(line, cwd=cwd, env=clean_env(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(line)} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Environment:
    """A virtual environment with nothing in it but pip."""

    def __init__(self, place: Path, python: str | Path) -> None:
        run(python, "-m", "venv", place)
        self.place = place
        self.python = place / "bin" / "python"

    def pip_install(self, *what: str | Path) -> None:
        run(self.python, "-m", "pip", "install", "--quiet", *what)

    def smoke(self, cwd: Path) -> None:
        """Use the installed package from a directory that holds no sources."""
        out = run(self.python, "-I", SMOKE, cwd=cwd)
        assert out.startswith("perdure "), out


def cpythons() -> dict[str, str]:
    """Version → path of every CPython from 3.10 on, with a GIL, that this machine has; always this one."""
    found = {"{}.{}".format(*sys.version_info): sys.executable}
    for candidate in _candidates():
        about = _about(candidate)
        if about is not None and about["usable"] and about["version"] not in found:
            found[about["version"]] = about["path"]
    return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))


def _candidates() -> Iterator[Path]:
    for minor in range(10, 20):
        for directory in os.get_exec_path():
            candidate = Path(directory, f"python3.{minor}")
            if candidate.is_file():
                yield candidate
    roots = {os.environ.get("PYENV_ROOT") or Path("~/.pyenv").expanduser()}
    for root in roots:
        yield from sorted(Path(root, "versions").glob("3.*/bin/python"))


_ABOUT = """
import json, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "path": sys.executable,
    "usable": sys.version_info >= (3, 10) and sys.implementation.name == "cpython"
        and not sysconfig.get_config_var("Py_GIL_DISABLED") and sys.prefix == sys.base_prefix,
}))
"""


def _about(python: Path) -> dict[str, object] | None:
    """What this interpreter says of itself; None if it does not run (a version manager's shim, say)."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _ABOUT], capture_output=True, text=True, timeout=30, env=clean_env(), check=True
        )
        about: dict[str, object] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return about
