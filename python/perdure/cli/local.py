"""`perdure local install`."""

from __future__ import annotations

import argparse

from perdure.cli.parser import UsageError
from perdure.cli.term import clean

__all__ = ["install", "usage"]


def usage(_: argparse.Namespace) -> int:
    """`perdure local` without a verb."""
    raise UsageError("say what to do: perdure local install")


def install(_: argparse.Namespace) -> int:
    """Install the weights of the local model."""
    from perdure.turn.local import install_weights

    print(clean(install_weights()))
    return 0
