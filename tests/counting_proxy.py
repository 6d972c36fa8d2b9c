"""A proxy that counts: what a client sends to a server, request by request, over real sockets."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_OF_ONE_CONNECTION = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Request:
    """A request as it went through.

    Arguments:
        method: `GET`, `POST`, …
        path: without what is asked for behind `?`.
        body: what was sent.
        headers: by their name in lower case.
    """

    method: str
    path: str
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)

    @property
    def is_artifact(self) -> bool:
        """Whether a file is moved."""
        return "/mlflow-artifacts/artifacts/" in self.path


@dataclass
class Proxy:
    """A running proxy.

    Arguments:
        address: of the proxy itself.
        requests: all that went through, in their order.
    """

    address: str
    requests: list[Request] = field(default_factory=list)

    @contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """Hold the requests that come from now on; the list is complete at the end."""
        start, found = len(self.requests), list[Request]()
        yield found
        found.extend(self.requests[start:])


@contextmanager
def counting_proxy(server: str) -> Iterator[Proxy]:
    """Hold a proxy in front of an HTTP server."""
    place = urlsplit(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            assert "chunked" not in self.headers.get("Transfer-Encoding", "")
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_CONNECTION}
            seen = {name.lower(): value for name, value in self.headers.items()}
            proxy.requests.append(Request(self.command, urlsplit(self.path).path, body, seen))
            connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=120)
            try:
                connection.request(self.command, self.path, body, kept)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _OF_ONE_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(10)
