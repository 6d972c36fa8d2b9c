"""An OpenAI-compatible server on this machine that answers by a script: real sockets, and every request is kept."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True)
class Request:
    """A request that the server saw.

    Arguments:
        number: how many came before it.
        path: such as `/v1/chat/completions`.
        headers: by name in lower case.
        body: the JSON.
    """

    number: int
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    def _message(self, role: str) -> str:
        return "".join(str(each["content"]) for each in self.body["messages"] if each["role"] == role)

    @property
    def user(self) -> str:
        return self._message("user")

    @property
    def system(self) -> str:
        return self._message("system")


@dataclass(frozen=True)
class Reply:
    """What the server does with a request; by default it answers with a text.

    Arguments:
        text: the answer; None for a message without content.
        prompt_tokens, answer_tokens: of its `usage`; None for an answer without it.
        finish: its `finish_reason`.
        refusal: what a model that refuses says.
        raw: the body instead of all that, as it is.
        status: of HTTP.
        headers: of the response.
        delay: seconds before it; a server that is stopped does not wait.
        cut: how many bytes of the body are sent before the connection is closed; None for all.
        trickle: seconds between two bytes of the body; None to send it at once.
    """

    text: str | None = ""
    prompt_tokens: int | None = 10
    answer_tokens: int | None = 5
    finish: str = "stop"
    refusal: str | None = None
    raw: bytes | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    trickle: float | None = None

    def body(self, request: Request) -> bytes:
        if self.raw is not None:
            return self.raw
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        found: dict[str, Any] = {
            "id": f"chatcmpl-{request.number}",
            "object": "chat.completion",
            "created": 0,
            "model": request.body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish}],
        }
        if self.prompt_tokens is not None and self.answer_tokens is not None:
            total = self.prompt_tokens + self.answer_tokens
            found["usage"] = {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.answer_tokens,
                "total_tokens": total,
            }
        return json.dumps(found).encode()


def failure(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None, **error: Any) -> Reply:
    """A response that says what is wrong, as OpenAI's do: `param`, `code` and `type` may be given."""
    body = {"error": {"message": message, "type": None, "param": None, "code": None, **error}}
    return Reply(status=status, headers=headers or {}, raw=json.dumps(body).encode())


def too_many(seconds: object | None = None) -> Reply:
    """A 429, with a Retry-After where seconds (or a date) are given."""
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    return failure(429, "Rate limit reached", headers=headers, code="rate_limit_exceeded")


def hanging(seconds: float = 60.0) -> Reply:
    """An answer that comes too late."""
    return Reply("late", delay=seconds)


def half() -> Reply:
    """A connection that is closed in the middle of the answer."""
    return Reply("x" * 200, cut=50)


Script = Callable[[Request], "Reply | str"]


class ScriptedServer:
    """The server: use it as a context, or through the fixture `scripted_server`.

    Arguments:
        script: a function of the request; or replies in the order of the requests, of which the last goes on; or one
            reply. A string is an answer's text.
        dies_after: after how many answers it stops listening and closes all connections; None for never.
        port: where it listens; 0 for any that is free.
    """

    def __init__(
        self,
        script: Script | Sequence[Reply | str] | Reply | str,
        *,
        dies_after: int | None = None,
        port: int = 0,
    ) -> None:
        replies = [script] if isinstance(script, (Reply, str)) else script
        self._script = replies if callable(replies) else _in_order(replies)
        self._dies_after = dies_after
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._in_flight = 0
        self._connections: set[socket.socket] = set()
        self.requests: list[Request] = []
        """Every request, in the order they came."""
        self.answered = 0
        """How many answers with status 200 were sent whole."""
        self.most_in_flight = 0
        """How many requests were being answered at the same time, at most."""
        self._http = _Http(("127.0.0.1", port), _Handler)
        self._http.scripted = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_port)

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening and close every connection, at once."""
        self._over.set()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        with self._lock:
            connections = list(self._connections)
        for each in connections:
            _close(each)

    def reply(self, request: Request) -> Reply:
        found = self._script(request)
        return Reply(found) if isinstance(found, str) else found

    def arrived(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Request | None:
        """Keep a request; None where the server is dead."""
        with self._lock:
            if self._over.is_set():
                return None
            request = Request(len(self.requests), path, headers, body)
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            return request

    def left(self, *, whole: bool) -> None:
        with self._lock:
            self._in_flight -= 1
            self.answered += whole
            dies = self._dies_after is not None and self.answered >= self._dies_after and not self._over.is_set()
            if dies:
                self._over.set()
        if dies:
            threading.Thread(target=self.stop, daemon=True).start()

    @property
    def dead(self) -> bool:
        return self._over.is_set()

    def wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


def _in_order(replies: Sequence[Reply | str]) -> Script:
    return lambda request: replies[min(request.number, len(replies) - 1)]


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    scripted: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def setup(self) -> None:
        super().setup()
        self.server.scripted.opened(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.scripted.closed(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        scripted = self.server.scripted
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = scripted.arrived(self.path, headers, json.loads(data))
        if request is None:
            self.close_connection = True
            return
        whole = False
        try:
            whole = self._answer(request, scripted)
        finally:
            scripted.left(whole=whole)

    def _answer(self, request: Request, scripted: ScriptedServer) -> bool:
        reply = scripted.reply(request)
        if reply.delay:
            scripted.wait(reply.delay)
        body = reply.body(request)
        if scripted.dead:
            self.close_connection = True
            return False
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body[: reply.cut], reply, scripted)
        self.wfile.flush()
        if reply.cut is not None:
            self.close_connection = True
            _close(self.connection)
        return reply.status == 200 and reply.cut is None

    def _send(self, body: bytes, reply: Reply, scripted: ScriptedServer) -> None:
        if reply.trickle is None:
            self.wfile.write(body)
            return
        for k in range(len(body)):
            if scripted.dead:
                return
            self.wfile.write(body[k : k + 1])
            self.wfile.flush()
            time.sleep(reply.trickle)


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., ScriptedServer]]:
    """A factory of servers, which are stopped after the test: `scripted_server(script).base_url`."""
    started: list[ScriptedServer] = []

    def start(script: Script | Sequence[Reply | str] | Reply | str, **options: Any) -> ScriptedServer:
        server = ScriptedServer(script, **options)
        server.__enter__()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
