"""Fixtures and hypothesis profiles for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from perdure import FileSessionStore

# Time limits belong to pytest-timeout: a shared machine is slow without being wrong.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("thorough", parent=settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def store(tmp_path: Path) -> FileSessionStore:
    """A file store on an empty directory."""
    return FileSessionStore(tmp_path / "sessions")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of the real model on one worker: two model servers on two cores wait for each other for minutes."""
    slow = (
        "tests/docs/",
        "tests/cli/test_chat.py",
        "tests/cli/test_examples.py",
        "tests/test_demo.py",
        "tests/turn/test_local.py",
    )
    for item in items:
        if item.get_closest_marker("model") or item.nodeid.startswith(slow):
            item.add_marker(pytest.mark.xdist_group("model"))
