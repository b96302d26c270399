"""What the demo believes: the acknowledged state, and how a stored session is held against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Acknowledged", "digest", "lost_or_mixed"]


def digest(message: Mapping[str, Any]) -> str:
    """What tells a message from every other one. Does not depend on who encoded it."""
    return hashlib.sha256(json.dumps(message, sort_keys=True).encode()).hexdigest()


@dataclass
class Acknowledged:
    """The last state that was reported as saved: its revision, and the digest of every message in order."""

    revision: int = 0
    digests: list[str] = field(default_factory=list)
    saves: int = 0

    def saved(self, revision: int, first: int, digests: Iterable[str]) -> None:
        """One more save was acknowledged: from message `first` on there are these."""
        if first > len(self.digests):
            raise ValueError(f"a report starts at message {first}, but only {len(self.digests)} were reported before")
        self.revision = revision
        self.digests[first:] = digests
        self.saves += 1


def lost_or_mixed(acknowledged: Acknowledged, revision: int, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a stored session; empty: every acknowledged step is there, in its place, unchanged.

    One message more than was acknowledged is right: the process can die after a save and before it could say so.
    """
    wrong = []
    known = acknowledged.digests
    if revision < acknowledged.revision:
        wrong.append(f"LOST: revision {acknowledged.revision} was acknowledged, revision {revision} is on disk")
    if len(messages) < len(known):
        wrong.append(f"LOST: {len(known)} messages were acknowledged, {len(messages)} are on disk")
    mixed = [at for at, message in enumerate(messages[: len(known)]) if digest(message) != known[at]]
    if mixed:
        wrong.append(f"MIXED: message {mixed[0] + 1} on disk is not the one that was acknowledged")
    if len(messages) > len(known) + 1:
        wrong.append(f"MIXED: {len(messages) - len(known)} messages on disk that nobody reported")
    if len(set(map(digest, messages))) < len(messages):
        wrong.append("MIXED: a message is on disk twice")
    return wrong
