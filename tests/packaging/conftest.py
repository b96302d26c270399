"""The wheel and the sdist, each built once a run, whatever the number of pytest's workers."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from installing import ROOT, run

Alone = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def building(shared: Path) -> Alone:
    """One build at a time: builds share cargo's target directory, in which maturin leaves its copy of the library."""

    @contextmanager
    def alone() -> Iterator[None]:
        with (shared / "building.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return alone


@pytest.fixture(scope="session")
def wheel(shared: Path, building: Alone) -> Path:
    """The wheel that `make wheel` builds; cargo's target directory makes it quick after `make dev`."""
    return _built(shared / "wheel", building, "build", "--release", "--locked", "--interpreter", sys.executable)


@pytest.fixture(scope="session")
def sdist(shared: Path, building: Alone) -> Path:
    return _built(shared / "sdist", building, "sdist")


def _built(out: Path, building: Alone, *command: str) -> Path:
    maturin = shutil.which("maturin", path=str(Path(sys.executable).parent)) or "maturin"
    with building():
        if not out.exists():
            unfinished = out.with_suffix(".unfinished")
            run(maturin, *command, "--out", unfinished, cwd=ROOT)
            unfinished.rename(out)
    (built,) = out.iterdir()
    return built
