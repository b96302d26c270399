"""Runs as a process of its own: serves one GGUF file over HTTP on a free loopback port, for `local`.

Out: one line of JSON, {"url": ...} or {"error": ...}. The process ends when its standard input does, which
the system closes when the parent dies, however it dies. Imports nothing of perdure, so that it starts fast.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from typing import Any


def _parameters(order: dict[str, Any]) -> Any:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = order["path"]
    params.model_alias = {order["name"]}  # else replies carry the path of the file
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = order["n_ctx"]
    params.cpuparams.n_threads = order["threads"]
    params.n_parallel = 1
    params.warmup = False
    params.offline = True
    params.verbosity = 1  # errors only
    # What a chat does not need is off: the other programs of this machine can reach the port too.
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.cors_origins = "http://127.0.0.1"
    return params


def main() -> None:
    # Ctrl-C and a closed terminal are the parent's business: it ends this process when it wants to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order: dict[str, Any] = json.loads(sys.stdin.buffer.readline())

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
        server = xllamacpp.Server(_parameters(order))
        answer = {"url": server.listening_address}
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        os._exit(1)
    print(json.dumps(answer), flush=True)
    # From here on nobody reads what this process says; a pipe that fills up would stop it.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    threading.Event().wait()


if __name__ == "__main__":
    main()
