"""`perdure demo`: a real conversation is killed in mid-turn, held against what was acknowledged, and resumed."""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from perdure.cli.term import clean

__all__ = ["demo"]


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if nothing was lost or mixed, 1 if anything was."""
    from perdure.cli.chat import require_model
    from perdure.cli.demo.rounds import Demo
    from perdure.config import AgentConfig

    require_model(AgentConfig(), "local/smollm2")
    if arguments.dir is not None:
        directory = Path(arguments.dir).expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
    else:
        directory = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    say = lambda line: print(clean(line), flush=True)  # noqa: E731
    return 0 if Demo(directory, rounds=arguments.rounds, seed=seed, say=say).run() else 1
