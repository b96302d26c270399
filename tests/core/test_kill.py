"""A process that is killed with SIGKILL while it saves: what it acknowledged is there."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from core_helpers import loaded, texts, tree

from perdure import FileSessionStore, SessionData
from perdure.stores.python_file import PythonFileSessionStore

if os.name != "posix":
    pytest.skip("SIGKILL", allow_module_level=True)

# Takes a turn of three steps and a save, again and again, and says what is acknowledged.
WRITER = """
import os, sys, perdure
store = perdure.FileSessionStore(sys.argv[1])
data = store.load("s")
def say(kind):
    os.write(1, f"{kind} {len(data)} {data.revision}\\n".encode())
while True:
    for step in range(3):
        data.append({"role": "user", "content": [{"type": "text", "text": str(len(data))}]})
        delta = data.delta()
        store.append(delta, step=True)
        data.settle(delta)
        say("step")
    data.append({"role": "user", "content": [{"type": "text", "text": str(len(data))}]})
    data.state = f"turn {len(data)}"
    if len(data) % 40 == 0:
        data.truncate(20)  # a rewind now and then
        data.append({"role": "user", "content": [{"type": "text", "text": "20"}]})
    store.save(data)
    say("save")
"""

ROUNDS = 30


def acknowledged(process: subprocess.Popen[bytes], seconds: float) -> tuple[int, int]:
    """Kills the writer some time after its first word; messages and revision that it said last."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0], "the writer never began"
    time.sleep(seconds)
    process.kill()
    said = process.communicate()[0].decode()
    assert process.returncode == -9, said
    last = said[: said.rindex("\n")].split("\n")[-1].split()
    return int(last[1]), int(last[2])


def test_every_acknowledged_save_is_there(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    store = FileSessionStore(tmp_path)
    store.save(SessionData("s"))
    store.close()
    kinds = set()
    for number in range(ROUNDS):
        process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
        count, revision = acknowledged(process, chance.uniform(0, 0.05))
        kinds.add((tmp_path / "s.journal").exists() and (tmp_path / "s.journal").stat().st_size > 0)
        data = loaded(store)
        note = f"seed {seed}, round {number}: {count} messages at revision {revision} were acknowledged"
        # One save more may have got through without its acknowledgement.
        assert revision <= data.revision <= revision + 1, note
        if data.revision == revision:
            assert len(data) == count, note
        assert texts(data) == [str(n) for n in range(len(data))], note
        # The pure-Python store sees the same.
        other = PythonFileSessionStore(tmp_path).load_dict("s")
        assert other is not None
        assert other["messages"] == data.messages, note
    data.append({"role": "user", "content": [{"type": "text", "text": str(len(data))}]})
    store.save(data)
    store.close()
    assert sorted(tree(tmp_path)) == ["s.json"], "a killed writer's temp file is swept by the next one"
    assert kinds, "no round was killed"
