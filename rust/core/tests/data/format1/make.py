"""Writes the golden files of format 1, from docs/format.md alone: nothing of perdure is used.

The files are for ever. Add new ones, never change one: run this and see that git shows no change to those there.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
LINEAGE = "0123456789abcdef0123456789abcdef"
AT = 1795344690


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def snapshot(
    id: str,
    revision: int,
    fields: list[str],
    messages: list[str],
    *,
    tags: str = "[]",
    parent: str = "null",
    first: str = "null",
    extra: str = "",
    crc: bool = True,
) -> tuple[bytes, int]:
    """`fields` and `messages` are JSON as it stands in the file. Gives the bytes and the CRC."""
    lines = "".join(f"    {m},\n" for m in messages)[:-2]
    array = f'  "messages": [\n{lines}\n  ]' if messages else '  "messages": []'
    rest = "".join(f"  {f},\n" for f in fields) + array + "\n}\n"
    computed = crc32c(rest.encode())
    written = f'"{computed:08x}"' if crc else "null"
    meta = (
        f'{{"format": 1, "lineage": "{LINEAGE}", "revision": {revision}, "message_count": {len(messages)}, '
        f'"messages_bytes": {len(array.encode())}, "first_prompt": {first}, "tags": {tags}, "parent": {parent}, '
        f'{extra}"crc32c": {written}}}'
    )
    return f'{{\n  "id": {text(id)},\n  "perdure": {meta},\n{rest}'.encode(), computed


def journal(id: str, base: int, snap: tuple[bytes, int], payloads: list[str]) -> bytes:
    header = (
        f'"journal": 1, "id": {text(id)}, "lineage": "{LINEAGE}", "base_revision": {base}, '
        f'"snapshot_bytes": {len(snap[0])}, "snapshot_crc32c": "{snap[1]:08x}"'
    )
    out, crc = b"", 0
    for payload in [header, *payloads]:
        crc = crc32c(payload.encode(), crc)
        out += f'{{"bytes": {len(payload.encode())}, "crc32c": "{crc:08x}", {payload}}}\n'.encode()
    return out


def save(revision: int, start: int, head: str, removed: str, messages: str) -> str:
    start_of_line = f'"revision": {revision}, "from": {start}, "at": {AT}'
    return f'{start_of_line}, "head": {head}, "removed": {removed}, "messages": {messages}'


def write(name: str, data: bytes) -> None:
    (HERE / name).write_bytes(data)


USER = '{"role": "user", "content": [{"type": "text", "text": "Refactor auth"}]}'
DONE = '{"role": "assistant", "content": [{"type": "text", "text": "Done."}]}'
FIELDS = [
    '"config": {"name": "", "workspace": "/home/me/app"}',
    '"state": "Active"',
    '"created_at": 1795344689',
    '"tasks": []',
]

write("empty.json", snapshot("empty", 1, [], [])[0])
parent = f'{{"id": "a/b", "lineage": "{LINEAGE}", "revision": 3, "at": 2}}'
write(
    "plain.json",
    snapshot(
        "plain",
        7,
        FIELDS,
        [USER, DONE],
        tags='["a", "é"]',
        parent=parent,
        first='"Refactor auth"',
        extra='"later": [1, {"x": 1.50}], ',
    )[0],
)
ESCAPES = [
    r'{"role": "user", "content": "\"\\\b\t\n\f\r\u0000\u001f\u007f\u2028\ud83d é 😀"}',
    r'{"n": [1e5, 1.50, -0.0, 123456789012345678901234567890, 1E+2, true, null], "dup": 1, "dup": 2, "": {}}',
    r'{"\u0041": "\u00e9\/", "ключ": []}',
]
fields = [r'"a\"b": "\u2028"', r'"x": 1.0', r'"y": [[], {}]']
FIRST = r'"\"\\\b\t\n\f\r\u0000\u001f\u007f\u2028\ud83d é 😀"'
write("escapes.json", snapshot("escapes", 2, fields, ESCAPES, first=FIRST)[0])

snap = snapshot("steps", 7, FIELDS, [USER, DONE], first='"Refactor auth"')
STEPS = [
    save(8, 2, '{"updated_at": 1795344690}', "[]", '[{"n": 3}, {"n": 4}]'),
    save(9, 1, '{"state": "Done"}', '["tasks"]', '[{"n": "é\\n"}]'),
    save(10, 2, '{"perdure": {"tags": ["t"], "parent": null, "later": 1}}', '["updated_at"]', "[]"),
]
write("steps.json", snap[0])
write("steps.journal", journal("steps", 7, snap, STEPS))

snap = snapshot("deleted", 7, FIELDS, [USER, DONE], first='"Refactor auth"')
write("deleted.json", snap[0])
write("deleted.journal", journal("deleted", 7, snap, [STEPS[0], f'"deleted": true, "revision": 9, "at": {AT}']))

old = snapshot("folded", 7, FIELDS, [USER], first='"Refactor auth"')
write("folded.json", snapshot("folded", 8, FIELDS, [USER, DONE], first='"Refactor auth"')[0])
write("folded.journal", journal("folded", 7, old, [save(8, 1, "{}", "[]", f"[{DONE}]")]))

snap = snapshot("torn", 7, FIELDS, [USER, DONE], first='"Refactor auth"')
write("torn.json", snap[0])
whole = journal("torn", 7, snap, STEPS[:1])
write("torn.journal", whole + journal("torn", 7, snap, STEPS[:2])[len(whole) :][:60] + bytes(40))

write("unchecked.json", snapshot("unchecked", 7, FIELDS, [USER, DONE], crc=False)[0])
