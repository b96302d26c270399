"""`ls`, `show`, `rm` and `fork`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from perdure import FileSessionStore, SessionData

from .conftest import Run, call, command, result, store, text

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"


def test_nothing_there_is_no_error_and_nothing_is_made(run: Run) -> None:
    outcome = run("ls")
    assert (outcome.code, outcome.out) == (0, "")
    assert "no sessions in" in outcome.err
    assert run("ls", "--json").out == "[]\n"
    assert run("show", "x").code == run("fork", "x").code == run("rm", "-y", "x").code == 1
    assert list(Path.cwd().iterdir()) == []


def test_ls_default_directory_and_agent_hcl(run: Run) -> None:
    store(Path(".a3s/sessions"), "default", text("user", "one"))
    store(Path("elsewhere"), "configured", text("user", "two"))
    assert [row["id"] for row in json.loads(run("ls", "--json").out)] == ["default"]
    Path("agent.hcl").write_text('sessions_dir = "elsewhere"\n')
    assert [row["id"] for row in json.loads(run("ls", "--json").out)] == ["configured"]
    Path("other.hcl").write_text('sessions_dir = ".a3s/sessions"\n')
    assert [row["id"] for row in json.loads(run("ls", "--json", "--config", "other.hcl").out)] == ["default"]


def test_sessions_in_memory_cannot_be_listed(run: Run) -> None:
    Path("agent.hcl").write_text('storage_backend = "memory"\n')
    outcome = run("ls")
    assert outcome.code == 1
    assert "memory" in outcome.err


def test_ls_table(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "alpha", text("user", "First\nprompt"), text("assistant", "yes"), config={"name": "A name"})
    lines = run("ls", "--store", tmp_path).out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "MESSAGES", "SIZE", "UPDATED", "FIRST", "PROMPT"]
    assert lines[1].startswith("alpha  A name         2  ")
    assert lines[1].endswith("  now      First prompt")


def test_ls_limit_and_json(run: Run, tmp_path: Path) -> None:
    for id in ("a", "b", "c"):
        store(tmp_path, id, text("user", f"prompt {id}"), tags=["t"])
    rows = json.loads(run("ls", "--json", "--limit", 2, "--store", tmp_path).out)
    assert [row["id"] for row in rows] == ["c", "b"]
    assert rows[0]["message_count"] == 1 and rows[0]["revision"] == 1 and rows[0]["tags"] == ["t"]
    assert rows[0]["first_prompt"] == "prompt c"
    assert rows[0]["bytes"] == (tmp_path / "c.json").stat().st_size
    assert len(json.loads(run("ls", "--json", "--store", tmp_path).out)) == 3


def test_an_id_is_never_cut_in_a_pipe(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "i" * 300, text("user", "hi"))
    assert "i" * 300 in run("ls", "--store", tmp_path).out


def test_show(run: Run, tmp_path: Path) -> None:
    store(
        tmp_path,
        "s",
        text("user", "What is\nhere?"),
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
        call(),
        result(),
        result("call_2", "denied", failed=True),
        {"role": "user", "content": [{"type": "image", "source": {"media_type": "image/png", "data": "QUJD"}}]},
        {"role": "user", "content": "plain"},
        {"role": "x", "content": [{"type": "new", "value": 1}]},
        {"odd": True},
    )
    out = run("show", "s", "--store", tmp_path).out
    assert out.startswith("s\n9 messages, revision 1, updated now\n")
    body = [line.strip() for line in out.splitlines()[2:] if line]
    assert body == [
        "1  user", "What is", "here?", "2  assistant", "(thinking) hm", "3  assistant", '→ bash {"command": "ls"}',
        "4  tool", "← a.txt", "5  tool", "✗ denied", "6  user", "[image image/png]", "7  user", "plain", "8  x",
        '[new] {"value": 1}', "9  ?", "null",
    ]  # fmt: skip
    assert "QUJD" not in out


def test_show_last(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "s", *(text("user", f"message {n}") for n in range(1, 6)))
    out = run("show", "s", "--last", 2, "--store", tmp_path).out
    assert "(3 earlier messages)" in out
    assert "message 4" in out and "message 5" in out and "message 3" not in out
    assert "message 1" in run("show", "s", "--last", 50, "--store", tmp_path).out


def test_show_json_is_the_session_byte_for_byte(tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", f"naïve {EVIL} \ud83d"))
    process = command("show", "s", "--json", "--store", tmp_path, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == (tmp_path / "s.json").read_bytes()


def test_nothing_of_a_session_reaches_the_terminal_raw(run: Run, tmp_path: Path) -> None:
    name = f"n{EVIL}"
    block = {"type": "tool_use", "id": EVIL, "name": EVIL, "input": {EVIL: EVIL}}
    store(
        tmp_path,
        f"id{EVIL}",
        text("user", EVIL),
        {"role": EVIL, "content": [block, {"type": EVIL, EVIL: EVIL}]},
        result(EVIL, EVIL),
        config={"name": name},
        model_name=EVIL,
        tags=[EVIL],
    )
    shown = run("show", f"id{EVIL}", "--store", tmp_path).out
    listed = run("ls", "--store", tmp_path).out
    checked = run("check", tmp_path).out
    forked = run("fork", f"id{EVIL}", f"id2{EVIL}", "--store", tmp_path).out
    removed = run("rm", "-y", f"id{EVIL}", "gone" + EVIL, "--store", tmp_path)
    for out in (shown, listed, checked, forked, removed.out, removed.err, run("ls", "--json", "--store", tmp_path).out):
        assert out
        assert not set(out) & set(EVIL) - set("[2J]0;owned31m")


def test_json_on_a_terminal_is_harmless_and_the_same_json(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Raw in the file, as another program may have written it.
    raw = '{"id": "s", "messages": [{"role": "user", "content": "a\x7f\x9b31m\u202eb"}]}'
    (tmp_path / "s.json").write_text(raw, encoding="utf-8")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = run("show", "s", "--json", "--store", tmp_path).out
    assert "\x9b" not in out and "\x7f" not in out and "\u202e" not in out
    assert json.loads(out)["messages"][0]["content"] == "a\x7f\x9b31m\u202eb"


def test_not_found_names_close_ids_and_damage_its_place(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "my-session", text("user", "hi"))
    outcome = run("show", "my-sesion", "--store", tmp_path)
    assert outcome.code == 1 and "my-session" in outcome.err
    (tmp_path / "my-session.json").write_bytes((tmp_path / "my-session.json").read_bytes()[:-20])
    outcome = run("show", "my-session", "--store", tmp_path)
    assert outcome.code == 1
    assert f"{tmp_path / 'my-session.json'}:" in outcome.err


def test_show_changes_and_repairs_nothing(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", "go"), call())
    before = (tmp_path / "s.json").read_bytes()
    assert "2 messages" in run("show", "s", "--store", tmp_path).out
    assert (tmp_path / "s.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["s.json"]


def test_rm_refuses_without_a_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, "s", text("user", "hi"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    outcome = run("rm", "s", "--store", tmp_path)
    assert outcome.code == 2 and "--yes" in outcome.err
    assert (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("answer", "deleted"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_rm_asks_on_a_terminal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, deleted: bool
) -> None:
    store(tmp_path, "s", text("user", "hi"))
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)
    outcome = run("rm", "s", "--store", tmp_path)
    assert "[y/N]" in outcome.err
    assert outcome.code == (0 if deleted else 1)
    assert (tmp_path / "s.json").exists() is not deleted


def test_rm_of_several_goes_on_after_a_missing_one(run: Run, tmp_path: Path) -> None:
    for id in ("a", "b"):
        store(tmp_path, id, text("user", "hi"))
    outcome = run("rm", "-y", "a", "missing", "b", "--store", tmp_path)
    assert outcome.code == 1
    assert outcome.out == "deleted a\ndeleted b\n"
    assert outcome.err.count("\n") == 1 and "missing" in outcome.err
    assert FileSessionStore(tmp_path).list() == []


def test_fork(run: Run, tmp_path: Path) -> None:
    store(tmp_path, "s", *(text("user", f"m{n}") for n in range(4)))
    assert run("fork", "s", "copy", "--at", 2, "--store", tmp_path).out == "copy\n"
    new = run("fork", "s", "--store", tmp_path).out.strip()
    sessions = FileSessionStore(tmp_path)
    copy, whole = sessions.load("copy"), sessions.load(new)
    assert isinstance(copy, SessionData) and len(copy) == 2 and copy.parent is not None and copy.parent["id"] == "s"
    assert isinstance(whole, SessionData) and len(whole) == 4
    assert "forked from s at 2" in run("show", "copy", "--store", tmp_path).out
    assert run("fork", "s", "copy", "--store", tmp_path).code == 1
    assert run("fork", "s", "more", "--at", 5, "--store", tmp_path).code == 2
    assert not (tmp_path / "more.json").exists()
