"""One version everywhere, and nothing in the repository that only one machine has."""

from __future__ import annotations

import re
from pathlib import Path

import perdure

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_the_same_everywhere() -> None:
    cargo = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert cargo is not None
    version = cargo.group(1)
    assert perdure.__version__ == version
    lock = (ROOT / "Cargo.lock").read_text()
    for crate in ("perdure-core", "perdure-py"):
        assert f'name = "{crate}"\nversion = "{version}"\n' in lock, crate
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest.group(1) == version


def test_the_lock_file_names_the_public_index_only() -> None:
    sources = set(re.findall(r'^source = "(.+)"$', (ROOT / "Cargo.lock").read_text(), re.MULTILINE))
    assert sources == {"registry+https://github.com/rust-lang/crates.io-index"}


def test_no_requirement_names_where_it_comes_from() -> None:
    for name in ("requirements-dev.txt", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        for trace in ("index-url", "find-links", "trusted-host", " @ http", "registry.", "file://"):
            assert trace not in text, f"{name}: {trace}"


def test_what_the_requirements_promise_is_what_the_extras_promise() -> None:
    """The tests run with the versions that users get."""
    extras = (ROOT / "pyproject.toml").read_text()
    development = (ROOT / "requirements-dev.txt").read_text()
    for requirement in re.findall(r'"((?:pydantic-ai-slim|xllamacpp)[^"]*)"', extras):
        # The extras are for newer Pythons only; who runs the tests has one.
        package, bounds = re.match(r"([\w-]+)(?:\[.*?\])?([^;]*)", requirement).groups()  # type: ignore[union-attr]
        assert re.search(rf"^{package}(\[.*?\])?{re.escape(bounds)}$", development, re.MULTILINE), requirement
