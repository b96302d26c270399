"""Session id to file name and back, as docs/format.md section 6 says. Pure Python, on its own."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata

from perdure.errors import InvalidSessionIdError

MAX_ID_CHARACTERS = 4096
_MAX_STEM = 180
_CUT_STEM = 140

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
_RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])", re.IGNORECASE)
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")


def check_id(session_id: object) -> str:
    """The id itself; `InvalidSessionIdError`: not a string, empty, over 4,096 characters, or NUL in it."""
    if not isinstance(session_id, str):
        raise InvalidSessionIdError(f"a session id is a string, not {type(session_id).__name__}")
    if not session_id:
        raise InvalidSessionIdError("a session id has at least one character, this one is empty")
    if len(session_id) > MAX_ID_CHARACTERS:
        raise InvalidSessionIdError(
            f"a session id has at most {MAX_ID_CHARACTERS} characters, this one has {len(session_id)}"
        )
    if "\0" in session_id:
        raise InvalidSessionIdError(f"a session id holds no NUL character, {show_id(session_id)} does")
    if any("\ud800" <= character <= "\udfff" for character in session_id):
        raise InvalidSessionIdError(f"a session id holds no lone surrogate, {show_id(session_id)} does")
    return session_id


def show_id(session_id: str) -> str:
    """The id for an error message: quoted, escaped, and cut in the middle if it is long."""
    if len(session_id) > 80:
        return f"{ascii(session_id[:50])[:-1]}…{ascii(session_id[-20:])[1:]}"
    return ascii(session_id) if any(0xD800 <= ord(c) < 0xE000 for c in session_id) else repr(session_id)


def stem_of(session_id: str) -> str:
    """The name of the session's files, without an ending. One-to-one: no two ids have the same."""
    raw = session_id.encode()
    stem = "".join(
        chr(byte) if byte in _PLAIN and not (byte == 0x2E and at == 0) else f"%{byte:02X}"
        for at, byte in enumerate(raw)
    )
    if _RESERVED.fullmatch(stem.partition(".")[0]):
        stem = f"%{ord(stem[0]):02X}{stem[1:]}"
    if stem.endswith("."):
        stem = stem[:-1] + "%2E"
    if len(stem) > _MAX_STEM:
        kept = stem[:_CUT_STEM]
        split = kept.rfind("%", _CUT_STEM - 2)
        if split != -1:
            kept = kept[:split]
        stem = f"{kept}%-{hashlib.sha256(raw).hexdigest()[:32]}"
    return stem


def id_of(stem: str) -> str | None:
    """The id of a stem made by `stem_of`, or None: the stem was cut, or it is none of ours."""
    if not stem.isascii() or "%-" in stem:
        return None
    raw = _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), stem.encode())
    try:
        session_id = raw.decode()
    except UnicodeDecodeError:
        return None
    return session_id if session_id and stem_of(session_id) == stem else None


def a3s_stem_of(session_id: str) -> str | None:
    """The name that A3S Code gave the session's file, or None if that is no plain file name."""
    stem = session_id.replace("/", "_").replace("\\", "_")
    controls = any(unicodedata.category(character) == "Cc" for character in stem)
    # Longer, and there is no room left for the endings of the files beside it.
    return None if stem.startswith(".") or controls or len(stem.encode()) > 200 else stem


def candidate_stems(session_id: str) -> list[str]:
    """The names under which a session may lie, the one we would give first."""
    ours, theirs = stem_of(session_id), a3s_stem_of(session_id)
    return [ours] if theirs is None or theirs == ours else [ours, theirs]


def a3s_v1_names(session_id: str) -> list[str]:
    """Paths, below the directory, at which A3S Code's later layout keeps the session."""
    code = base64.urlsafe_b64encode(session_id.encode()).decode()
    return [f"v1/sessions/id_{c}.json" for c in dict.fromkeys((code.rstrip("="), code)) if len(c) <= 247]
