"""docs/reference.md says what the code is: every name, signature and default, in both directions."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Set
from typing import Any

import pytest
from doc_pages import ROOT, tables

import perdure
from perdure import _core, config, errors, options, types
from perdure.cli.parser import make_parser
from perdure.stores import protocol
from perdure.turn.tools.builtin import BUILTIN

TABLES = tables(ROOT / "docs" / "reference.md")
FORMAT = tables(ROOT / "docs" / "format.md")


def column(table: str, title: str | None = None) -> list[str]:
    """A column without its code marks; the first one by default."""
    rows = TABLES[table]
    return [row[title or next(iter(row))].strip("`") for row in rows]


def name_of(signature: str) -> str:
    return signature.partition("(")[0]


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def shown(function: Any) -> str:
    """A signature as the reference writes it: no annotations, no `self`, no mark of positional-only parameters."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            kind=parameter.POSITIONAL_OR_KEYWORD if parameter.kind is parameter.POSITIONAL_ONLY else parameter.kind,
        )
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return text.replace("'", '"')


def members_match(table: str, cls: type, *, beside: Set[str] = frozenset()) -> None:
    """The table's first column is exactly the class's public members, with their signatures."""
    entries = column(table)
    assert len(entries) == len(set(entries))
    assert {name_of(entry) for entry in entries} == public(cls) | beside
    for entry in entries:
        member = inspect.getattr_static(cls, name_of(entry), None)
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if "(" in entry:
            assert entry == name_of(entry) + shown(member), entry
        else:
            assert not inspect.isroutine(member), f"{entry} is a method"


# ---- options and agent.hcl


def test_every_option_is_listed_in_order() -> None:
    assert column("options") == [field.name for field in dataclasses.fields(options.SessionOptions)]


@pytest.mark.parametrize("row", TABLES["options"], ids=lambda row: row["option"].strip("`"))
def test_options_have_the_default_that_is_listed(row: dict[str, str]) -> None:
    name, said = row["option"].strip("`"), row["default"]
    field = {field.name: field for field in dataclasses.fields(options.ResolvedOptions)}[name]
    if name == "session_id":
        assert said == "a new id" and field.default is dataclasses.MISSING
        assert len(options.new_session_id()) == 26
        return
    default = ast.literal_eval(said.strip("`"))
    assert (type(default), default) == (type(field.default), field.default)
    resolved = options.SessionOptions().resolve(config.load_config("{}"))
    assert getattr(resolved, name) == default


def test_every_option_has_its_with_method() -> None:
    for name in column("options"):
        assert callable(getattr(options.SessionOptions, f"with_{name}"))
    withs = {name for name in public(options.SessionOptions) if name.startswith("with_")}
    assert withs == {f"with_{name}" for name in column("options")}


def test_the_choices_of_durability_are_listed() -> None:
    said = next(row for row in TABLES["options"] if row["option"] == "`durability`")["type"]
    hint = typing.get_type_hints(
        options.ResolvedOptions, vars(typing) | vars(options) | {"SessionStore": Any, "Confirm": Any}
    )
    assert re.findall(r'"(\w+)"', said) == list(typing.get_args(hint["durability"]))


def test_the_tools_are_listed() -> None:
    assert column("tools") == list(BUILTIN)
    asks = {name: "yes" if tool.changes else "no" for name, tool in BUILTIN.items()}
    assert dict(zip(column("tools"), column("tools", "asks for permission"), strict=True)) == asks


def test_the_keys_of_agent_hcl_are_listed() -> None:
    assert column("agent keys") == [*config._AGENT_KEYS, "providers"]
    assert column("provider keys") == [*config._PROVIDER_KEYS, "models"]
    assert column("model keys") == [*config._MODEL_KEYS, "limit"]
    (limit,) = (row["meaning"] for row in TABLES["model keys"] if row["key"] == "`limit`")
    assert re.findall(r"`(\w+)`", limit) == list(config._LIMIT_KEYS)


def test_keys_as_the_option_are_options() -> None:
    for row in TABLES["agent keys"]:
        name = row["key"].strip("`")
        assert row["meaning"].startswith("as the option") == (name in options._CONFIG_OPTIONS), name


# ---- classes


@pytest.mark.parametrize("cls", [perdure.Agent, perdure.AsyncAgent])
def test_agent_methods(cls: type) -> None:
    members_match("agent methods", cls)


@pytest.mark.parametrize("cls", [perdure.Session, perdure.AsyncSession])
def test_session_methods(cls: type) -> None:
    # An attribute that is set in __init__ does not show on the class.
    members_match("session methods", cls, beside={"last_save_error"})


@pytest.mark.parametrize("cls", [types.SaveReceipt, types.StoreStats, types.SendResult, types.Usage, types.SessionInfo])
def test_fields_of_results(cls: Any) -> None:
    assert column(cls.__name__) == [field.name for field in dataclasses.fields(cls)]


def test_events() -> None:
    hints = typing.get_type_hints(types.TurnEvent)
    assert column("events") == list(typing.get_args(hints["type"]))
    listed = {name for cell in column("events", "fields that are set") for name in re.findall(r"\w+", cell)}
    assert listed == {field.name for field in dataclasses.fields(types.TurnEvent)} - {"type"}


def test_store_protocol() -> None:
    members_match("SessionStore", protocol.SessionStore)


def test_capabilities() -> None:
    listed = {
        name: row["member"].strip("`") for name, row in zip(column("capabilities"), TABLES["capabilities"], strict=True)
    }
    optional = set(protocol.__all__) - {"SessionStore", "InfoPage", "SearchHit"}
    assert set(listed) == optional
    for name, member in listed.items():
        cls = getattr(protocol, name)
        if "(" in member:
            assert member == name_of(member) + shown(getattr(cls, name_of(member)))
        else:
            assert cls.__annotations__ == {member: "bool"}


def test_session_data() -> None:
    fields, methods = column("SessionData fields"), column("SessionData methods")
    assert set(fields) | {name_of(method) for method in methods} == public(perdure.SessionData)
    for name in fields:
        assert inspect.isgetsetdescriptor(inspect.getattr_static(perdure.SessionData, name)), name
    for method in methods:
        assert method == name_of(method) + shown(getattr(perdure.SessionData, name_of(method)))


@pytest.mark.parametrize("row", TABLES["SessionData fields"], ids=lambda row: row["field"].strip("`"))
def test_read_only_fields_of_session_data(row: dict[str, str]) -> None:
    data, name = perdure.SessionData("x"), row["field"].strip("`")
    writable = True
    try:
        setattr(data, name, getattr(data, name))
    except AttributeError:
        writable = False
    read_only = "read only" in row["meaning"] or name == "messages"
    assert writable != read_only


def test_session_delta() -> None:
    members_match("SessionDelta", perdure.SessionDelta)


def test_file_session_store() -> None:
    members_match("FileSessionStore", perdure.FileSessionStore)


def test_constructors_of_stores() -> None:
    entries = column("stores")
    stores = {name for name in perdure.__all__ if name.endswith("Store") and name != "SessionStore"}
    assert {name_of(entry) for entry in entries} == stores
    for entry in entries:
        cls = getattr(perdure, name_of(entry))
        assert entry == name_of(entry) + (stub(cls) if cls.__module__ == "perdure" else shown(cls))


def stub(cls: type) -> str:
    """The constructor of a class of the core as its stub file has it; `make lint` holds the stub against the core."""
    source = ast.parse((ROOT / "python" / "perdure" / "_core.pyi").read_text(encoding="utf-8"))
    (node,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    arguments = (methods.get("__init__") or methods["__new__"]).args
    for argument in (*arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    del arguments.args[0]
    return f"({ast.unparse(arguments)})".replace("'", '"')


def test_fields_of_new_sessions() -> None:
    data = perdure.SessionData("x")
    meanings = {row["field"].strip("`"): row["meaning"] for row in TABLES["SessionData fields"]}
    assert re.findall(r"`(\w+)`", meanings["context_usage"]) == list(data.context_usage)
    assert set(data.total_usage) == {field.name for field in dataclasses.fields(types.Usage)}
    (said,) = re.findall(r"`\"(\w+)\"`", meanings["state"])
    assert said == data.state


# ---- errors and the command


def test_every_error_is_listed() -> None:
    assert column("errors") == ["PerdureError", *(name for name in _in_order() if name != "PerdureError")]
    assert set(column("errors")) == set(errors.__all__)
    assert set(errors.__all__) <= set(perdure.__all__)


def _in_order() -> list[str]:
    return [name for name in vars(errors) if name in errors.__all__]


@pytest.mark.parametrize("row", TABLES["errors"], ids=lambda row: row["error"].strip("`"))
def test_errors_have_the_attributes_and_bases_that_are_listed(row: dict[str, str]) -> None:
    cls = getattr(errors, row["error"].strip("`"))
    attributes = re.findall(r"`(\w+)`", row["attributes"])
    parameters = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert parameters == attributes
    error = cls("message")
    for name in attributes:
        assert hasattr(error, name)
    builtin = {base.__name__ for base in cls.__mro__ if base.__module__ == "builtins"}
    implied = (
        {"object", "BaseException", "Exception"} if cls is not errors.PerdureError else {"object", "BaseException"}
    )
    assert {name.strip("`") for name in [row["also a"]] if name} == builtin - implied


def _commands(parser: argparse.ArgumentParser, prefix: str = "perdure") -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: dict[str, argparse.ArgumentParser] = {}
            for name, sub in action.choices.items():
                found |= _commands(sub, f"{prefix} {name}")
            return found
    return {prefix: parser}


COMMANDS = _commands(make_parser())


def test_every_command_is_listed() -> None:
    listed = [re.match(r"[a-z ]+[a-z]", entry).group() for entry in column("commands")]  # type: ignore[union-attr]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("entry", column("commands"))
def test_arguments_of_commands_are_listed(entry: str) -> None:
    parser = COMMANDS[re.match(r"[a-z ]+[a-z]", entry).group()]  # type: ignore[union-attr]
    common = {"--help", "--store", "--config"}
    flags = {max(action.option_strings, key=len) for action in parser._actions if action.option_strings} - common
    assert set(re.findall(r"--[\w-]+", entry)) == flags
    places = {str(action.metavar) for action in parser._actions if not action.option_strings}
    without_flags = re.sub(r"\[--[^]]*\]", "", entry)
    assert set(re.findall(r"[A-Z]+", without_flags)) == places


def test_commands_that_take_a_store_are_listed() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^(.+) take `--store DIR` and `--config FILE`", text, re.MULTILINE)
    takes = {name for name, parser in COMMANDS.items() if "--store" in parser._option_string_actions}
    assert {f"perdure {name}" for name in re.findall(r"`(\w+)`", sentence)} == takes


def test_exit_codes_are_those_of_the_command() -> None:
    epilog = make_parser().epilog
    assert epilog is not None
    assert column("exit codes") == re.findall(r"\d+", epilog)


# ---- the format


def test_the_keys_of_the_perdure_field_are_those_that_are_written() -> None:
    written = json.loads(perdure.SessionData("x").to_json())
    keys = [row["key"].strip("`") for row in FORMAT["perdure field"]]
    assert keys == list(written["perdure"])
    assert written["perdure"]["format"] == 1
    order = ["id", "perdure", *[row["field"].strip("`") for row in FORMAT["head fields"]], "messages"]
    assert order == list(written)


def test_the_module_is_a_release_build() -> None:
    assert _core.build_profile == "release", "make dev builds with --release; a debug build is slow"
