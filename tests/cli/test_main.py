"""Help, exit codes, errors and pipes of the command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure.cli import parser, sessions

from .conftest import Run, command, store, text


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"perdure {perdure.__version__}\n")


@pytest.mark.parametrize("name", ["chat", "ls", "show", "rm", "fork", "check", "demo", "local"])
def test_every_command_has_help(run: Run, name: str) -> None:
    outcome = run(name, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: perdure {name}")
    assert "exit codes" in outcome.out
    assert name in run("--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["show"],
        ["ls", "--limit", "0"],
        ["ls", "--lim", "3"],
        ["show", "x", "--json", "--last", "1"],
        ["fork", "x", "--at", "-1"],
        ["local"],
        ["demo", "--rounds", "none"],
    ],
)
def test_wrong_usage_is_2_and_goes_to_stderr(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err


def test_the_place_may_stand_before_or_after_the_command(run: Run, tmp_path: Path) -> None:
    store(tmp_path / "s", "one", text("user", "hi"))
    for arguments in (["--store", tmp_path / "s", "ls", "--json"], ["ls", "--json", "--store", tmp_path / "s"]):
        assert [row["id"] for row in json.loads(run(*arguments).out)] == ["one"]


def test_errors_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.hcl").write_text('default_model = "x\n')
    for arguments in (
        ["ls", "--config", tmp_path / "bad.hcl"],
        ["ls", "--config", tmp_path / "none.hcl"],
        ["ls", "--store", tmp_path / "none"],
        ["ls", "--store", tmp_path / "bad.hcl"],
        ["show", "nobody"],
        ["show", "\x1b[31m\x07"],
        ["check", tmp_path / "none"],
    ):
        outcome = run(*arguments)
        assert outcome.code == 1
        assert outcome.out == ""
        assert outcome.err.startswith("perdure: ")
        assert outcome.err.count("\n") == 1
        assert "\x1b" not in outcome.err


def test_ctrl_c_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sessions, "ls", interrupted)
    assert run("ls").code == 130


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    store(tmp_path, "long", *(text("user", f"line {n} " + "x" * 500) for n in range(2000)))
    process = command("show", "long", "--store", tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(b"long")
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_an_error(tmp_path: Path) -> None:
    store(tmp_path, "one", text("user", "hi"))
    with Path("/dev/full").open("wb") as full:
        process = command("show", "one", "--store", tmp_path, stdout=full, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.startswith(b"perdure: ") and os.strerror(errno.ENOSPC).encode() in said
    assert said.count(b"\n") == 1


def test_the_base_command_imports_nothing_third_party(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from perdure.cli import main\n"
        f"assert main(['ls', '--store', {str(tmp_path)!r}]) == 0\n"
        f"assert main(['check', {str(tmp_path)!r}]) == 0\n"
        "known = set(sys.stdlib_module_names) | {'perdure', '__main__'}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - known))"
    )
    # -S: what a virtual environment hooks into every start is not the command's doing.
    path = os.pathsep.join([str(Path(perdure.__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_imports_no_command() -> None:
    assert parser.make_parser().format_help()
    program = (
        "import sys; from perdure.cli import main; main(['--help']); "
        "assert not {'perdure.cli.chat', 'perdure.cli.demo', 'perdure.cli.sessions'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
