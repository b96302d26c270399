"""The demo: it runs on the real model, and its verdict turns red when anything is lost."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import FileSessionStore
from perdure.checking import check_directory
from perdure.cli import main
from perdure.cli.demo import verify
from perdure.cli.demo.verify import Acknowledged, digest, lost_or_mixed

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": f"m{n}"}]} for n in range(6)]


def acknowledged(count: int, revision: int) -> Acknowledged:
    known = Acknowledged()
    known.saved(revision, 0, map(digest, MESSAGES[:count]))
    return known


def test_everything_there_is_right_and_so_is_one_step_that_was_not_reported_yet() -> None:
    assert lost_or_mixed(acknowledged(4, 7), 7, MESSAGES[:4]) == []
    assert lost_or_mixed(acknowledged(4, 7), 8, MESSAGES[:5]) == []
    assert lost_or_mixed(Acknowledged(), 0, []) == []


@pytest.mark.parametrize(
    ("revision", "messages", "word"),
    [
        (6, MESSAGES[:4], "LOST"),
        (7, MESSAGES[:3], "LOST"),
        (0, [], "LOST"),
        (8, MESSAGES[:6], "MIXED"),
        (7, [MESSAGES[1], MESSAGES[0], *MESSAGES[2:4]], "MIXED"),
        (7, [*MESSAGES[:3], MESSAGES[5]], "MIXED"),
        (8, [*MESSAGES[:4], MESSAGES[0]], "MIXED"),
    ],
)
def test_a_lost_or_mixed_step_is_seen(revision: int, messages: list[dict[str, Any]], word: str) -> None:
    wrong = lost_or_mixed(acknowledged(4, 7), revision, messages)
    assert wrong and wrong[0].startswith(word)


def test_reports_build_up_and_a_gap_is_refused() -> None:
    known = acknowledged(2, 1)
    known.saved(2, 2, [digest(MESSAGES[2])])
    known.saved(3, 3, [])
    assert (known.revision, known.saves) == (3, 3)
    assert known.digests == [digest(message) for message in MESSAGES[:3]]
    with pytest.raises(ValueError, match="message 5"):
        known.saved(4, 5, [])


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert verify.digest({}) != digest({"a": None})


@pytest.mark.model
@pytest.mark.timeout(600)
def test_three_rounds_on_the_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["demo", "--rounds", "3", "--dir", str(tmp_path), "--seed", "7"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert re.search(r"^PASSED in \d+ s: 3 kills, \d+ acknowledged saves, nothing lost, nothing mixed$", out, re.M)
    assert out.count(": killed process") == 3
    assert "while a tool was running" in out and "has a result that says so" in out
    sessions = FileSessionStore(tmp_path / "sessions")
    (id,) = sessions.list()
    data = sessions.load(id)
    assert data is not None
    kept = re.findall(r"acknowledged  revision (\d+), (\d+) messages", out)
    assert len(kept) == 3
    assert data.revision > int(kept[-1][0]) and len(data) > int(kept[-1][1])
    assert f"{tmp_path / 'sessions' / id}.json:" in out and f'"id": "{id}"' in out
    assert [path.name for path in (tmp_path / "sessions").iterdir()] == [f"{id}.json"]
    assert check_directory(tmp_path / "sessions") == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _gone(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("tamper", "word"), [(_cut, "SessionCorruptError"), (_gone, "LOST")])
def test_the_verdict_turns_red(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tamper: Callable[[Path], None],
    word: str,
) -> None:
    from perdure.cli.demo import rounds

    monkeypatch.setattr(rounds, "Demo", functools.partial(rounds.Demo, tamper=tamper))
    assert main(["demo", "--rounds", "2", "--dir", str(tmp_path), "--seed", "7"]) == 1
    out = capsys.readouterr().out
    assert "FAILED after" in out and "PASSED" not in out
    assert word in out
    assert "Round 2" not in out
