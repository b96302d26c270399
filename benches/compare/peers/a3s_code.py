"""A3S Code: `session.save()`, with a model of its own making on the loopback interface.

Only `send` adds messages, and `send` asks a model, so this module answers as one (OpenAI's protocol) with the ready
reply. Asking is not timed. A file store that is made on a plain Python thread does not store and does not say so: the
engine finds no async runtime there. Sessions are therefore made inside of one of its own callbacks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import a3s_code

from compare.peers.base import Message, Peer, Session
from compare.workload import text


class _Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    reply = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {"role": "assistant", "content": type(self).reply}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if asked.get("stream"):
            kind = "text/event-stream"
            first = {"id": "1", "choices": [{"index": 0, "delta": answer, "finish_reason": None}]}
            last = {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
            body = "".join(f"data: {chunk}\n\n" for chunk in (json.dumps(first), json.dumps(last), "[DONE]"))
        else:
            kind = "application/json"
            choice = {"index": 0, "message": answer, "finish_reason": "stop"}
            body = json.dumps({"id": "1", "choices": [choice], "usage": usage})
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        return None


class A3sSession(Session):
    def __init__(self, peer: A3sCode, name: str, messages: list[Message]) -> None:
        self.peer, self.name = peer, name
        first = peer.inside(lambda: peer.agent.session(peer.workspace, peer.options(name)))
        self.session = first
        self.save(self.prepare(messages[:2]))
        if not peer.path(name).exists():
            raise RuntimeError("session.save() stored nothing and raised nothing")
        if len(messages) > 2:
            # The rest goes straight into its file: 10,000 questions would take minutes.
            stored = json.loads(peer.path(name).read_text())
            stored["messages"] = messages
            peer.path(name).write_text(json.dumps(stored, indent=2, ensure_ascii=False))
            self.session = peer.inside(lambda: peer.agent.resume_session(name, peer.options(name)))

    def prepare(self, messages: list[Message]) -> None:
        prompt, reply = messages
        _Model.reply = text(reply)
        self.session.send(text(prompt))

    def save(self, turn: None) -> None:
        self.session.save()

    def stored(self) -> int:
        return len(json.loads(self.peer.path(self.name).read_text())["messages"])


class A3sCode(Peer):
    packages = ("a3s-code",)
    one_at_a_time = "only a model's answer adds messages to a session, and answering is not part of a save"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.agent = a3s_code.Agent.create(
            'default_model = "openai/bench"\n'
            'providers "openai" {\n  api_key = "none"\n'
            f'  base_url = "http://127.0.0.1:{self.server.server_port}/v1"\n'
            '  models "bench" { name = "bench" }\n}\n'
        )
        self.workspace = str(directory / "workspace")
        Path(self.workspace).mkdir(parents=True)
        self.outer = self.agent.session(self.workspace, self.options("outer"))
        self.work: Callable[[], Any] = lambda: None
        self.outer.register_command("inside", "runs work inside of the engine's runtime", self._inside)

    def options(self, name: str) -> Any:
        options = a3s_code.SessionOptions()
        options.session_store = a3s_code.FileSessionStore(str(self.directory / "sessions"))
        options.session_id = name
        options.builtin_skills = False
        options.planning_mode = "disabled"
        return options

    def path(self, name: str) -> Path:
        return self.directory / "sessions" / f"{name}.json"

    def _inside(self, *_: Any) -> str:
        try:
            self.result = self.work()
        except Exception as error:
            self.result = error
        return "done"

    def inside(self, work: Callable[[], Any]) -> Any:
        self.work = work
        self.outer.send("/inside")
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def open(self, name: str, messages: list[Message]) -> A3sSession:
        return A3sSession(self, name, messages)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
