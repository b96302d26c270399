"""The command `perdure`. Standard library only; the model layer is imported by `chat` and `demo` alone.

Exit codes: 0 done, 1 failed or something was found, 2 wrong usage, 130 ended with Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from perdure.cli.parser import UsageError, make_parser
from perdure.cli.term import Style, clean
from perdure.errors import PerdureError

__all__ = ["main"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code. `argv` is `sys.argv[1:]` by default."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character is no reason to fail in the middle of a listing.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # --help, --version, or wrong usage; argparse has said what there is to say
        return end.code if isinstance(end.code, int) else USAGE
    try:
        with _warnings_on_one_line():
            code = _run(parser, arguments)
            sys.stdout.flush()
            return code
    except UsageError as error:
        _complain(str(error))
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (PerdureError, OSError) as error:
        _complain(_reason(error))
        return FAILED


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return USAGE
    result: int = arguments.run(arguments)
    return result


def _reason(error: Exception) -> str:
    if isinstance(error, PerdureError):
        return str(error)
    strerror = getattr(error, "strerror", None)
    filename = getattr(error, "filename", None)
    return f"{filename}: {strerror}" if strerror and filename else str(error)


def _complain(message: str) -> None:
    _say(Style(sys.stderr).red("perdure: "), message)


def _say(head: str, message: str) -> None:
    print(head + clean(" ".join(message.splitlines())), file=sys.stderr, flush=True)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            _say(Style(sys.stderr).yellow("perdure: warning: "), record.getMessage())


@contextlib.contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Show what the library warns of like everything else that the command says."""
    logger, handler = logging.getLogger("perdure"), _Lines(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
