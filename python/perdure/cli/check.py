"""`perdure check`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from perdure._core import FileSessionStore
from perdure.checking import check_directory
from perdure.cli.term import Style, clean
from perdure.cli.where import find_place
from perdure.errors import ConfigError

__all__ = ["check"]


def check(arguments: argparse.Namespace) -> int:
    """Say what is wrong in a directory of sessions; 1 if a person has to do something."""
    directory = _directory(arguments)
    if directory is None:
        if arguments.json:
            print(json.dumps({"sessions": 0, "findings": []}, indent=2))
        else:
            print("no problems: there are no sessions yet")
        return 0
    findings = check_directory(directory)
    with FileSessionStore(directory) as store:
        count = len(store.list())
    problems = sum(finding.act for finding in findings)
    if arguments.json:
        print(json.dumps({"sessions": count, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 1 if problems else 0
    style = Style()
    for finding in findings:
        label = style.red("problem") if finding.act else style.dim("note   ")
        print(f"{label}  {clean(str(finding))}")
    parts = [
        _counted(count, "session"),
        style.red(_counted(problems, "problem")) if problems else style.green("no problems"),
    ]
    if len(findings) > problems:
        parts.append(_counted(len(findings) - problems, "note"))
    print(f"{clean(str(directory))}: {', '.join(parts)}")
    return 1 if problems else 0


def _directory(arguments: argparse.Namespace) -> Path | None:
    """The directory that is meant, or None: there is none yet."""
    if arguments.dir is not None:
        return Path(arguments.dir).expanduser()
    place = find_place(arguments)
    if not place.is_there():
        return None
    if place.directory is None:
        raise ConfigError(
            f"check looks at files, and the configuration keeps sessions in a {place.shown}; name a directory",
            path=place.config.path,
        )
    return place.directory


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
