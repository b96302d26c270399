"""read, write, edit, ls on a real directory with real links, FIFOs and sockets; nothing leaves it."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ConfigError
from perdure.turn.tools import ToolBox, ToolOutcome


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "ws"
    path.mkdir()
    (tmp_path / "outside.txt").write_text("outside secret")
    return path


async def run(workspace: Path, name: str, /, **arguments: Any) -> ToolOutcome:
    return await ToolBox(workspace, permissive=True).run(name, arguments, tool_use_id="t1")


ESCAPES = [
    "../outside.txt",
    "a/../../outside.txt",
    "a/b/../../../outside.txt",
    "/etc/passwd",
    "{tmp}/outside.txt",
    "{ws}/../outside.txt",
    "link.txt",
    "chain",
    "dirlink/outside.txt",
    "relative/outside.txt",
    "{ws}-twin/file",
]


@pytest.mark.parametrize("tool", ["read", "write", "edit", "ls", "glob", "grep"])
@pytest.mark.parametrize("path", ESCAPES)
async def test_no_path_leads_out(workspace: Path, tool: str, path: str) -> None:
    outside = workspace.parent
    (workspace / "a" / "b").mkdir(parents=True)
    (workspace / "link.txt").symlink_to(outside / "outside.txt")
    (workspace / "chain").symlink_to("link.txt")
    (workspace / "dirlink").symlink_to(outside)
    (workspace / "relative").symlink_to("a/../..")
    twin = outside / "ws-twin"
    twin.mkdir()
    (twin / "file").write_text("outside secret")
    arguments = {
        "read": {},
        "write": {"content": "gotcha"},
        "edit": {"old": "outside", "new": "gotcha"},
        "ls": {},
        "glob": {"pattern": "*"},
        "grep": {"pattern": "secret"},
    }[tool]
    shown = path.format(tmp=outside, ws=workspace)
    outcome = await run(workspace, tool, path=shown, **arguments)
    assert outcome.is_error
    assert "outside of the workspace" in outcome.content
    assert (outside / "outside.txt").read_text() == "outside secret"
    assert (twin / "file").read_text() == "outside secret"


async def test_links_that_stay_inside_work(workspace: Path) -> None:
    (workspace / "d").mkdir()
    (workspace / "d" / "f.txt").write_text("hello\n")
    (workspace / "one").symlink_to("d/f.txt")
    (workspace / "two").symlink_to(workspace / "d")
    (workspace / "d" / "up").symlink_to("../one")
    for path in ("one", "two/f.txt", "d/up", str(workspace / "two" / "f.txt"), "./d//../d/f.txt"):
        assert await run(workspace, "read", path=path) == ToolOutcome("hello\n", False), path
    assert not (await run(workspace, "write", path="one", content="new")).is_error
    assert (workspace / "one").is_symlink()
    assert (workspace / "d" / "f.txt").read_text() == "new"


async def test_link_loop_is_named(workspace: Path) -> None:
    (workspace / "x").symlink_to("y")
    (workspace / "y").symlink_to("x")
    outcome = await run(workspace, "read", path="x")
    assert outcome.is_error
    assert "too many symbolic links" in outcome.content


async def test_workspace_given_through_a_link(workspace: Path) -> None:
    alias = workspace.parent / "alias"
    alias.symlink_to(workspace)
    (workspace / "f").write_text("x")
    assert (await run(alias, "read", path=str(alias / "f"))).content == "x"


async def test_swapped_directory_never_leads_out(workspace: Path) -> None:
    """A directory that is swapped for a link outside, all the time, while it is read and written."""
    inside, outside = workspace / "d", workspace.parent / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "f").write_text("inside")
    (outside / "f").write_text("outside secret")
    spare = workspace / "link"
    spare.symlink_to(outside)
    stop = threading.Event()
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    at, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: the name is never free

    def swap() -> None:
        while not stop.is_set():
            exchange(at, bytes(inside), at, bytes(spare), both)

    thread = threading.Thread(target=swap)
    thread.start()
    box = ToolBox(workspace, permissive=True)
    seen = set()
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            outcome = await box.run("read", {"path": "d/f"}, tool_use_id="t")
            seen.add(outcome.content if not outcome.is_error else "error")
            await box.run("write", {"path": "d/new", "content": "x"}, tool_use_id="t")
    finally:
        stop.set()
        thread.join()
    assert seen == {"inside", "error"}
    assert sorted(p.name for p in outside.iterdir()) == ["f"]


async def test_fifo_device_and_socket_are_refused_at_once(workspace: Path) -> None:
    os.mkfifo(workspace / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(workspace / "sock"))
    started = time.monotonic()
    for name, kind in (("fifo", "a FIFO"), ("sock", "a socket")):
        for tool, more in (("read", {}), ("write", {"content": ""}), ("edit", {"old": "a", "new": "b"})):
            outcome = await run(workspace, tool, path=name, **more)
            assert outcome.is_error
            assert kind in outcome.content, outcome
    listener.close()
    assert "no matches" in (await run(workspace, "grep", pattern="x")).content
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nope", "there is no nope"),
        ("no/such/file", "there is no no"),
        ("d", "is a directory"),
        ("f/x", "f is a regular file, not a directory"),
        ("", "cannot be empty"),
        ("a\0b", "NUL"),
        ("\ud83d", "lone surrogate"),
        ("x" * 300, "File name too long"),
    ],
)
async def test_bad_paths_are_named(workspace: Path, path: str, words: str) -> None:
    (workspace / "d").mkdir()
    (workspace / "f").write_text("x")
    outcome = await run(workspace, "read", path=path)
    assert outcome.is_error
    assert words in outcome.content


async def test_read_pieces(workspace: Path) -> None:
    (workspace / "f").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    outcome = await run(workspace, "read", path="f", offset=3, limit=2)
    assert outcome.content == "line 3\nline 4\n\n[lines 3 to 4; there is more, continue with offset=5]"
    assert (await run(workspace, "read", path="f", offset=9, limit=2)).content == "line 9\nline 10\n"
    past = await run(workspace, "read", path="f", offset=11)
    assert past.is_error
    assert "has 10 lines" in past.content
    assert (await run(workspace, "read", path="f", offset=0)).is_error


async def test_read_says_binary_empty_and_bad_utf8(workspace: Path) -> None:
    (workspace / "b").write_bytes(b"\x7fELF\0\1\2")
    (workspace / "e").write_bytes(b"")
    (workspace / "l1").write_bytes(b"caf\xe9\n")
    outcome = await run(workspace, "read", path="b")
    assert outcome.is_error
    assert "binary file of 7 bytes" in outcome.content
    assert (await run(workspace, "read", path="e")).content == "[the file is empty]"
    assert (await run(workspace, "read", path="l1")).content == "caf\ufffd\n"
    edited = await run(workspace, "edit", path="b", old="ELF", new="FLE")
    assert edited.is_error
    assert "binary" in edited.content
    edited = await run(workspace, "edit", path="l1", old="caf", new="tea")
    assert edited.is_error
    assert "not UTF-8" in edited.content
    assert (workspace / "l1").read_bytes() == b"caf\xe9\n"


async def test_read_is_bounded_for_huge_files(workspace: Path) -> None:
    with (workspace / "big").open("wb") as file:
        file.write(b"x" * 100)
        file.truncate(2 << 30)  # sparse
    with (workspace / "lines").open("w") as file:
        file.writelines(f"{n:099d}\n" for n in range(100_000))
    (workspace / "long").write_text("y" * 1_000_000 + "\nlast\n")
    box = ToolBox(workspace, max_output=1000)
    for name in ("big", "lines", "long"):
        outcome = await box.run("read", {"path": name}, tool_use_id="t")
        assert len(outcome.content) < 1200
    assert "binary" in (await box.run("read", {"path": "big"}, tool_use_id="t")).content
    assert "continue with offset=1" in (await box.run("read", {"path": "lines"}, tool_use_id="t")).content
    assert (await box.run("read", {"path": "long"}, tool_use_id="t")).content.endswith("continue with offset=2]")
    assert (await box.run("read", {"path": "long", "offset": 2}, tool_use_id="t")).content == "last\n"


async def test_reading_takes_bounded_memory(workspace: Path) -> None:
    (workspace / "wide").write_bytes(b"y" * (64 << 20))
    (workspace / "tall").write_bytes(b"y\n" * (4 << 20))
    tracemalloc.start()
    try:
        for arguments in ({"path": "wide"}, {"path": "tall", "offset": 1_000_000}):
            await ToolBox(workspace, max_output=1000).run("read", arguments, tool_use_id="t")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


async def test_a_full_disk_leaves_the_old_file_and_no_temp(workspace: Path) -> None:
    (workspace / "f").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        outcome = await run(workspace, "write", path="f", content="x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome == ToolOutcome("OSError: f: File too large", True)
    assert (workspace / "f").read_text() == "old"
    assert [p.name for p in workspace.iterdir()] == ["f"]


async def test_a_read_only_file_is_not_replaced(workspace: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    (workspace / "f").write_text("old")
    (workspace / "f").chmod(0o444)
    outcome = await run(workspace, "write", path="f", content="new")
    assert outcome.is_error
    assert "read-only" in outcome.content


async def test_write_creates_parents_and_keeps_the_mode(workspace: Path) -> None:
    outcome = await run(workspace, "write", path="a/b/c.txt", content="é\n")
    assert outcome.content == "created a/b/c.txt (3 bytes)"
    target = workspace / "a" / "b" / "c.txt"
    target.chmod(0o751)
    assert (await run(workspace, "write", path="a/b/c.txt", content="x")).content.startswith("overwrote")
    assert target.read_text() == "x"
    assert target.stat().st_mode & 0o7777 == 0o751
    assert [p.name for p in target.parent.iterdir()] == ["c.txt"]


async def test_a_failed_write_leaves_the_old_file_and_no_temp(workspace: Path) -> None:
    target = workspace / "f"
    target.write_text("old")
    outcome = await run(workspace, "write", path="f", content="bad \ud800")
    assert outcome.is_error
    assert "lone surrogate" in outcome.content
    (workspace / "d").mkdir()
    assert (await run(workspace, "write", path="d", content="x")).is_error
    assert (await run(workspace, "write", path="f/g", content="x")).is_error
    assert target.read_text() == "old"
    assert sorted(p.name for p in workspace.iterdir()) == ["d", "f"]


async def test_edit_wants_exactly_one_place(workspace: Path) -> None:
    target = workspace / "f.py"
    target.write_text("a = 1\nb = 1\n")
    many = await run(workspace, "edit", path="f.py", old="= 1", new="= 2")
    assert many.is_error
    assert "occurs 2 times" in many.content
    none = await run(workspace, "edit", path="f.py", old="c", new="d")
    assert none.is_error
    assert "does not occur" in none.content
    assert target.read_text() == "a = 1\nb = 1\n"
    assert (await run(workspace, "edit", path="f.py", old="a = 1", new="a = 3")).content == "edited f.py (1 place)"
    assert not (await run(workspace, "edit", path="f.py", old="= ", new="=", replace_all=True)).is_error
    assert target.read_text() == "a =3\nb =1\n"
    assert (await run(workspace, "edit", path="f.py", old="", new="x")).is_error
    assert (await run(workspace, "edit", path="f.py", old="a", new="a")).is_error


async def test_edit_keeps_windows_line_ends(workspace: Path) -> None:
    target = workspace / "dos.txt"
    target.write_bytes(b"one\r\ntwo\r\nthree\r\n")
    assert not (await run(workspace, "edit", path="dos.txt", old="one\ntwo", new="1\n2")).is_error
    assert target.read_bytes() == b"1\r\n2\r\nthree\r\n"


async def test_ls(workspace: Path) -> None:
    (workspace / "d").mkdir()
    (workspace / "f").write_text("12345")
    (workspace / "l").symlink_to("/etc/passwd")
    os.mkfifo(workspace / "p")
    (workspace / "new\nline").write_text("")
    assert (await run(workspace, "ls")).content.splitlines() == [
        "d/",
        "f (5 bytes)",
        "l -> /etc/passwd",
        "new\\nline (0 bytes)",
        "p (a FIFO)",
    ]
    assert (await run(workspace, "ls", path="d")).content == "[d is empty]"
    assert (await run(workspace, "ls", path="f")).is_error


def test_workspace_must_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="is not a directory") as caught:
        ToolBox(tmp_path / "f")
    assert caught.value.option == "workspace"
    with pytest.raises(ConfigError, match="does not exist"):
        ToolBox(tmp_path / "none")


async def test_descriptors_are_given_back(workspace: Path) -> None:
    (workspace / "a" / "b").mkdir(parents=True)
    (workspace / "a" / "l").symlink_to("/etc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for tool, arguments in (
        ("read", {"path": "a/b/../../a/none"}),
        ("read", {"path": "a/l/passwd"}),
        ("ls", {"path": "a/b"}),
        ("glob", {"pattern": "**"}),
        ("grep", {"pattern": "x"}),
        ("write", {"path": "a/b/f", "content": "x"}),
        ("bash", {"command": "true"}),
    ):
        await run(workspace, tool, **arguments)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
