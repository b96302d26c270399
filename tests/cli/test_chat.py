"""`perdure chat`, from a pipe and in a real pseudo-terminal, against a server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import FileSessionStore
from turn.scripted import Call, ScriptedServer, failure, reply

from .conftest import Run, command, store, text


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, server: ScriptedServer) -> Path:
    """A directory with an agent.hcl that names the server."""
    (tmp_path / "agent.hcl").write_text(
        f'default_model = "test/m"\nsessions_dir = "kept"\nproviders {{\n  name = "test"\n  api_key = "XYZ-unused"\n'
        f'  base_url = "{server.openai_url}"\n}}\n'
    )
    return tmp_path


def pipe(home: Path, prompts: bytes, *arguments: object) -> tuple[int, str, str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = command("chat", *arguments, cwd=home, **pipes)
    out, err = process.communicate(prompts, timeout=60)
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


def history(home: Path, id: str) -> list[Any]:
    data = FileSessionStore(home / "kept").load(id)
    assert data is not None
    return [
        (m["role"], *(b.get("text") or b.get("name") or b.get("content") for b in m["content"])) for m in data.messages
    ]


def test_each_line_of_a_pipe_is_a_prompt(home: Path, server: ScriptedServer) -> None:
    server.enqueue(reply("One", " and\x1b[2J"), reply("Two"), reply("Three"))
    code, out, err = pipe(home, "first\n\nsecönd".encode(), "s")
    assert (code, out) == (0, "One and\\x1b[2J\nTwo\n")
    assert err == f"saved in {home / 'kept'}; go on with: perdure chat --resume s\n"
    assert history(home, "s")[2:] == [("user", "secönd"), ("assistant", "Two")]
    code, out, err = pipe(home, b"third\n", "s")
    assert code == 1 and "exists" in err and err.count("\n") == 1
    code, out, err = pipe(home, b"third\n", "--resume")
    assert (code, out) == (0, "Three\n")
    assert [m["role"] for m in server.requests[2].messages] == ["user", "assistant", "user", "assistant", "user"]


def test_without_a_prompt_nothing_is_made(home: Path) -> None:
    assert pipe(home, b"") == (0, "", "")
    assert not list(home.glob("kept/*"))


def test_an_error_ends_a_pipe_with_1_and_keeps_what_was(home: Path, server: ScriptedServer) -> None:
    server.enqueue(reply("One"), failure(400))
    code, out, err = pipe(home, b"first\nsecond\nthird\n", "s")
    assert (code, out) == (1, "One\n")
    assert err.splitlines()[0].startswith("perdure: ")
    assert len(server.requests) == 2
    assert history(home, "s") == [("user", "first"), ("assistant", "One")]


def test_a_pipe_cannot_allow_a_tool_but_permissive_does(home: Path, server: ScriptedServer) -> None:
    write = Call("c1", "write", {"path": "x.txt", "content": "hello"})
    server.enqueue(reply(calls=[write]), reply("no"), reply(calls=[write]), reply("yes"))
    assert pipe(home, b"write it\n", "a")[0] == 0
    assert not (home / "x.txt").exists()
    assert "not allowed" in str(history(home, "a")[2])
    assert pipe(home, b"write it\n", "b", "--permissive")[0] == 0
    assert (home / "x.txt").read_text() == "hello"


def test_sessions_stay_where_ls_looks_whatever_the_workspace(home: Path, server: ScriptedServer) -> None:
    server.enqueue(reply("One"))
    (home / "work").mkdir()
    assert pipe(home, b"hi\n", "s", "--workspace", "work")[0] == 0
    data = FileSessionStore(home / "kept").load("s")
    assert data is not None and data.config["workspace"] == str(home / "work")


def test_input_that_is_not_utf8_is_refused(home: Path) -> None:
    code, _, err = pipe(home, b"\xff\xfe\n")
    assert code == 2 and "UTF-8" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--resume"], ["--model", "nonsense"], ["--model", "test2/m"], ["--workspace", "/none"]]
)
def test_what_cannot_work_is_said_before_the_first_prompt(home: Path, arguments: list[str]) -> None:
    code, _, err = pipe(home, b"", *arguments)
    assert code in (1, 2) and err.startswith("perdure: ") and err.count("\n") == 1


def test_missing_parts_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from perdure.turn import local

    real = importlib.util.find_spec
    monkeypatch.setattr(local, "_packaged_weights", lambda: None)
    for words in (["chat"], ["demo"]):
        assert "perdure local install" in run(*words).err
    for package, extra in (("xllamacpp", "perdure[local]"), ("pydantic_ai", "perdure[agent,local]")):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, missing=package: None if name == missing else real(name)
        )
        for words in (["chat"], ["demo"]):
            outcome = run(*words)
            assert outcome.code == 1 and extra in outcome.err and outcome.err.count("\n") == 1


def test_local_install_says_that_it_is_there(run: Run) -> None:
    from perdure.turn import local

    if local._packaged_weights() is None:
        pytest.fail("the weights are not installed")
    assert run("local", "install").out.startswith("already installed: ")


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, home: Path, *arguments: str) -> None:
        import pty

        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(home)
                environment = {**os.environ, "TERM": "dumb", "COLUMNS": "100"}
                os.execve(sys.executable, [sys.executable, "-m", "perdure", "chat", *arguments], environment)
            finally:
                os._exit(127)
        self.text = ""

    def wait_for(self, pattern: str, seconds: float = 40) -> None:
        """Until the pattern has appeared behind what was waited for before."""
        import select

        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not appear: {self.text!r}"
            try:
                self.text += os.read(self._fd, 4096).decode()
            except OSError:
                raise AssertionError(f"it ended: {self.text!r}") from None
        self.text = self.text[found.end() :]

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        # No person is as fast as a test: a signal between the last output and the wait for a key is only seen by
        # Python with the next key.
        time.sleep(0.4)
        self.type("\x03")

    def end(self) -> int:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                self.text += os.read(self._fd, 4096).decode()
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        assert "Traceback" not in self.text
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(home: Path) -> Iterator[Any]:
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        started.append(Terminal(home, *arguments))
        return started[-1]

    yield start
    for one in started:
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@needs_pty
def test_a_conversation_with_a_tool_that_is_asked_about(home: Path, server: ScriptedServer, terminal: Any) -> None:
    def write(id: str) -> Call:
        return Call(id, "write", {"path": f"{id}.txt", "content": "hello"})

    server.enqueue(reply("Sure.", calls=[write("one")]), reply("Written."), reply(calls=[write("two")]), reply("Fine."))
    chat = terminal("s")
    chat.wait_for("test/m, session s")
    chat.wait_for("> ")
    chat.type("write one\r")
    chat.wait_for(r"Sure\.\r\n→ write .*one\.txt.*\r\n.*run write\? \[y/N\] ")
    chat.type("y\r")
    chat.wait_for(r"Written\.\r\n> ")
    chat.type("write two\r")
    chat.wait_for(r"run write\? \[y/N\] ")
    chat.type("\r")
    chat.wait_for(r"Fine\.\r\n> ")
    chat.type("\x04")
    assert chat.end() == 0
    assert f"saved in {home / 'kept'}; go on with: perdure chat --resume s" in chat.text
    assert (home / "one.txt").exists() and not (home / "two.txt").exists()
    assert [m[0] for m in history(home, "s")] == ["user", "assistant", "user", "assistant"] * 2


@needs_pty
def test_ctrl_c_interrupts_the_turn_and_the_chat_goes_on(home: Path, server: ScriptedServer, terminal: Any) -> None:
    server.enqueue(reply("Begin", "ning", delay=0.2, hang_after=2), reply(hang_before=True), reply("Second."))
    chat = terminal("s")
    chat.wait_for("> ")
    chat.type("half")
    chat.wait_for("half")
    chat.interrupt()  # at the prompt: what was typed is dropped
    chat.wait_for(r"\r\n.*> ")
    chat.type("first\r")
    chat.wait_for("Begin")
    begun = time.monotonic()
    chat.interrupt()  # in the middle of a reply that hangs
    chat.wait_for("interrupted; the prompt is kept without its answer")
    chat.wait_for("> ")
    chat.type("silent\r")
    while len(server.requests) < 2:
        time.sleep(0.05)
    chat.interrupt()  # before the reply begins
    chat.wait_for("interrupted; the prompt is taken back")
    assert time.monotonic() - begun < 20
    chat.wait_for("> ")
    chat.type("second\r")
    chat.wait_for(r"Second\.")
    chat.wait_for("> ")
    chat.type("\x04")
    assert chat.end() == 0
    assert history(home, "s") == [("user", "first"), ("user", "second"), ("assistant", "Second.")]


@needs_pty
def test_ctrl_c_at_the_question_leaves_a_valid_history(home: Path, server: ScriptedServer, terminal: Any) -> None:
    server.enqueue(reply(calls=[Call("c1", "bash", {"command": "touch x"})]), reply("After."))
    chat = terminal("s")
    chat.wait_for("> ")
    chat.type("go\r")
    chat.wait_for(r"run bash\? \[y/N\] ")
    chat.interrupt()
    chat.wait_for("interrupted; 3 messages are kept")
    chat.wait_for("> ")
    chat.type("next\r")
    chat.wait_for(r"After\.")
    chat.wait_for("> ")
    chat.type("\x04")
    assert chat.end() == 0
    assert not (home / "x").exists()
    assert [m[0] for m in history(home, "s")] == ["user", "assistant", "user", "user", "assistant"]


@needs_pty
def test_a_turn_that_a_crash_broke_off_is_offered_to_be_finished(
    home: Path, server: ScriptedServer, terminal: Any
) -> None:
    store(home / "kept", "s", text("user", "unanswered"))
    server.enqueue(reply("Answered."))
    chat = terminal("--resume")
    chat.wait_for("unanswered")
    chat.wait_for(r"Finish it\? \[y/N\] ")
    chat.type("y\r")
    chat.wait_for(r"Answered\.\r\n> ")
    chat.type("\x04")
    assert chat.end() == 0
    assert history(home, "s") == [("user", "unanswered"), ("assistant", "Answered.")]
    assert json.loads(json.dumps(server.requests[0].messages))[-1]["content"] == "unanswered"
