"""`perdure chat`: a conversation in the terminal, or one prompt a line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from perdure import _loop
from perdure.async_agent import AsyncAgent
from perdure.async_session import AsyncSession
from perdure.cli.parser import UsageError
from perdure.cli.sessions import messages
from perdure.cli.term import Style, clean, cut, one_line
from perdure.cli.where import Place, find_place
from perdure.config import LOCAL_MODEL, LOCAL_PROVIDER, AgentConfig
from perdure.errors import ConfigError, PerdureError
from perdure.types import TurnEvent

__all__ = ["chat", "require_model"]

_SHOWN_RESULT = 8  # lines of a tool's result
_LONGEST_LINE = 200

_T = TypeVar("_T")


def chat(arguments: argparse.Namespace) -> int:
    """Talk until Ctrl-D or the end of the input."""
    place = find_place(arguments)
    config = place.config
    if config.default_model is None:
        config = replace(config, default_model=f"{LOCAL_PROVIDER}/{LOCAL_MODEL}")
    require_model(config, arguments.model)
    interactive = sys.stdin.isatty()
    view = _View(interactive)
    session = _open(arguments, place, config, view)
    try:
        return _Chat(session, view, place, arguments).run()
    finally:
        _wait(session.close())


def require_model(config: AgentConfig, name: str | None) -> str:
    """The model's full name. Raises `ConfigError` before anybody types a prompt if it cannot be used.

    That is: it is unknown, has no key, or a package or the local weights are missing.
    """
    model = config.find_model(name)
    if importlib.util.find_spec("pydantic_ai") is None:
        extra = "agent,local" if model.is_local else "agent"
        raise ConfigError(f"talking to a model needs an extra that is not installed: pip install 'perdure[{extra}]'")
    if model.is_local:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError("the local model needs an extra that is not installed: pip install 'perdure[local]'")
        from perdure.turn.local import find_weights

        find_weights(model.model.id)
    else:
        model.require_key()
    return model.name


def _open(arguments: argparse.Namespace, place: Place, config: AgentConfig, view: _View) -> AsyncSession:
    id, resume = arguments.id, arguments.resume
    if resume and id is None:
        newest = next(iter(place.agent.sessions(1, options=place.options())), None) if place.is_there() else None
        if newest is None:
            raise UsageError(f"--resume: there is no session in {place.shown} to go on with")
        id = newest.id

    async def confirm(name: str, input: dict[str, Any]) -> bool:
        # Asked on the main thread, where Ctrl-C arrives.
        answer = _loop.in_calling_thread(partial(view.ask, name, input))
        return answer is not None and await answer

    options = place.options(
        session_id=id,
        auto_save=True,
        model=arguments.model,
        permissive=True if arguments.permissive else None,
        confirm=confirm if view.interactive else None,
    )
    agent = AsyncAgent(config)
    workspace = Path(arguments.workspace).expanduser() if arguments.workspace is not None else None
    if resume:
        return _wait(agent.resume_session(id, options, workspace=workspace))
    return _wait(agent.session(workspace or ".", options))


def _wait(work: Coroutine[Any, Any, _T]) -> _T:
    # All on one loop: connections and locks of a session belong to the loop that they were made on.
    return _loop.run(work)


class _Chat:
    def __init__(self, session: AsyncSession, view: _View, place: Place, arguments: argparse.Namespace) -> None:
        self._session = session
        self._view = view
        self._place = place
        self._arguments = arguments

    def run(self) -> int:
        if not self._view.interactive:
            return self._run_pipe()
        self._greet()
        try:
            self._offer_to_continue()
            while True:
                prompt = self._view.read()
                if prompt is None:
                    break
                if prompt.strip():
                    with contextlib.suppress(PerdureError):
                        self._turn(prompt)
        finally:
            self._say_where()
        return 0

    def _run_pipe(self) -> int:
        try:
            for line in _lines():
                self._turn(line)
        except PerdureError:
            return 1  # said already; what else stands in the pipe would go on from a turn that is missing
        finally:
            self._say_where()
        return 0

    def _turn(self, prompt: str | None) -> None:
        """One turn. Errors are shown and raised; Ctrl-C is not, in a terminal: the chat goes on."""
        session, view = self._session, self._view
        before = len(session.history())
        try:
            if prompt is None:
                result = _wait(session.continue_turn())
                view.text(result.text)
            else:
                _wait(self._stream(prompt))
            view.end()
        except KeyboardInterrupt:
            view.end()
            kept = len(session.history()) - before
            if not view.interactive:
                raise
            if kept <= 0:
                what = "the prompt is taken back"
            elif kept == 1:
                what = "the prompt is kept without its answer"
            else:
                what = f"{kept} messages are kept"
            view.note(f"interrupted; {what}")
        except PerdureError as error:
            view.end()
            view.complain(error)
            raise

    async def _stream(self, prompt: str) -> None:
        stream = self._session.stream(prompt)
        try:
            async for event in stream:
                shown = _loop.in_calling_thread(partial(self._view.event, event))
                assert shown is not None
                await shown
        finally:
            await stream.aclose()

    def _greet(self) -> None:
        session, view = self._session, self._view
        model = self._place.config.default_model or f"{LOCAL_PROVIDER}/{LOCAL_MODEL}"
        view.note(f"{self._arguments.model or model}, session {session.session_id}, workspace {session.workspace}")
        view.note("Ctrl-C interrupts a reply, Ctrl-D leaves")
        history = session.history()
        if len(history) > 2:
            view.note(f"({len(history) - 2} earlier messages; `perdure show` has them)")
        for index in range(max(0, len(history) - 2), len(history)):
            for line in messages(history[index], index + 1, view.style):
                print(line)

    def _offer_to_continue(self) -> None:
        history = self._session.history()
        if not len(history) or history[-1].get("role") != "user":
            return
        if self._view.yes("The last turn was broken off before its answer. Finish it?"):
            with contextlib.suppress(PerdureError):
                self._turn(None)

    def _say_where(self) -> None:
        session, place, arguments = self._session, self._place, self._arguments
        if not session.data.revision:
            return
        if place.url is not None and place.url.startswith("memory:"):
            self._view.note("the configuration keeps sessions in memory only: this one is gone now")
            return
        command = ["perdure", "chat"]
        for option in ("config", "store"):
            if getattr(arguments, option) is not None:
                command += [f"--{option}", getattr(arguments, option)]
        # An id may look like an option.
        command += ["--resume", *(["--"] if session.session_id.startswith("-") else []), session.session_id]
        self._view.note(f"saved in {place.shown}; go on with: {shlex.join(command)}")


def _lines() -> Any:
    """Prompts from a pipe: each line that is not empty."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="strict")
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError("the standard input is not UTF-8 text") from None


class _View:
    """What the person sees and types."""

    def __init__(self, interactive: bool) -> None:
        self.interactive = interactive
        self.style = Style()
        self._open_line = False
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing for input())

    def note(self, text: str) -> None:
        print(Style(sys.stderr).dim(clean(text)), file=sys.stderr, flush=True)

    def complain(self, error: Exception) -> None:
        head = Style(sys.stderr).red("perdure: ")
        print(head + clean(" ".join(str(error).splitlines())), file=sys.stderr, flush=True)

    def read(self) -> str | None:
        """A prompt; None at the end of the input. Ctrl-C drops what was typed."""
        while True:
            try:
                if sys.stdout.isatty():
                    return input("> ")
                print("> ", end="", file=sys.stderr, flush=True)
                line = sys.stdin.readline()
                return line.rstrip("\n") if line else None
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print(file=sys.stderr)
            except UnicodeDecodeError:
                self.note("that is not UTF-8 text; nothing was sent")

    def yes(self, question: str) -> bool:
        """Ask; only y and yes are a yes, the end of the input and Ctrl-C are a no."""
        print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        try:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return False

    def ask(self, name: str, input: dict[str, Any]) -> bool:
        """Whether a tool may run. Ctrl-C here interrupts the turn."""
        self.end()
        print(f"  run {clean(name)}? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def event(self, event: TurnEvent) -> None:
        if event.type == "text_delta":
            self.text(event.text or "")
        elif event.type == "tool_start":
            self.end()
            call = json.dumps(event.tool_input, ensure_ascii=False)
            # Before it is asked about: what is allowed has to be seen whole.
            print(self.style.yellow(f"→ {clean(event.tool_name or '')}") + f" {one_line(call)}", flush=True)
        elif event.type == "tool_end":
            self.end()
            lines = clean(event.text or "").split("\n")
            for line in lines[:_SHOWN_RESULT]:
                print(self.style.dim(f"  {cut(line, _LONGEST_LINE)}"))
            if len(lines) > _SHOWN_RESULT:
                print(self.style.dim(f"  … {len(lines) - _SHOWN_RESULT} more lines"))
            sys.stdout.flush()

    def text(self, piece: str) -> None:
        if piece:
            print(clean(piece), end="", flush=True)
            self._open_line = not piece.endswith("\n")

    def end(self) -> None:
        if self._open_line:
            print(flush=True)
            self._open_line = False
