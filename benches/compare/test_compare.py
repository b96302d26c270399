"""The comparison itself: equal messages, figures of what was really stored, nobody left out in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compare import environments, measure, report, run, syscalls, workload
from compare.contenders import CONTENDERS, Contender
from compare.process import Process

BENCHES = Path(__file__).resolve().parents[1]
QUICK = "floor,jsonl,json,python,perdure"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("compare")
    out = directory / "compare.json"
    settings = ["--sizes", "4", "--rounds", "2", "--quick", "--allow-tmpfs"]
    run.main(["--dir", str(directory), "--only", QUICK, "--out", str(out), *settings])
    return json.loads(out.read_text())


def test_the_messages_are_those_of_the_other_benchmark() -> None:
    import contenders

    assert [workload.message(number) for number in range(20)] == [contenders.message(number) for number in range(20)]
    assert workload.NEW_MESSAGES == contenders.NEW_MESSAGES
    assert workload.text(workload.message(3)) == contenders.message(3)["content"][0]["text"]


def test_the_workload_needs_neither_perdure_nor_a_package() -> None:
    code = f"import sys; sys.path[:0] = [{str(BENCHES)!r}]; import compare.child, compare.peers.plain, compare.workload"
    code += "; assert 'perdure' not in sys.modules"
    # -S: no site-packages.
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


def test_all_are_measured_in_everything(results: dict[str, Any]) -> None:
    assert list(results["contenders"]) == QUICK.split(",")
    for name, entry in results["contenders"].items():
        assert entry["missing"] is None, name
        assert "failed" not in entry, name
        assert entry["turns"]["4"]["rounds"] == 2
        assert entry["session"]["written_ratio"] > 0.99, name
        assert entry["many"]["failed_turns"] == 0
        assert entry["durability"]["synced"] == (syscalls.SYNCED if shutil.which("strace") else syscalls.UNKNOWN), name
    floor = results["contenders"]["floor"]
    assert floor["turns"]["4"]["ratio_to_floor"] == {"median": 1, "mean": 1, "p99": 1}
    # The floor writes the text once, a whole file every time.
    assert floor["session"]["written_ratio"] == pytest.approx(1, abs=0.01)
    assert results["contenders"]["json"]["session"]["written_ratio"] > 5
    assert results["contenders"]["perdure"]["packages"] == {"perdure": results["perdure"]}


def test_the_table_has_a_row_for_everyone(results: dict[str, Any]) -> None:
    table = report.table(results)
    for name in QUICK.split(","):
        assert table.count(f"| {CONTENDERS[name].title}") >= 4, name
    assert "Not measured" not in table


def test_who_does_not_sync_stands_apart(results: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(results))
    changed["contenders"]["json"]["durability"]["synced"] = syscalls.NO
    lines = report.table(changed).splitlines()
    apart = lines.index(next(line for line in lines if "Not synced" in line))
    assert lines[apart + 1].startswith("| json ")


def test_the_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Contender("gone", "Gone", "compare.peers.not_there", "Gone", "nothing")
    monkeypatch.setitem(CONTENDERS, "gone", gone)
    entries = run.compare(["floor", "gone"], tmp_path, measure.Settings(rounds={}, session_turns=2, many_runs=1))
    assert "not_there" in entries["gone"]["missing"]
    assert entries["floor"]["session"]["turns"] == 2
    text = report._missing({"contenders": entries})
    assert text.startswith("- Gone: ")


def test_a_peer_that_cannot_be_installed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "TARGET", tmp_path / "target")
    monkeypatch.setattr(environments, "HERE", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "none.txt").write_text(f"{tmp_path}/no-such-package-1.0-py3-none-any.whl\n")
    with pytest.raises(environments.Missing, match=r"requirements/none\.txt could not be installed: .+"):
        environments.interpreter("none")
    assert not (tmp_path / "target" / "none" / "requirements.txt").exists()


def test_messages_that_are_not_there_are_noticed(tmp_path: Path) -> None:
    with Process(CONTENDERS["jsonl"], sys.executable, tmp_path / "home") as process:
        process.ask("start", directory=str(tmp_path / "store"))
        process.ask("open", count=4)
        process.ask("turns", count=2)
        assert process.ask("check") == {"expected": 8, "stored": 8}
        file = next((tmp_path / "store").glob("*.jsonl"))
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
        assert process.ask("check") == {"expected": 8, "stored": 7}
        with pytest.raises(environments.Missing, match="no command"):
            process.ask("nothing")


def test_sessions_at_once_are_all_stored(tmp_path: Path) -> None:
    with Process(CONTENDERS["json"], sys.executable, tmp_path / "home") as process:
        process.ask("start", directory=str(tmp_path / "store"))
        answer = process.ask("many", sessions=5, count=4, turns=3)
    assert (answer["done"], answer["failed"], answer["by"]) == (15, 0, "threads")
    assert answer["stored"] == answer["expected"] == 5 * (4 + 3 * workload.NEW_MESSAGES)


MARK = f"1 fsync({workload.MARK}) = -1 EBADF (Bad file descriptor)\n"


@pytest.mark.parametrize(
    ("calls", "synced"),
    [
        ("1 fdatasync(3</d/a.jsonl>) = 0\n", syscalls.SYNCED),
        ('1 fdatasync(3</d/a.jsonl> <unfinished ...>\n2 openat(AT_FDCWD</d>, "x", O_RDONLY) = 4\n', syscalls.SYNCED),
        ("1 pwritev2(3</d/a>, [], 1, 0, RWF_DSYNC) = 9\n", syscalls.SYNCED),
        ("1 pwritev2(3</d/a>, [], 1, 0, RWF_HIPRI) = 9\n", syscalls.NO),
        ("", syscalls.NO),
        ('1 rename("/d/.a.tmp", "/d/a.json") = 0\n', syscalls.NO),
        ('1 fsync(3</d/.a.tmp>) = 0\n1 rename("/d/.a.tmp", "/d/a.json") = 0\n', syscalls.NAME),
        ('1 fsync(3</d/.a.tmp>) = 0\n1 rename("/d/.a.tmp", "/d/a.json") = 0\n1 fsync(4<DIR>) = 0\n', syscalls.SYNCED),
        ('1 rename("/d/.a.tmp", "/d/a.json") = 0\n1 fsync(4<DIR>) = 0\n', syscalls.NO),
        ('1 fdatasync(3</d/a.db>) = 0\n1 unlink("/d/a.db-journal") = 0\n', syscalls.NAME),
        ('1 fdatasync(3</d/a.db>) = 0\n1 unlink("/d/a.tmp") = 0\n', syscalls.SYNCED),
    ],
)
def test_durability_is_read_from_the_calls(tmp_path: Path, calls: str, synced: str) -> None:
    trace = tmp_path / "trace"
    before = "1 fsync(3</d/a>) = 0\n"  # of the set-up: not of a turn
    good = "1 fdatasync(3</d/a.jsonl>) = 0\n"
    trace.write_text(before + MARK + good + MARK + calls.replace("DIR", str(tmp_path)))
    turns = syscalls.turns(trace)
    assert len(turns) == 2
    # One turn that is not synced is enough.
    assert syscalls.verdict(turns)["synced"] == synced


def test_without_a_trace_nothing_is_said(tmp_path: Path) -> None:
    found = syscalls.verdict([])
    assert found["synced"] == syscalls.UNKNOWN
    assert "not traced" in syscalls.describe(found, {})


@pytest.mark.parametrize("arguments", [["--only", "floor,nobody"], ["--sizes", "5"], ["--sizes", "2"]])
def test_bad_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert arguments[0] in capsys.readouterr().err
