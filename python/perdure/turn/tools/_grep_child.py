"""Runs as a process of its own: matches a regular expression against files that it is fed on standard input.

Frames in: "<label bytes> <data bytes>\\n", label, data. The first label is the order as JSON, the others are
file names. Out, at the end of the input or once enough is found: one JSON object. Imports only what a bare
interpreter has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import IO, Any


def main() -> None:
    source = sys.stdin.buffer
    try:
        import resource

        # An expression such as ((a{9999}){9999}) must not eat the machine's memory.
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        # A parent that was killed cannot end it: an expression that runs for ever would do so alone.
        resource.setrlimit(resource.RLIMIT_CPU, (600, 600))
    except (ImportError, OSError, ValueError):
        pass
    first = _frame(source)
    if first is None:
        return
    order: dict[str, Any] = json.loads(first[0])
    answer: dict[str, Any] = {"matches": [], "more": False}
    try:
        search = re.compile(order["pattern"], re.IGNORECASE if order["ignore_case"] else 0).search
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        answer = {"error": str(error) or type(error).__name__}
    else:
        _search_all(source, search, order, answer)
    # Closed before the answer goes out: who feeds this process would otherwise wait for it and it for them.
    source.close()
    sys.stdout.write(json.dumps(answer))


def _frame(source: IO[bytes]) -> tuple[str, bytes] | None:
    line = source.readline()
    if not line:
        return None
    label, data = (int(part) for part in line.split())
    return source.read(label).decode("utf-8"), source.read(data)


def _search_all(source: IO[bytes], search: Callable[[str], Any], order: dict[str, Any], answer: dict[str, Any]) -> None:
    found = answer["matches"]
    while (frame := _frame(source)) is not None:
        name, data = frame
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
            if search(line):
                if len(found) == order["most"]:
                    answer["more"] = True
                    return
                found.append([name, number, line.rstrip("\r")[: order["longest"]]])


main()
