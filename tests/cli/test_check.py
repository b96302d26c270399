"""`perdure check` and `check_directory`: every kind of finding, and that nothing is changed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure import FileSessionStore, SessionData, StoreError
from perdure.checking import Finding, check_directory

from .conftest import Run, call, result, store, text


def kinds(directory: Path) -> list[tuple[str, str, bool]]:
    return [(f.kind, Path(f.path).name, f.act) for f in check_directory(directory)]


def only(directory: Path) -> Finding:
    (finding,) = check_directory(directory)
    return finding


def with_journal(directory: Path, id: str = "s", steps: int = 2) -> Path:
    """A session as a crash in mid-turn leaves it: a snapshot and a journal of steps. Made by a process that dies."""
    program = (
        "import os, sys; from perdure import FileSessionStore, SessionData\n"
        "store, data = FileSessionStore(sys.argv[1]), SessionData(sys.argv[2])\n"
        "for n in range(int(sys.argv[3]) + 1):\n"
        "    data.append({'role': 'user', 'content': f'step {n}'})\n"
        "    delta = data.delta(); store.append(delta, step=n > 0); data.settle(delta)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(directory), id, str(steps)], check=True)
    journal = directory / f"{id}.journal"
    assert journal.stat().st_size
    return journal


def fingerprint(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in directory.iterdir() if p.is_file()}


def test_a_healthy_directory_has_no_findings(tmp_path: Path) -> None:
    store(tmp_path, "one", text("user", "hi"), call(), result())
    store(tmp_path, "a/b?", text("user", "hi"))
    assert check_directory(tmp_path) == []


def test_a_damaged_session_with_its_place(tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", "hi"))
    path = tmp_path / "s.json"
    lines = path.read_bytes().split(b"\n")
    at = next(number for number, line in enumerate(lines, 1) if b'"hi"' in line)
    lines[at - 1] = lines[at - 1].replace(b'"hi"', b'"h\x01"')
    path.write_bytes(b"\n".join(lines))
    finding = only(tmp_path)
    assert (finding.kind, finding.act, finding.path, finding.line) == ("damaged", True, str(path), at)
    assert finding.column and lines[at - 1][finding.column - 1] == 1
    assert str(finding).startswith(f"{path}:{at}:{finding.column}: ")
    assert str(finding).count(str(path)) == 1


def test_cut_anywhere_it_is_found(tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", "hi"), text("assistant", "hello"))
    path = tmp_path / "s.json"
    whole = path.read_bytes()
    for length in (0, 1, 20, 200, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert only(tmp_path).act, length


def test_changed_outside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path, "s", text("user", "Cats"))
    path = tmp_path / "s.json"
    path.write_bytes(path.read_bytes().replace(b'"Cats"}]', b'"Dogs"}]'))
    with caplog.at_level(logging.WARNING, "perdure"):
        assert kinds(tmp_path) == [("changed-outside", "s.json", True)]
    assert not caplog.records, "what becomes a finding is not logged as well"
    with caplog.at_level(logging.CRITICAL, "perdure"):
        assert kinds(tmp_path) == [("changed-outside", "s.json", True)]
        path.write_bytes(path.read_bytes().replace(b"Dogs", b"Cats"))
        assert "changed-outside" not in [kind for kind, *_ in kinds(tmp_path)]


def test_a_journal_of_a_crash_is_fine_but_its_lock_is_noted(tmp_path: Path) -> None:
    with_journal(tmp_path)
    assert kinds(tmp_path) == [("lock", "s.lock", False)]
    assert "process " in check_directory(tmp_path)[0].message


def test_a_torn_tail(tmp_path: Path) -> None:
    journal = with_journal(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-5])
    assert ("torn-tail", "s.journal", False) in kinds(tmp_path)


def test_a_journal_that_is_damaged_before_its_end(tmp_path: Path) -> None:
    journal = with_journal(tmp_path)
    journal.write_bytes(journal.read_bytes().replace(b"step 1", b"step 7"))
    (finding,) = (f for f in check_directory(tmp_path) if f.act)
    assert (finding.kind, Path(finding.path).name, finding.session_id) == ("damaged", "s.journal", "s")


def test_a_snapshot_put_back_under_a_newer_journal(tmp_path: Path) -> None:
    with_journal(tmp_path)
    path = tmp_path / "s.json"
    path.write_bytes(path.read_bytes().replace(b"step 0", b"step 9"))
    assert ("damaged", True) in [(f.kind, f.act) for f in check_directory(tmp_path)]


def test_journals_without_a_session(tmp_path: Path) -> None:
    journal = with_journal(tmp_path)
    (tmp_path / "s.json").unlink()
    (tmp_path / "s.lock").unlink()
    finding = only(tmp_path)
    assert (finding.kind, finding.act, finding.session_id) == ("orphan-journal", True, "s")
    journal.write_bytes(b"garbage\n")
    assert (only(tmp_path).kind, only(tmp_path).act) == ("orphan-journal", True)
    journal.write_bytes(b"")
    assert kinds(tmp_path) == [("empty-journal", "s.journal", False)]


def test_a_deletion_that_was_broken_off(tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", "hi"))
    program = (  # dies at the first unlink, which comes after the tombstone
        "import os, sys\n"
        "from perdure.stores import python_file\n"
        "python_file.PythonFileSessionStore._finish_delete = lambda *_: os._exit(0)\n"
        "python_file.PythonFileSessionStore(sys.argv[1]).delete('s')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert ("deleted", "s.json", False) in kinds(tmp_path)
    (tmp_path / "s.json").unlink()
    assert ("deleted", "s.journal", False) in kinds(tmp_path)
    assert not any(f.act for f in check_directory(tmp_path))


def test_what_lies_beside(tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", "hi"))
    token = "0123456789abcdef"
    (tmp_path / f".s.{token}.tmp").write_bytes(b"{")
    (tmp_path / "s.journal.torn-1795344690").write_bytes(b"{")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"")
    assert kinds(tmp_path) == [
        ("orphan-temp", f".s.{token}.tmp", True),
        ("foreign", "notes.txt", False),
        ("torn-copy", "s.journal.torn-1795344690", True),
    ]
    (tmp_path / "s.lock").write_text(json.dumps({"pid": 1, "host": "h", "since": 1, "hold": "save", "temp": token}))
    assert ("temp", f".s.{token}.tmp", False) in kinds(tmp_path)
    with FileSessionStore(tmp_path) as sessions:  # what the note promises
        data = sessions.load("s")
        assert data is not None
        data.append(text("user", "more"))
        sessions.save(data)
    assert not (tmp_path / f".s.{token}.tmp").exists()


def test_files_that_are_no_sessions(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x", "version": "1"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.json")
    assert kinds(tmp_path) == [
        ("not-a-file", "dir.json", True),
        ("not-a-file", "link.json", True),
        ("not-a-session", "list.json", True),
        ("not-a-session", "package.json", True),
        ("not-a-file", "pipe.json", True),
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of Linux")
def test_a_huge_file_that_cannot_be_a_session_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as file:
        file.write(b"[" * 1000)
        file.truncate(3 << 30)
    program = (
        "import resource, sys; from perdure.checking import check_directory\n"
        "assert [f.kind for f in check_directory(sys.argv[1])] == ['not-a-session']\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 300_000\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_names_and_ids(tmp_path: Path) -> None:
    store(tmp_path, "a/b", text("user", "hi"))
    (tmp_path / "renamed.json").write_bytes((tmp_path / "a%2Fb.json").read_bytes())
    (tmp_path / "a_b.json").write_bytes((tmp_path / "a%2Fb.json").read_bytes())  # A3S Code's name for it
    found = check_directory(tmp_path)
    assert [(f.kind, Path(f.path).name, f.act) for f in found] == [
        ("duplicate-id", "a_b.json", True),
        ("wrong-name", "renamed.json", True),
    ]
    assert "a%2Fb.json" in found[1].message


def test_dangling_tool_calls_are_notes(tmp_path: Path) -> None:
    store(tmp_path, "s", text("user", "go"), call("one"), result("one"), call("two"))
    finding = only(tmp_path)
    assert (finding.kind, finding.act) == ("dangling-tool-call", False)
    assert finding.message.startswith("messages[3]: tool call 'two'")


def test_a_number_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"id": "s", "messages": [{"role": "user", "content": 1' + "0" * 5000 + "}]}")
    finding = only(tmp_path)
    assert (finding.kind, finding.act) == ("damaged", True)
    assert "0000" not in finding.message


def test_a3s_files_are_fine(tmp_path: Path) -> None:
    for sample in (Path(__file__).parent.parent / "data" / "a3s").glob("*.json"):
        id = SessionData.from_json(sample.read_bytes()).id
        (tmp_path / f"{id.replace('/', '_')}.json").write_bytes(sample.read_bytes())
    assert not any(f.act for f in check_directory(tmp_path))
    (tmp_path / "v1").mkdir()
    assert ("foreign", "v1", False) in kinds(tmp_path)


def test_no_message_content_in_a_finding(tmp_path: Path) -> None:
    secret = "canary-5f3a"
    store(tmp_path, "s", text("user", secret), call("c", secret))
    (tmp_path / "t.json").write_text('{"id": "t", "messages": [{"role": "user", "content": "' + secret + '\x01"}]}')
    found = check_directory(tmp_path)
    assert len(found) == 2
    assert secret not in "".join(map(str, found))


def test_nothing_is_changed(tmp_path: Path) -> None:
    journal = with_journal(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-5])
    store(tmp_path, "t", text("user", "go"), call())
    (tmp_path / "bad.json").write_text('{"messages": [')
    (tmp_path / ".t.0123456789abcdef.tmp").write_text("{")
    before = fingerprint(tmp_path)
    mode = tmp_path.stat().st_mtime_ns
    assert len(check_directory(tmp_path)) == 5
    assert fingerprint(tmp_path) == before
    assert tmp_path.stat().st_mtime_ns == mode


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none"):
        check_directory(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        check_directory(tmp_path / "file")


def test_the_command(run: Run, tmp_path: Path) -> None:
    assert run("check").code == 0
    directory = tmp_path / "sessions"
    store(directory, "s", text("user", "go"), call())
    outcome = run("check", directory)
    assert outcome.code == 0, "a note alone is nothing to act on"
    assert outcome.out.startswith("note ") and outcome.out.endswith(f"{directory}: 1 session, no problems, 1 note\n")
    (directory / "bad.json").write_text('{"messages": [')
    outcome = run("check", "--store", directory)
    assert outcome.code == 1
    assert f"problem  {directory / 'bad.json'}:1:" in outcome.out
    outcome = run("check", "--json", directory)
    report = json.loads(outcome.out)
    assert outcome.code == 1 and report["sessions"] == 1
    assert [(f["kind"], f["act"]) for f in report["findings"]] == [("damaged", True), ("dangling-tool-call", False)]
