"""`perdure ls`, `show`, `rm` and `fork`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from perdure._core import SessionData
from perdure.cli.parser import UsageError
from perdure.cli.term import Style, ago, clean, columns, cut, one_line, size, table
from perdure.cli.where import find_place
from perdure.errors import PerdureError

__all__ = ["fork", "ls", "messages", "rm", "show"]

_LONGEST_CELL = 40
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def ls(arguments: argparse.Namespace) -> int:
    """List the sessions, newest first."""
    place = find_place(arguments)
    infos = list(place.agent.sessions(arguments.limit, options=place.options())) if place.is_there() else []
    if arguments.json:
        rows = [
            {
                "id": info.id,
                "name": info.name,
                "tags": list(info.tags),
                "created_at": info.created_at.isoformat(),
                "updated_at": info.updated_at.isoformat(),
                "message_count": info.message_count,
                "bytes": info.bytes,
                "revision": info.revision,
                "first_prompt": info.first_prompt,
            }
            for info in infos
        ]
        print(json.dumps(rows, indent=2))
        return 0
    if not infos:
        print(f"no sessions in {clean(place.shown)}", file=sys.stderr)
        return 0
    limit = columns(sys.stdout)
    # An id is there to be copied: it is shortened for people only, never for a pipe.
    longest = _LONGEST_CELL if limit is not None else sys.maxsize
    lines = table(
        ("ID", "NAME", "MESSAGES", "SIZE", "UPDATED", "FIRST PROMPT"),
        [
            (
                cut(one_line(info.id), longest),
                cut(one_line(info.name), longest),
                str(info.message_count),
                size(info.bytes),
                ago(info.updated_at),
                one_line(info.first_prompt or ""),
            )
            for info in infos
        ],
        right=(2, 3),
        limit=limit,
    )
    print(Style().bold(lines[0]))
    for line in lines[1:]:
        print(line)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Show a conversation, or with --json everything that is stored."""
    data = find_place(arguments).load(arguments.id)
    if arguments.json:
        raw = data.to_json()
        if sys.stdout.isatty():
            # Loaded text may hold characters raw that a terminal acts on. Escaped, it is the same JSON.
            text = _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", raw.decode())
            sys.stdout.write(text)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(raw)
        return 0
    style = Style()
    for line in _head(data, style):
        print(line)
    first = max(0, len(data) - arguments.last) if arguments.last else 0
    if first:
        print(style.dim(f"\n({first} earlier messages)"))
    for index in range(first, len(data)):
        print()
        for line in messages(data.messages[index], index + 1, style):
            print(line)
    return 0


def _head(data: SessionData, style: Style) -> Iterator[str]:
    config = data.config if isinstance(data.config, dict) else {}
    name = one_line(str(config.get("name") or ""))
    yield style.bold(clean(data.id)) + (f"  {name}" if name else "")
    count = "1 message" if len(data) == 1 else f"{len(data)} messages"
    facts = [count, f"revision {data.revision}", f"updated {ago(data.updated_at)}"]
    if data.model_name:
        facts.insert(0, one_line(data.model_name))
    if data.tags:
        facts.append("tags " + ", ".join(one_line(str(tag)) for tag in data.tags))
    if data.parent:
        facts.append(f"forked from {one_line(str(data.parent.get('id')))} at {data.parent.get('at')}")
    yield style.dim(", ".join(facts))


def messages(message: Mapping[str, Any], number: int, style: Style) -> Iterator[str]:
    """A message as lines for people; everything in it is made harmless."""
    role, content = message.get("role"), message.get("content")
    blocks = content if isinstance(content, list) else [content]
    results = bool(blocks) and all(isinstance(b, dict) and b.get("type") == "tool_result" for b in blocks)
    shown = "tool" if results else one_line(str(role)) if isinstance(role, str) else "?"
    paint = style.cyan if shown == "user" else style.yellow if shown == "tool" else style.green
    yield f"{style.dim(f'{number:>4}')}  {paint(shown)}"
    for block in blocks:
        for line in _block(block, style):
            yield f"      {line}" if line else ""


def _block(block: Any, style: Style) -> Iterator[str]:
    if isinstance(block, str):
        yield from clean(block).split("\n")
        return
    if not isinstance(block, dict):
        yield style.dim(_compact(block))
        return
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        yield from clean(block["text"]).split("\n")
    elif kind == "thinking" and isinstance(block.get("thinking"), str):
        for line in clean(block["thinking"]).split("\n"):
            yield style.dim(f"(thinking) {line}")
    elif kind == "tool_use":
        yield style.yellow(f"→ {one_line(str(block.get('name')))}") + f" {_compact(block.get('input'))}"
    elif kind == "tool_result":
        failed = block.get("is_error") is True
        inner = block.get("content")
        lines = [line for part in (inner if isinstance(inner, list) else [inner]) for line in _block(part, style)]
        for at, line in enumerate(lines or [""]):
            mark = (style.red("✗ ") if failed else "← ") if at == 0 else "  "
            yield mark + line
    elif kind == "image":
        source = block.get("source")
        media = source.get("media_type") if isinstance(source, dict) else None
        yield style.dim(f"[image {one_line(str(media or '')) or 'of unknown type'}]")
    else:
        yield style.dim(f"[{one_line(str(kind))}] {_compact({k: v for k, v in block.items() if k != 'type'})}")


def _compact(value: Any) -> str:
    return cut(one_line(json.dumps(value, ensure_ascii=False)), 200)


def rm(arguments: argparse.Namespace) -> int:
    """Delete sessions, after asking."""
    place = find_place(arguments)
    ids = list(dict.fromkeys(arguments.ids))
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError("rm deletes for good and there is no terminal to ask on; say --yes")
        what = f"session {one_line(ids[0])}" if len(ids) == 1 else f"{len(ids)} sessions"
        print(f"Delete {what} in {clean(place.shown)} for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing is deleted", file=sys.stderr)
            return 1
    there, failed, agent = place.is_there(), False, place.agent
    for id in ids:
        try:
            if there and agent.delete_session(id, place.options()):
                print(f"deleted {one_line(id)}")
                continue
            reason = f"no session {id!r} in {place.shown}"
        except PerdureError as error:
            reason = str(error)
        failed = True
        print(f"perdure: {one_line(reason)}", file=sys.stderr)
    return 1 if failed else 0


def fork(arguments: argparse.Namespace) -> int:
    """Copy a session and print the copy's id."""
    place = find_place(arguments)
    if not place.is_there():
        place.load(arguments.id)  # says that it is not there
    try:
        print(clean(place.agent.fork_session(arguments.id, arguments.new, arguments.at, place.options())))
    except ValueError as error:
        if isinstance(error, PerdureError):
            raise
        raise UsageError(f"--at: {error}") from None
    return 0
