"""Run by any Python on which perdure is installed and nothing else: save, resume, command, no third-party import.

    python -I tests/packaging/smoke.py

Uses the standard library only and fails with an exception. `-I` keeps the checkout out of the search path.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def check_installed() -> None:
    """perdure comes from where it was installed to, not from the sources."""
    import perdure

    where = Path(perdure.__file__).resolve()
    site = Path(sysconfig.get_path("platlib")).resolve()
    assert site in where.parents, f"perdure was imported from {where}, not from {site}"


def check_sessions(directory: str) -> None:
    import perdure

    # A string would be taken for a path: a brace tells that it is text.
    agent = perdure.Agent.create("{}")
    with agent.session(directory, file_session_store="sessions", session_id="smoke", auto_save=True) as session:
        session.append({"role": "user", "content": "grüß dich \u2028 2**200"}, {"role": "user", "n": 2**200})
        receipt = session.save()
        assert receipt.revision == 1, receipt
    resumed = agent.resume_session("smoke", workspace=directory, file_session_store="sessions")
    text = resumed.history()[0]["content"][0]["text"]
    assert text == "grüß dich \u2028 2**200", text
    assert resumed.history()[1]["n"] == 2**200
    resumed.close()
    left = sorted(path.name for path in Path(directory, "sessions").iterdir())
    assert left == ["smoke.json"], left

    if sys.platform != "win32":  # the pure-Python store is for POSIX
        plain = perdure.PythonFileSessionStore(Path(directory, "sessions"))
        loaded = plain.load("smoke")
        assert loaded is not None and len(loaded) == 2


def check_imports() -> None:
    """Nothing that is not the standard library's was imported."""
    known = {*sys.stdlib_module_names, *sys.builtin_module_names, "perdure", "__main__"}
    # What a .pth file of the environment brings was there before any import of ours.
    strangers = {name.partition(".")[0] for name in sys.modules} - known - _BEFORE
    strangers = {name for name in strangers if not name.startswith("_sysconfigdata_")}  # the interpreter's own
    assert not strangers, f"third-party modules were imported: {sorted(strangers)}"


def check_command() -> None:
    import perdure

    name = "perdure.exe" if sys.platform == "win32" else "perdure"
    command = Path(sysconfig.get_path("scripts"), name)
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    assert perdure.__version__ in done.stdout.split(), done


_BEFORE = {name.partition(".")[0] for name in sys.modules}

if __name__ == "__main__":
    check_installed()
    with tempfile.TemporaryDirectory() as directory:
        check_sessions(directory)
    check_imports()
    check_command()
    import perdure

    print(f"perdure {perdure.__version__} works on {sys.implementation.name} {sys.version.split()[0]}")
