"""One virtual environment a peer, below target/compare/, made once for each version of its requirements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = ROOT / "target" / "compare"
INSTALL_TIMEOUT = 900


class Missing(Exception):
    """A contender cannot take part; the text says why, for the report."""


def interpreter(environment: str | None) -> str:
    """The Python of an environment, which is made if it is not there. Raises `Missing`."""
    if environment is None:
        return sys.executable
    requirements = HERE / "requirements" / f"{environment}.txt"
    directory = TARGET / environment
    python, stamp = directory / "bin" / "python", directory / "requirements.txt"
    wanted = f"# Python {sys.version.split()[0]}\n{requirements.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    shutil.rmtree(directory, ignore_errors=True)
    print(f"making the environment of {environment}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", str(directory)], environment)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(requirements)], environment)
    stamp.write_text(wanted)
    return str(python)


def _run(command: list[str], environment: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"its environment could not be made: {type(error).__name__}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.lower().startswith("error")] or lines
        raise Missing(f"requirements/{environment}.txt could not be installed: {errors[0].strip()}")
