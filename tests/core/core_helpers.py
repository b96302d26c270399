"""What the tests of the core share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from perdure import FileSessionStore, SessionData

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def text(content: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": content}]}


def session(id: str = "s", *contents: str) -> SessionData:
    return SessionData(id, messages=[text(content) for content in contents])


def texts(data: SessionData | None) -> list[str]:
    assert data is not None
    return [message["content"][0]["text"] for message in data.messages]


def loaded(store: FileSessionStore, id: str = "s") -> SessionData:
    data = store.load(id)
    assert data is not None
    return data


def child(code: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def tree(directory: Path) -> dict[str, bytes]:
    """Every regular file below a directory."""
    return {p.name: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file() and not p.is_symlink()}


# Any code point, lone surrogates too.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
NUMBERS = st.integers() | st.integers(-(10**400), 10**400) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.dictionaries(ANY_TEXT, JSON, max_size=4)


def same(a: object, b: object) -> bool:
    """Equal in type too, and -0.0 is not 0.0: what `==` says of 1, 1.0 and True is not enough here."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)
