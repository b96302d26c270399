"""What the tests of the pure-Python store share: files made by hand from docs/format.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEWLINE = b"\n"
LINEAGE = "0123456789abcdef0123456789abcdef"
A3S = Path(__file__).parent.parent / "data" / "a3s"


def crc32c(data: bytes, start: int = 0) -> int:
    """CRC-32C bit by bit, as slow and plain as the definition."""
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def text(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": content}]}


def snapshot_bytes(id: str = "s", revision: int = 7, messages: int = 2, crc: bool = True, **head: Any) -> bytes:
    """A snapshot, put together line by line."""
    lines = [json.dumps(text("user", f"message {at}")) for at in range(messages)]
    block = '  "messages": [' + "".join(f"\n    {line}," for line in lines)[:-1] + ("\n  ]" if lines else "]")
    rest = "".join(f"  {json.dumps(k)}: {json.dumps(v)},\n" for k, v in head.items()) + block + "\n}\n"
    perdure = {
        "format": 1,
        "lineage": LINEAGE,
        "revision": revision,
        "message_count": messages,
        "messages_bytes": len(block.encode()),
        "first_prompt": "message 0" if messages else None,
        "tags": [],
        "parent": None,
        "crc32c": f"{crc32c(rest.encode()):08x}" if crc else None,
    }
    return f'{{\n  "id": {json.dumps(id)},\n  "perdure": {json.dumps(perdure)},\n{rest}'.encode()


def snapshot_crc(snapshot: bytes) -> str:
    return f"{crc32c(snapshot.split(NEWLINE, 3)[3]):08x}"


def sealed(*payloads: str) -> bytes:
    """Journal lines, each with its length and the chained CRC."""
    lines, crc = b"", 0
    for payload in payloads:
        raw = payload.encode()
        crc = crc32c(raw, crc)
        lines += f'{{"bytes": {len(raw)}, "crc32c": "{crc:08x}", '.encode() + raw + b"}\n"
    return lines


def header(snapshot: bytes, id: str = "s", revision: int = 7, lineage: str = LINEAGE) -> str:
    return (
        f'"journal": 1, "id": {json.dumps(id)}, "lineage": "{lineage}", "base_revision": {revision}, '
        f'"snapshot_bytes": {len(snapshot)}, "snapshot_crc32c": "{snapshot_crc(snapshot)}"'
    )


def step(revision: int, start: int, *messages: Any, head: Any = None, removed: Any = ()) -> str:
    return (
        f'"revision": {revision}, "from": {start}, "at": 1795344690, "head": {json.dumps(head or {})}, '
        f'"removed": {json.dumps(list(removed))}, "messages": {json.dumps(list(messages))}'
    )


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below the directory and what is in it."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
