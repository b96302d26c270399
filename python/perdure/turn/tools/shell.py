"""bash: a command as a process group of its own, of which nothing is left when the call is over."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from .files import Call
from .output import HeadTail
from .types import ToolFailure

__all__ = ["run_command"]

# Every process of a call carries this in its environment, so that one that left the group is found too.
_MARK = "PERDURE_TOOL_CALL"
# Between SIGTERM and SIGKILL, in seconds: enough to remove a lock file, too short to be noticed.
_GRACE = 0.5
_TICK_MS = 50

_running: dict[int, str] = {}
_running_lock = threading.Lock()


def run_command(call: Call, *, command: str, timeout: float | None = None) -> tuple[str, bool]:
    """Run the command in the workspace. Returns its output, standard error included, and whether it failed.

    timeout  seconds; can only shorten the limit that the user set
    """
    if "\0" in command:
        raise ToolFailure("a command cannot contain a NUL character")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ToolFailure("timeout must be a number of seconds greater than 0")
    limits = [limit for limit in (timeout, call.timeout) if limit is not None]
    limit = min(limits) if limits else None
    mark = secrets.token_hex(16)
    environment = call.environment()
    environment.update({_MARK: mark, "TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"})
    environment.pop("BASH_ENV", None)
    shell = shutil.which("bash") or "/bin/sh"
    call.token.check()
    process = subprocess.Popen(
        [shell, "-c", command],
        cwd=call.workspace.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        bufsize=0,
    )
    with _running_lock:
        _running[process.pid] = mark
    output = HeadTail(call.max_output)
    try:
        ended = _follow(call, process, output, None if limit is None else time.monotonic() + limit)
        left_over = ended == "exited" and _group_holds_output(process, output)
        if ended != "exited":
            _signal_group(process.pid, signal.SIGTERM)
            _wait_for_exit(process, output, _GRACE)
    finally:
        _kill_all(process, mark)
        with _running_lock:
            _running.pop(process.pid, None)
    call.token.check()
    return _report(call, process, output, ended, limit, left_over)


def _follow(call: Call, process: subprocess.Popen[bytes], output: HeadTail, deadline: float | None) -> str:
    """Read until the shell has "exited", the time is over ("timeout") or the call is "cancelled"."""
    open_still = True
    while True:
        if open_still:
            open_still = _read_some(process, output, _TICK_MS)
        else:
            time.sleep(0.01)
        if _has_exited(process):
            return "exited"
        if call.token.cancelled:
            return "cancelled"
        if deadline is not None and time.monotonic() > deadline:
            return "timeout"


def _read_some(process: subprocess.Popen[bytes], output: HeadTail, wait_ms: int) -> bool:
    """Read one chunk if one comes in time. False at the end of the output."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(wait_ms):
        return True
    chunk = os.read(fd, 1 << 16)
    output.feed(chunk)
    return bool(chunk)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether the shell has ended. Not reaped if possible: its zombie keeps the group's number from reuse."""
    if process.returncode is not None:
        return True
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _wait_for_exit(process: subprocess.Popen[bytes], output: HeadTail, seconds: float) -> None:
    until = time.monotonic() + seconds
    open_still = True
    while time.monotonic() < until and not _has_exited(process):
        if open_still:
            open_still = _read_some(process, output, 10)
        else:
            time.sleep(0.01)


def _group_holds_output(process: subprocess.Popen[bytes], output: HeadTail) -> bool:
    """Read what is still in the pipe. True if a background process holds it open."""
    while True:
        before = output.total
        if not _read_some(process, output, 20):
            return False
        if output.total == before or output.total > 1 << 30:
            return True


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_all(process: subprocess.Popen[bytes], mark: str) -> None:
    assert process.stdout is not None
    _signal_group(process.pid, signal.SIGKILL)
    _kill_marked(mark)
    process.wait()
    process.stdout.close()


def _kill_marked(mark: str) -> None:
    """Kill what left the group (setsid, a double fork): found by the mark in its environment. Linux only."""
    if not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal") and Path("/proc/self").is_dir()):
        return
    wanted = f"{_MARK}={mark}".encode()
    for _ in range(20):  # a process may fork between the listing and its death
        found = False
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                found |= _kill_if_marked(int(entry.name), wanted)
        if not found:
            return
        time.sleep(0.005)


def _kill_if_marked(pid: int, wanted: bytes) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Read after the handle is taken: what is killed is what was looked at, even if the number was used
        # again.
        if wanted not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _report(
    call: Call,
    process: subprocess.Popen[bytes],
    output: HeadTail,
    ended: str,
    limit: float | None,
    left_over: bool,
) -> tuple[str, bool]:
    notes = []
    if ended == "timeout":
        notes.append(f"[the command took more than {limit:g} s and was stopped]")
    elif process.returncode < 0:
        try:
            name = signal.Signals(-process.returncode).name
        except ValueError:
            name = f"signal {-process.returncode}"
        notes.append(f"[the command was killed by {name}]")
    elif process.returncode:
        notes.append(f"[exit code {process.returncode}]")
    if left_over:
        notes.append("[processes that the command left in the background were ended]")
    text = output.text(call.mask)
    if not text and not notes:
        notes.append("[no output]")
    if text and notes and not text.endswith("\n"):
        text += "\n"
    return text + "\n".join(notes), ended == "timeout" or process.returncode != 0


def _kill_running() -> None:
    """At exit: a call that is still running on its thread must not leave its command behind."""
    with _running_lock:
        left = dict(_running)
    for group, mark in left.items():
        _signal_group(group, signal.SIGKILL)
        _kill_marked(mark)


def _forget_after_fork() -> None:
    # The commands belong to the parent; the lock may have been held by a thread that does not exist here.
    global _running_lock
    _running_lock = threading.Lock()
    _running.clear()


atexit.register(_kill_running)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
