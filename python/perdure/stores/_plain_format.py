"""The bytes of docs/format.md, sections 1 to 3, for plain dicts: build and read a snapshot, read a journal.

No file is touched here. Nothing of the Rust core is used: this is what the core is compared with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.errors import SerializationError, SessionCorruptError
from perdure.stores import _plain_json as pj
from perdure.stores._plain_names import show_id

FORMAT = 1
LINEAGE = re.compile(r"[0-9a-f]{32}")

_COMPUTED = ("format", "lineage", "revision", "message_count", "messages_bytes", "first_prompt", "crc32c")
_HEAD_LINES = re.compile(rb'\{\n  "id": ("[^\n]*"),\n  "perdure": (\{[^\n]*\}),?\n')


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes, start: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continued from `start`. Slow: about 10 MB/s."""
    crc, table = start ^ 0xFFFFFFFF, _CRC
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# --- writing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Built:
    """A snapshot ready to be written, its `perdure` field, and the bytes of the messages from `known` on."""

    data: bytes
    perdure: dict[str, Any]
    new_bytes: int


def build_snapshot(session: Mapping[str, Any], lineage: str, revision: int, known: int) -> Built:
    """The whole file. `SerializationError` for anything in the session that it cannot hold."""
    messages = session.get("messages", [])
    if not isinstance(messages, (list, tuple)):
        raise SerializationError(f"messages: not a list but {type(messages).__name__}", path="messages")
    texts = []
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            what = f"messages[{at}]: a message is a dict, not {type(message).__name__}"
            raise SerializationError(what, path=f"messages[{at}]")
        texts.append(pj.encode(message, f"messages[{at}]"))
    inner = "\n    " + ",\n    ".join(texts) + "\n  " if texts else ""
    block = pj.to_bytes(f'  "messages": [{inner}]')

    old = session.get("perdure")
    others = {k: v for k, v in old.items() if k not in _COMPUTED} if isinstance(old, dict) else {}
    perdure: dict[str, Any] = {
        "format": FORMAT,
        "lineage": lineage,
        "revision": revision,
        "message_count": len(texts),
        "messages_bytes": len(block),
        "first_prompt": first_prompt(messages),
        "tags": others.pop("tags", []),
        "parent": others.pop("parent", None),
        **others,
        # The pure-Python CRC takes far longer than everything else in a save together.
        "crc32c": None,
    }
    lines = [f'  "id": {pj.encode(session["id"], "id")}', f'  "perdure": {pj.encode(perdure, "perdure")}']
    for key, value in session.items():
        if not isinstance(key, str):
            raise SerializationError(f"a head field's name is a string, not {type(key).__name__}", path="")
        if key not in ("id", "perdure", "messages"):
            place = pj.key_part(key).lstrip(".")
            lines.append(f"  {pj.encode(key, place)}: {pj.encode(value, place)}")
    head = "{\n" + ",\n".join(lines) + ",\n"
    new_bytes = sum(len(pj.to_bytes(text)) for text in texts[known:])
    return Built(pj.to_bytes(head) + block + b"\n}\n", perdure, new_bytes)


def first_prompt(messages: Sequence[Any]) -> str | None:
    """The text of the first user message that has any, at most 200 code points. None: not in the first 16 messages."""
    for message in messages[:16]:
        text = _prompt_text(message.get("content")) if message.get("role") == "user" else None
        if text is not None:
            return text[:200]
    return None


def _prompt_text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    for block in content if isinstance(content, (list, tuple)) else ():
        if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str):
            text: str = block["text"]
            return text
    return None


# --- reading a snapshot -------------------------------------------------------------------------------------


def read_head(data: bytes, path: str) -> dict[str, Any] | None:
    """`id` and `perdure` from the first bytes of a file in perdure's own layout; None: it has another one."""
    found = _HEAD_LINES.match(data)
    if found is None:
        return None
    head = {"id": pj.decode(found[1], path, first_line=2), "perdure": pj.decode(found[2], path, first_line=3)}
    check_shape({**head, "messages": []}, path)
    return head


def read_snapshot(data: bytes, path: str) -> dict[str, Any]:
    """The session in a file, checked for its shape. Key order is the file's."""
    if not data.strip(b" \t\r\n"):
        what = "is empty" if not data else "holds nothing but white space"
        raise SessionCorruptError(f"{path} {what}; {pj.ADVICE}", path=path, line=1, column=1)
    session = pj.decode(data, path)
    check_shape(session, path)
    for key, value in session.items():
        deep = any(map(pj.too_deep, value)) if key == "messages" else pj.too_deep(value)
        if deep:
            what = f"{path}: {key} is nested over {pj.MAX_DEPTH} levels deep; {pj.ADVICE}"
            raise SessionCorruptError(what, session_id=session["id"], path=path)
    result: dict[str, Any] = session
    return result


def check_shape(session: Any, path: str) -> None:
    """`SessionCorruptError` unless this is a session of a format that this version knows."""

    def wrong(what: str) -> SessionCorruptError:
        return SessionCorruptError(f"{path} is JSON but not a session: {what}; {pj.ADVICE}", path=path)

    if not isinstance(session, dict):
        raise wrong(f"its root is {_json_type(session)}, not an object")
    perdure = session.get("perdure")
    if isinstance(perdure, dict) and type(perdure.get("format")) is int and perdure["format"] > FORMAT:
        raise SessionCorruptError(
            f"{path} has format {perdure['format']}, written by a newer perdure; this one reads up to "
            f"{FORMAT}: upgrade perdure. The file was left as it is",
            path=path,
        )
    if not isinstance(session.get("id"), str) or not session["id"]:
        raise wrong("it has no id, or one that is not a string")
    if not isinstance(session.get("messages"), list):
        raise wrong("it has no messages, or they are not an array")
    for at, message in enumerate(session["messages"]):
        if not isinstance(message, dict):
            raise wrong(f"messages[{at}] is {_json_type(message)}, not an object")
    if "perdure" not in session:
        return
    if not isinstance(perdure, dict):
        raise wrong(f"perdure is {_json_type(perdure)}, not an object")
    lineage, revision = perdure.get("lineage"), perdure.get("revision")
    if type(perdure.get("format")) is not int or perdure["format"] < 1:
        raise wrong("perdure.format is not a positive integer")
    if not isinstance(lineage, str) or not LINEAGE.fullmatch(lineage):
        raise wrong("perdure.lineage is not 32 lower-case hex digits")
    if type(revision) is not int or revision < 1:
        raise wrong("perdure.revision is not a positive integer")


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a bool", type(None): "null"}
    return names.get(type(value), "a number")


def snapshot_crc(data: bytes) -> int:
    """What `perdure.crc32c` covers: all after the `perdure` line; of a file without that line, every byte."""
    found = _HEAD_LINES.match(data)
    return crc32c(data[found.end() :] if found else data)


def outside_change(session: Mapping[str, Any], data: bytes, check_crc: bool) -> str | None:
    """What shows that somebody else changed the file, in words, or None."""
    perdure = session.get("perdure")
    if not isinstance(perdure, dict):
        return None
    if perdure.get("message_count") != len(session["messages"]):
        return f"it has {len(session['messages'])} messages, its head says {perdure.get('message_count')}"
    size = perdure.get("messages_bytes")
    if type(size) is not int or data[-3:] != b"\n}\n" or not _starts_messages(data, len(data) - 3 - size):
        return "it is laid out in another way"
    if check_crc and perdure.get("crc32c") is not None and perdure["crc32c"] != f"{snapshot_crc(data):08x}":
        return "its CRC does not fit"
    return None


def _starts_messages(data: bytes, at: int) -> bool:
    return at > 0 and data.startswith(b'  "messages": [', at)


def read_fields(head: bytes, path: str) -> dict[str, Any]:
    """The head fields, from the part of a file in perdure's own layout that comes before its messages."""
    fields: dict[str, Any] = pj.decode(head, path)
    check_shape({**fields, "messages": []}, path)
    return fields


# --- reading a journal --------------------------------------------------------------------------------------

# A message stands two levels deep in its line, and so does the value of a head field.
_DEEPEST = pj.MAX_DEPTH + 2
_LINE = re.compile(rb'\{"bytes": (0|[1-9][0-9]*), "crc32c": "([0-9a-f]{8})", (.*)\}', re.DOTALL)


@dataclass(slots=True)
class Journal:
    """A journal's lines, checked for themselves. The first `good` bytes count, `torn` are the ones behind."""

    header: dict[str, Any] | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    good: int = 0
    crc: int = 0
    torn: bytes = b""

    @property
    def deleted(self) -> bool:
        return any("deleted" in line for line in self.lines)

    @property
    def revision(self) -> int:
        """The highest revision in it, 0 if it has no save line."""
        return max((line["revision"] for line in self.lines), default=0)


def read_journal(data: bytes, path: str) -> Journal:
    """The journal, without a torn tail. `SessionCorruptError` for a bad line that is not torn."""
    journal = Journal()
    lines = data.split(b"\n")
    tail = lines.pop()
    at = 0
    for number, line in enumerate(lines, 1):
        last = number == len(lines) and not tail
        # A header that was never whole was never acknowledged, nor was the one line written along with it.
        header_alone = number == 1 and len(lines) + bool(tail) <= 2
        if b"\0" in line and (last or header_alone or all(map(_is_unsynced, lines[number:]))):
            break
        payload = _check_line(line, journal, number, path)
        if number == 1:
            _check_header(payload, path)
            journal.header = payload
        else:
            _check_save_line(payload, number, path)
            journal.lines.append(payload)
        at += len(line) + 1
    journal.good = at
    journal.torn = data[at:]
    return journal


def _is_unsynced(line: bytes) -> bool:
    """Whether the line was never synced: then nothing vouches for the bytes before it either."""
    if b"\0" in line:
        return True
    try:
        return json.loads(line).get("unsynced") is True
    except (ValueError, AttributeError):
        return False


def _bad_line(path: str, number: int, what: str) -> SessionCorruptError:
    return SessionCorruptError(f"{path}:{number}: {what}; {pj.ADVICE}", path=path, line=number, column=1)


def _check_line(line: bytes, journal: Journal, number: int, path: str) -> dict[str, Any]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise _bad_line(path, number, "not a line of a journal")
    if int(found[1]) != len(found[3]):
        raise _bad_line(path, number, f"says {int(found[1])} bytes, has {len(found[3])}")
    crc = crc32c(found[3], journal.crc)
    if f"{crc:08x}".encode() != found[2]:
        raise _bad_line(path, number, "its CRC does not fit: it is damaged, or belongs to another journal")
    journal.crc = crc
    payload = pj.decode(b"{" + found[3] + b"}", path, first_line=number)
    result: dict[str, Any] = payload
    return result


def _is(payload: dict[str, Any], key: str, kind: type) -> bool:
    return type(payload.get(key)) is kind


def _check_header(payload: dict[str, Any], path: str) -> None:
    if _is(payload, "journal", int) and payload["journal"] > FORMAT:
        raise SessionCorruptError(
            f"{path} has format {payload['journal']}, written by a newer perdure; this one reads up to "
            f"{FORMAT}: upgrade perdure. The file was left as it is",
            path=path,
        )
    kinds = {"journal": int, "id": str, "base_revision": int, "snapshot_bytes": int, "snapshot_crc32c": str}
    if not all(_is(payload, k, t) for k, t in kinds.items()) or "lineage" not in payload:
        raise _bad_line(path, 1, "not a journal's header")


def _check_save_line(payload: dict[str, Any], number: int, path: str) -> None:
    if not _is(payload, "revision", int):
        raise _bad_line(path, number, "has no revision")
    if "deleted" in payload:
        return
    fits = _is(payload, "from", int) and payload["from"] >= 0 and _is(payload, "head", dict)
    fits = fits and _is(payload, "removed", list) and _is(payload, "messages", list)
    if not fits or not all(isinstance(m, dict) for m in payload["messages"]) or pj.too_deep(payload, _DEEPEST):
        raise _bad_line(path, number, "not a save line")
    if {"id", "messages"} & payload["head"].keys() or {"id", "messages", "perdure"} & set(payload["removed"]):
        raise _bad_line(path, number, "changes a field that cannot change")


class MismatchError(Exception):
    """Journal and snapshot do not belong together, or were read at different moments. Says why."""


def merge(session: dict[str, Any], data: bytes, journal: Journal, path: str) -> None:
    """Apply the journal to the session from the snapshot `data`, in place (section 3, cases 5 to 7)."""
    header, perdure = journal.header, session.get("perdure")
    if header is None:
        return
    if header["id"] != session["id"]:
        raise MismatchError(f"the journal is of session {show_id(header['id'])}")
    if perdure is None:
        # The first save of a file that has no lineage is a snapshot: save lines have nothing to stand on.
        if journal.lines:
            raise MismatchError("the journal stands on a snapshot with a lineage, this one has none")
        return
    if header["lineage"] != perdure["lineage"]:
        raise MismatchError("they have different lineages")
    revision = perdure["revision"]
    fits = header["base_revision"] == revision and header["snapshot_bytes"] == len(data)
    if not fits or header["snapshot_crc32c"] != f"{snapshot_crc(data):08x}":
        if journal.revision <= revision:
            return
        raise MismatchError(f"the journal goes up to revision {journal.revision} but stands on another snapshot")
    for number, line in enumerate(journal.lines, 2):
        revision += 1
        if line["revision"] != revision:
            raise _bad_line(path, number, f"has revision {line['revision']} where {revision} has to follow")
        if line["from"] > len(session["messages"]):
            raise _bad_line(path, number, f"starts at message {line['from']} of {len(session['messages'])}")
        _apply(session, line)
    if journal.lines:
        # What describes the bytes of a snapshot is unknown until there is one.
        made = {"message_count": len(session["messages"]), "first_prompt": first_prompt(session["messages"])}
        session["perdure"].update(made, revision=revision, crc32c=None)
        session["perdure"].pop("messages_bytes", None)


def _apply(session: dict[str, Any], line: dict[str, Any]) -> None:
    del session["messages"][line["from"] :]
    session["messages"].extend(line["messages"])
    for key, value in line["head"].items():
        if key == "perdure" and isinstance(session.get("perdure"), dict) and isinstance(value, dict):
            computed = {k: v for k, v in session["perdure"].items() if k in _COMPUTED}
            session["perdure"] = {**{k: v for k, v in value.items() if k not in _COMPUTED}, **computed}
        else:
            session[key] = value
    for key in line["removed"]:
        session.pop(key, None)


def tombstone(journal: Journal, session_id: str, perdure: Mapping[str, Any] | None, data: bytes, at: int) -> bytes:
    """The bytes to add behind `journal` (a header too if it has none) to say that the session is deleted."""
    added, crc, revision = b"", journal.crc, max(perdure["revision"] if perdure else 0, journal.revision)

    def line(payload: str) -> bytes:
        nonlocal crc
        raw = pj.to_bytes(payload)
        crc = crc32c(raw, crc)
        return b'{"bytes": %d, "crc32c": "%08x", %s}\n' % (len(raw), crc, raw)

    if journal.header is None:
        lineage = f'"{perdure["lineage"]}"' if perdure else "null"
        added = line(
            f'"journal": {FORMAT}, "id": {pj.encode(session_id, "id")}, "lineage": {lineage}, '
            f'"base_revision": {revision}, "snapshot_bytes": {len(data)}, '
            f'"snapshot_crc32c": "{snapshot_crc(data):08x}"'
        )
    return added + line(f'"deleted": true, "revision": {revision + 1}, "at": {at}')
