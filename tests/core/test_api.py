"""The package's surface: names, types, imports, documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from core_helpers import child

import perdure
from perdure import _core

ROOT = Path(perdure.__file__).parent


def test_all_is_sorted_and_complete() -> None:
    assert perdure.__all__ == sorted(perdure.__all__)
    assert len(set(perdure.__all__)) == len(perdure.__all__)
    public = {
        name for name, value in vars(perdure).items()
        if not name.startswith("_") and not isinstance(value, type(sys)) and name != "annotations"
    }  # fmt: skip
    assert public == set(perdure.__all__) - {"__version__"}
    for name in perdure.__all__:
        assert getattr(perdure, name) is not None


def test_every_error_is_exported_and_has_one_root() -> None:
    from perdure import errors

    for name in errors.__all__:
        error = getattr(perdure, name)
        assert error is getattr(errors, name)
        assert issubclass(error, perdure.PerdureError)


def test_classes_say_where_they_live() -> None:
    for name in ("FileSessionStore", "Messages", "SessionData", "SessionDelta"):
        cls = getattr(perdure, name)
        assert (cls.__module__, cls.__qualname__) == ("perdure", name)
        assert cls.__doc__


IMPORTS = """
import sys, time
before = set(sys.modules)
started = time.perf_counter()
import perdure
taken = time.perf_counter() - started
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(name for name in names if name not in sys.stdlib_module_names))
print(sorted({"asyncio", "multiprocessing", "ssl", "sqlite3", "http"} & set(sys.modules)))
print(taken)
"""


def test_importing_is_quick_and_imports_nothing_third_party() -> None:
    done = child(IMPORTS)
    assert done.stderr == ""
    third_party, heavy, taken = done.stdout.splitlines()
    assert third_party == "['perdure']"
    assert set(eval(heavy)) <= {"asyncio", "ssl"}
    assert float(taken) < 1.5  # 0.1 s; a shared machine may be slow


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert perdure.__version__ == version("perdure") == _core.__version__
    assert _core.build_profile in ("release", "debug")


def test_stubs_are_those_of_the_module(tmp_path: Path) -> None:
    # Next to mypy's own cache: without one the standard library is read anew every time.
    cache = Path(__file__).parents[2] / ".mypy_cache" / "stubtest"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\ncache_dir = {cache}\n")
    command = [
        sys.executable, "-m", "mypy.stubtest", "perdure._core", "--mypy-config-file", str(tmp_path / "mypy.ini"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_marker_for_type_checkers_is_there() -> None:
    assert (ROOT / "py.typed").exists()
    assert (ROOT / "_core.pyi").exists()
