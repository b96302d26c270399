"""ToolBox: which tools there are, who may run them, checked arguments, Python functions, masking."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from perdure.errors import ConfigError
from perdure.turn.tools import ToolBox, ToolOutcome

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


def weather(city: str, days: int = 1) -> str:
    """Tell the weather.

    Args:
        city: Where.
        days: How many days ahead.
    """
    return f"{city}: sun for {days}"


async def add(a: int, b: int) -> int:
    """Add."""
    await asyncio.sleep(0)
    return a + b


@dataclass
class Point:
    x: int
    y: int


async def run(box: ToolBox, name: str, /, **arguments: Any) -> ToolOutcome:
    return await box.run(name, arguments, tool_use_id="t1")


def test_definitions(tmp_path: Path) -> None:
    box = ToolBox(tmp_path)
    assert box.names() == ("read", "write", "edit", "ls", "glob", "grep", "bash")
    for spec in box.definitions():
        assert spec.description
        assert spec.parameters["type"] == "object"
        assert spec.parameters["additionalProperties"] is False
        assert set(spec.parameters["required"]) <= set(spec.parameters["properties"])
        json.dumps(spec.parameters)
    assert ToolBox(tmp_path, tools=["read", weather]).names() == ("read", "weather")
    assert ToolBox(tmp_path / "need not be there", tools=[weather]).names() == ("weather",)
    assert ToolBox(tmp_path, tools=[]).definitions() == []


def test_function_schema(tmp_path: Path) -> None:
    (spec,) = ToolBox(tmp_path, tools=[weather]).definitions()
    assert spec.name == "weather"
    assert spec.description.startswith("Tell the weather.")
    assert spec.parameters["required"] == ["city"]
    assert spec.parameters["properties"]["city"] == {"type": "string", "description": "Where."}
    assert spec.parameters["properties"]["days"]["default"] == 1


@pytest.mark.parametrize("name", ["write", "edit", "bash"])
async def test_changing_tools_need_permission(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_text("old")
    arguments = {
        "write": {"path": "f", "content": "new"},
        "edit": {"path": "f", "old": "old", "new": "new"},
        "bash": {"command": "echo new > f"},
    }[name]
    asked: list[tuple[str, dict[str, Any]]] = []

    def yes(tool: str, given: dict[str, Any]) -> bool:
        asked.append((tool, dict(given)))
        assert threading.current_thread() is not threading.main_thread()
        given.clear()  # a copy: this must not change the call
        return True

    async def async_no(tool: str, given: dict[str, Any]) -> bool:
        return False

    def truthy(tool: str, given: dict[str, Any]) -> Any:
        return "yes"

    def broken(tool: str, given: dict[str, Any]) -> bool:
        raise RuntimeError("sk-secret in the text")

    refused = await run(ToolBox(tmp_path), name, **arguments)
    assert refused.is_error
    assert "permissive=True" in refused.content
    for confirm in (async_no, truthy):
        outcome = await run(ToolBox(tmp_path, confirm=confirm), name, **arguments)
        assert outcome.is_error
        assert "the user refused" in outcome.content
    outcome = await run(ToolBox(tmp_path, confirm=broken), name, **arguments)
    assert outcome.is_error
    assert "RuntimeError" in outcome.content
    assert "sk-secret" not in outcome.content
    assert (tmp_path / "f").read_text() == "old"

    assert not (await run(ToolBox(tmp_path, confirm=yes), name, **arguments)).is_error
    assert asked == [(name, arguments)]
    assert (tmp_path / "f").read_text().strip() == "new"
    (tmp_path / "f").write_text("old")
    assert not (await run(ToolBox(tmp_path, permissive=True), name, **arguments)).is_error
    assert (tmp_path / "f").read_text().strip() == "new"


async def test_reading_tools_never_ask(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")

    def never(tool: str, given: dict[str, Any]) -> bool:
        raise AssertionError

    box = ToolBox(tmp_path, confirm=never)
    for name, arguments in (
        ("read", {"path": "f"}),
        ("ls", {}),
        ("glob", {"pattern": "*"}),
        ("grep", {"pattern": "x"}),
    ):
        assert not (await run(box, name, **arguments)).is_error


async def test_functions_ask_only_if_they_say_so(tmp_path: Path) -> None:
    ran = []

    def launch(count: int) -> str:
        """Launch."""
        ran.append(count)
        return "gone"

    assert (await run(ToolBox(tmp_path, tools=[launch]), "launch", count=1)).content == "gone"
    launch.perdure_confirm = True  # type: ignore[attr-defined]
    assert (await run(ToolBox(tmp_path, tools=[launch]), "launch", count=2)).is_error
    assert not (await run(ToolBox(tmp_path, tools=[launch], confirm=lambda *_: True), "launch", count=3)).is_error
    assert ran == [1, 3]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("read", {}, ["path is missing", "read takes (path: string"]),
        ("read", {"pth": "f"}, ["'pth'; did you mean 'path'?", "path is missing"]),
        ("read", {"path": 5}, ["path must be a string, not an integer"]),
        ("read", {"path": "f", "limit": "10"}, ["limit must be an integer, not a string"]),
        ("read", {"path": "f", "limit": True}, ["limit must be an integer, not a boolean"]),
        ("read", {"path": "f", "limit": 1.5}, ["limit must be an integer, not a number"]),
        ("read", {"path": None}, ["path must be a string, not null"]),
        ("edit", {"path": "f", "old": "a", "new": "b", "replace_all": 1}, ["must be true or false"]),
        ("bash", {"command": ["ls"]}, ["command must be a string, not a list"]),
        ("weather", {}, ["city: Field required", "weather takes (city: string; days: integer = 1)"]),
        ("weather", {"city": "Rome", "days": "x"}, ["days: Input should be a valid integer"]),
        ("weather", {"city": "Rome", "when": 1}, ["when: Extra inputs are not permitted"]),
        (
            "wether",
            {},
            ["there is no tool 'wether'; did you mean 'weather'?", "Tools: read, edit, bash, weather"],
        ),
    ],
)
async def test_wrong_arguments_are_told(tmp_path: Path, name: str, arguments: dict[str, Any], words: list[str]) -> None:
    box = ToolBox(tmp_path, tools=["read", "edit", "bash", weather], permissive=True)
    outcome = await box.run(name, arguments, tool_use_id="t")
    assert outcome.is_error
    for word in words:
        assert word in outcome.content


async def test_lenient_where_models_are_sloppy(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1\n2\n3\n")
    box = ToolBox(tmp_path)
    assert (await run(box, "read", path="f", offset=3.0, limit=None)).content == "3\n"
    outcome = await box.run("read", ["f"], tool_use_id="t")  # type: ignore[arg-type]
    assert "must be a JSON object, not list" in outcome.content


async def test_function_results(tmp_path: Path) -> None:
    def point(x: int) -> Any:
        """Make a point."""
        return Point(x, 2)

    def nothing() -> None:
        """Do nothing."""

    def data() -> Any:
        """Give data."""
        return {"é": [1, None, True]}

    def opaque() -> Any:
        """Give what is no data."""
        return threading.Lock()

    def surrogate() -> str:
        """Give half a character."""
        return "a\ud83db"

    box = ToolBox(tmp_path, tools=[point, nothing, data, opaque, surrogate, add, weather])
    assert await run(box, "point", x=1) == ToolOutcome('{"x":1,"y":2}', False)
    assert (await run(box, "nothing")).content == "null"
    assert (await run(box, "data")).content == '{"é": [1, null, true]}'
    assert (await run(box, "add", a=1, b=2)).content == "3"
    assert (await run(box, "weather", city="Rome")).content == "Rome: sun for 1"
    assert (await run(box, "surrogate")).content == "a?b"
    opaque_outcome = await run(box, "opaque")
    assert opaque_outcome.is_error
    assert "cannot be written as JSON" in opaque_outcome.content


async def test_typed_arguments_arrive_as_their_types(tmp_path: Path) -> None:
    seen: list[Any] = []

    def plot(points: list[Point], mode: Literal["line", "dots"] = "line") -> str:
        """Plot."""
        seen.append((points, mode))
        return "ok"

    def single(point: Point) -> str:
        """One."""
        seen.append(point)
        return "ok"

    box = ToolBox(tmp_path, tools=[plot, single])
    assert not (await run(box, "plot", points=[{"x": 1, "y": 2}], mode="dots")).is_error
    assert not (await run(box, "single", x=3, y=4)).is_error
    assert seen == [([Point(1, 2)], "dots"), Point(3, 4)]
    assert (await run(box, "plot", points=[], mode="bars")).is_error


async def test_exceptions_are_told_and_exits_pass(tmp_path: Path) -> None:
    def fails(how: str) -> str:
        """Fail."""
        raise {"value": ValueError("bad value"), "stop": StopIteration(), "key": KeyError("k")}[how]

    async def leaves() -> str:
        """Cancel itself."""
        raise asyncio.CancelledError

    box = ToolBox(tmp_path, tools=[fails, leaves])
    assert await run(box, "fails", how="value") == ToolOutcome("ValueError: bad value", True)
    assert (await run(box, "fails", how="stop")).content.startswith(("StopIteration", "RuntimeError"))
    assert (await run(box, "fails", how="key")).content == "KeyError: 'k'"
    with pytest.raises(asyncio.CancelledError):
        await run(box, "leaves")


async def test_sync_function_sees_context_and_does_not_block(tmp_path: Path) -> None:
    def slow() -> str:
        """Wait."""
        time.sleep(0.2)
        return where.get()

    where.set("here")
    box = ToolBox(tmp_path, tools=[slow])
    started = time.monotonic()
    outcomes = await asyncio.gather(*(run(box, "slow") for _ in range(4)))
    assert [outcome.content for outcome in outcomes] == ["here"] * 4
    assert time.monotonic() - started < 0.7


async def test_function_timeouts(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    def hangs() -> str:
        """Hang."""
        time.sleep(3)
        return ""

    async def waits() -> str:
        """Wait."""
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()
        return ""

    box = ToolBox(tmp_path, tools=[hangs, waits], timeout=0.2)
    started = time.monotonic()
    for name in ("hangs", "waits"):
        outcome = await run(box, name)
        assert outcome.is_error
        assert f"{name} took more than 0.2 s" in outcome.content
    assert cancelled.is_set()
    assert time.monotonic() - started < 2


class _CallMe:
    def __call__(self, x: int) -> str:
        return str(x)


def _bare(x, y: int) -> str:  # type: ignore[no-untyped-def]
    return ""


def _stars(*args: int) -> str:
    return ""


def _keywords(**kwargs: int) -> str:
    return ""


def _positional(x: int, /) -> str:
    return ""


def _no_schema(x: threading.Thread) -> str:
    return ""


def _undefined(x: "Missing") -> str:  # type: ignore[name-defined] # noqa: F821, UP037
    return ""


def _odd(x: int) -> str:
    return ""


_odd.__signature__ = "odd"  # type: ignore[attr-defined]


def bash(command: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (["red"], "there is no built-in tool 'red'; did you mean 'read'?"),
        (["read", "read"], "the tool 'read' is named twice"),
        ([weather, weather], "the tool 'weather' is named twice"),
        ([bash], "the name of a built-in"),
        ("read", "tools must be a list"),
        ([lambda x: x], "a lambda has no name"),
        ([functools.partial(weather, "Rome")], "an object of type partial has no name"),
        ([_CallMe()], "an object of type _CallMe has no name"),
        ([_CallMe], "the class _CallMe cannot be a tool"),
        ([3], "not int"),
        ([_bare], "the parameter 'x' of '_bare' has no type annotation"),
        ([_stars], "named one by one"),
        ([_keywords], "named one by one"),
        ([_positional], "positional-only"),
        ([_no_schema], "the function '_no_schema' cannot be a tool"),
        ([_undefined], "name 'Missing' is not defined"),
        ([_odd], "the parameters of '_odd' cannot be found out"),
    ],
)
def test_what_cannot_be_a_tool(tmp_path: Path, tools: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ToolBox(tmp_path, tools=tools)
    assert words in str(caught.value)
    assert caught.value.option == "tools"


class _Mask:
    def text(self, text: str) -> str:
        return text.replace("CANARY", "***")

    def scrub_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)


class _BrokenMask(_Mask):
    def text(self, text: str) -> str:
        raise ValueError("CANARY")


async def test_everything_is_masked(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KEY=CANARY\n")
    (tmp_path / "CANARY.txt").write_text("x")
    (tmp_path / "wide").write_text("y" * 197 + "CANARY" * 10_000)

    def leak(fail: bool) -> str:
        """Leak."""
        if fail:
            raise RuntimeError("it is CANARY")
        return "CANARY" * 20_000

    box = ToolBox(tmp_path, tools=["read", "ls", "glob", "grep", leak], masker=_Mask(), max_output=200)
    for name, arguments in (
        ("read", {"path": ".env"}),
        ("read", {"path": "wide"}),
        ("read", {"path": "CANARY"}),
        ("read", {"CANARY": 1}),
        ("ls", {}),
        ("glob", {"pattern": "*"}),
        ("grep", {"pattern": "KEY|CANARY", "path": "wide"}),
        ("grep", {"pattern": "KEY"}),
        ("leak", {"fail": False}),
        ("leak", {"fail": True}),
        ("CANARY", {}),
    ):
        outcome = await run(box, name, **arguments)
        assert "***" in outcome.content, (name, arguments)
        assert "CAN" not in outcome.content
        assert "NARY" not in outcome.content
    withheld = await run(ToolBox(tmp_path, masker=_BrokenMask()), "read", path=".env")
    assert withheld == ToolOutcome("the result is withheld: masking it failed with ValueError", True)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1.0}, {"max_output": 10}])
def test_senseless_limits_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ToolBox(tmp_path, **options)
