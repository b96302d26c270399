"""A model server that says what a test tells it to: OpenAI's and Anthropic's streaming protocols, real HTTP.

It runs on a thread of its own, so that sync and async tests use it alike:

    with ScriptedServer() as server:
        server.enqueue(reply("Hello"))
        ...                                # point a client at server.openai_url or server.anthropic_url
        assert server.requests[0].messages[-1]["content"] == "Hi"

Each request takes the next script; a request without one is answered with HTTP 418, which no client repeats.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

__all__ = ["Call", "Request", "Script", "ScriptedServer", "failure", "raw", "reply"]


@dataclass(frozen=True)
class Call:
    """A tool call of a reply. `arguments`: an object, or text to send exactly as it is."""

    id: str | None
    name: str
    arguments: dict[str, Any] | str = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True)
class Script:
    """What to do with one request. Made by `reply`, `failure` and `raw`."""

    text: Sequence[str] = ()
    calls: Sequence[Call] = ()
    thinking: str | None = None
    signature: str | None = None
    redacted: str | None = None
    finish: str | None = None
    model: str | None = None
    usage: tuple[int, int] | None = (11, 7)
    cached: int | None = None
    interleaved: bool = False
    delay: float = 0.0
    hang_before: bool = False
    hang_after: int | None = None
    cut_after: int | None = None
    abort: bool = False
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None


def reply(*text: str, **options: Any) -> Script:
    """A streamed reply, one delta for each piece of text.

    calls        tool calls; `interleaved=True` mixes their argument deltas
    thinking, signature, redacted   Anthropic's thinking blocks (OpenAI: `reasoning_content`)
    finish       the protocol's own word; by default the one that fits. "" sends none
    model        what the server calls its model; by default what it was asked for
    usage        (prompt tokens, completion tokens), None: not told; `cached`: tokens read from the cache
    delay        seconds before every event
    hang_before  accept the request and never answer; `hang_after=n`: fall silent after n events
    cut_after    end the connection after n events, properly, or with `abort=True` in the middle of a chunk
    """
    return Script(text=text, **options)


def failure(status: int, body: str | None = None, **headers: str) -> Script:
    """An HTTP error. The body, unless given, repeats the request's key and its last message."""
    return Script(status=status, body=body, headers=headers)


def raw(body: str, content_type: str = "text/event-stream") -> Script:
    """HTTP 200 with exactly this body."""
    return Script(body=body, headers={"Content-Type": content_type})


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def key(self) -> str:
        return self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")


class ScriptedServer:
    """The server. `with` starts and stops it; stopping ends requests that hang."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.asked = threading.Event()
        """Set once a request has come in."""
        self.disconnected = threading.Event()
        """Set once a client went away while it was being answered or made to wait."""
        self.stopping = threading.Event()
        self.files: dict[str, Any] = {}
        """What GET requests are answered with, by path; all else is 404."""
        self._scripts: deque[Script] = deque()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        return self.url

    def enqueue(self, *scripts: Script) -> None:
        with self._lock:
            self._scripts.extend(scripts)

    def take(self, request: Request) -> Script:
        with self._lock:
            self.requests.append(request)
            self.asked.set()
            return self._scripts.popleft() if self._scripts else failure(418, '{"error": {"message": "no script"}}')

    @property
    def left(self) -> int:
        """Scripts that nobody has asked for."""
        return len(self._scripts)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for the handlers, so no socket outlives the test
    request_queue_size = 64
    owner: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.owner.disconnected.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        # An idle connection that a client keeps in its pool must not keep the server from stopping.
        self.connection.settimeout(0.1)

    def handle(self) -> None:
        self.close_connection = False
        while not self.close_connection and not self.server.owner.stopping.is_set():
            try:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                continue
            self.connection.settimeout(30)
            self.handle_one_request()
            self.connection.settimeout(0.1)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path in self.server.owner.files
        body = json.dumps(self.server.owner.files.get(self.path)).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.path, headers, body)
        script = self.server.owner.take(request)
        if script.hang_before:
            self._hang()
            return
        if script.status != 200 or script.body is not None:
            self._plain(request, script)
            return
        if request.path.endswith("/chat/completions"):
            events = _openai_events(request, script)
        elif request.path.split("?")[0].endswith("/v1/messages"):
            events = _anthropic_events(request, script)
        else:
            self._plain(request, failure(404, '{"error": {"message": "no such path"}}'))
            return
        self._stream(script, events)

    def _plain(self, request: Request, script: Script) -> None:
        echo = {"message": f"key {request.key} said {json.dumps(request.messages[-1])}", "code": request.key}
        body = (script.body if script.body is not None else json.dumps({"error": echo})).encode()
        self.send_response(script.status)
        for name, value in {"Content-Type": "application/json", **script.headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, script: Script, events: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events):
            if number == script.cut_after:
                self._cut(script)
                return
            if number == script.hang_after:
                self._hang()
                return
            if script.delay and self.server.owner.stopping.wait(script.delay):
                self.close_connection = True
                return
            data = event.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self, script: Script) -> None:
        self.wfile.write(b"ffff\r\ndata: {" if script.abort else b"0\r\n\r\n")
        self.close_connection = True

    def _hang(self) -> None:
        self.close_connection = True
        self.connection.settimeout(0.02)
        while not self.server.owner.stopping.is_set():
            try:
                if not self.connection.recv(1):
                    self.server.owner.disconnected.set()
                    return
            except TimeoutError:
                continue
            except OSError:
                self.server.owner.disconnected.set()
                return


def _deltas(script: Script) -> list[tuple[int, str]]:
    """The pieces of the calls' arguments in the order of sending, each with the number of its call."""
    pieces = [
        [(number, call.text[start : start + 5]) for start in range(0, len(call.text), 5)]
        for number, call in enumerate(script.calls)
    ]
    if not script.interleaved:
        return [piece for own in pieces for piece in own]
    longest = max((len(own) for own in pieces), default=0)
    return [own[turn] for turn in range(longest) for own in pieces if turn < len(own)]


def _openai_events(request: Request, script: Script) -> Iterator[str]:
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": script.model or request.body["model"],
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    if script.thinking:
        yield chunk({"reasoning_content": script.thinking})
    for piece in script.text:
        yield chunk({"content": piece})
    for number, call in enumerate(script.calls):
        start = {"index": number, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield chunk({"tool_calls": [start | ({"id": call.id} if call.id else {})]})
    for number, piece in _deltas(script):
        yield chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    finish = script.finish if script.finish is not None else ("tool_calls" if script.calls else "stop")
    if finish:
        yield chunk({}, finish)
    if script.usage:
        told: dict[str, Any] = {"prompt_tokens": script.usage[0], "completion_tokens": script.usage[1]}
        told["total_tokens"] = sum(script.usage)
        if script.cached is not None:
            told["prompt_tokens_details"] = {"cached_tokens": script.cached}
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': told})}\n\n"
    yield "data: [DONE]\n\n"


def _anthropic_events(request: Request, script: Script) -> Iterator[str]:
    def event(kind: str, **values: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"

    def start(index: int, block: dict[str, Any]) -> str:
        return event("content_block_start", index=index, content_block=block)

    def delta(index: int, **values: Any) -> str:
        return event("content_block_delta", index=index, delta=values)

    prompt, completion = script.usage or (0, 0)
    usage: dict[str, Any] = {"input_tokens": prompt, "output_tokens": 1}
    if script.cached is not None:
        usage |= {"cache_read_input_tokens": script.cached, "cache_creation_input_tokens": 0}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": script.model or request.body["model"],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    yield event("message_start", message=message)
    yield event("ping")
    index = 0
    if script.thinking is not None:
        yield start(index, {"type": "thinking", "thinking": "", "signature": ""})
        yield delta(index, type="thinking_delta", thinking=script.thinking)
        yield delta(index, type="signature_delta", signature=script.signature or "")
        yield event("content_block_stop", index=index)
        index += 1
    if script.redacted is not None:
        yield start(index, {"type": "redacted_thinking", "data": script.redacted})
        yield event("content_block_stop", index=index)
        index += 1
    if script.text:
        yield start(index, {"type": "text", "text": ""})
        for piece in script.text:
            yield delta(index, type="text_delta", text=piece)
        yield event("content_block_stop", index=index)
        index += 1
    for number, call in enumerate(script.calls):
        yield start(index + number, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if not script.interleaved:
            for piece in _deltas(Script(calls=[call])):
                yield delta(index + number, type="input_json_delta", partial_json=piece[1])
            yield event("content_block_stop", index=index + number)
    if script.interleaved:
        for number, text in _deltas(script):
            yield delta(index + number, type="input_json_delta", partial_json=text)
        for number in range(len(script.calls)):
            yield event("content_block_stop", index=index + number)
    stop = script.finish if script.finish is not None else ("tool_use" if script.calls else "end_turn")
    if stop:
        told = {"output_tokens": completion}
        yield event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=told)
    yield event("message_stop")
