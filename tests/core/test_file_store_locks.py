"""The lock of a session in snapshot mode: held for one save, and readable by others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from core_helpers import session

from perdure import FileSessionStore, SessionLockedError

HOLD = """
import fcntl, json, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps({"pid": 4711, "host": "elsewhere", "since": 1795344689, "hold": sys.argv[3]}))
    file.flush()
    open(sys.argv[2], "w").close()
    time.sleep(float(sys.argv[4]))
"""


def held(tmp_path: Path, path: Path, hold: str, seconds: float) -> Any:
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, ready, hold, str(seconds)])
    while not ready.exists():
        time.sleep(0.01)
    return process


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_session_that_another_process_has_open(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "d")
    other = held(tmp_path, tmp_path / "d" / "s.lock", "open", 60)
    try:
        started = time.monotonic()
        with pytest.raises(SessionLockedError, match="process 4711 on elsewhere") as caught:
            store.save(session("s", "one"))
        assert time.monotonic() - started < 5
        error = caught.value
        assert (error.session_id, error.pid, error.host, error.since) == ("s", 4711, "elsewhere", 1795344689)
        with pytest.raises(SessionLockedError):
            store.delete("s")
        store.save(session("t", "one"))
        patient = FileSessionStore(tmp_path / "d", lock_timeout=0.3)
        started = time.monotonic()
        with pytest.raises(SessionLockedError):
            patient.save(session("s", "one"))
        assert time.monotonic() - started >= 0.3
    finally:
        other.kill()
        other.wait()
    store.save(session("s", "one"))


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_save_of_another_process_is_waited_for(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "d")
    other = held(tmp_path, tmp_path / "d" / "s.lock", "save", 0.5)
    assert store.save(session("s", "one")).revision == 1
    other.wait()


def test_the_lock_tells_who_holds_it(store: FileSessionStore) -> None:
    store.save(session("s", "one"))
    note = json.loads((store.path / "s.lock").read_text())
    assert (note["pid"], note["host"], note["hold"]) == (os.getpid(), socket.gethostname(), "save")
    assert abs(note["since"] - time.time()) < 60
