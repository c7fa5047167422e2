"""The API as a script: an HTTP server that gives the answers it was told, for tests of its clients.

The server is real and so is the connection; its answers have the API's shape.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from typer.testing import CliRunner, Result

from deployments.cli.main import app

KEY = "rsk_0123456789ab_" + "c" * 40


@dataclass(frozen=True)
class Answer:
    """One scripted answer. ``cut`` closes the connection after that many bytes of it."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None

    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class Script:
    """What the server says: per route, one answer after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.idempotency_keys: list[str] = []
        self.url = ""

    def on(self, route: str, *answers: Answer) -> None:
        self.answers[route] = list(answers)

    def next(self, route: str) -> Answer:
        known = self.answers.get(route)
        if not known:
            return error(404, "not_found", f"no answer is scripted for {route}")
        return known.pop(0) if len(known) > 1 else known[0]


def error(status: int, code: str, message: str, **headers: str) -> Answer:
    body = {"error": {"message": message, "type": "x_error", "param": None, "code": code}}
    return Answer(body, status, {"x-request-id": "req_1", **headers})


@contextmanager
def answering(script: Script) -> Iterator[None]:
    """A server that says what the script does, at ``script.url``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            route = f"{self.command} {self.path.partition('?')[0]}"
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            script.requests[route].append(json.loads(sent) if sent else self.path)
            if "idempotency-key" in self.headers:
                script.idempotency_keys.append(self.headers["idempotency-key"])
            answer = script.next(route)
            payload = answer.payload()
            if answer.cut is None or answer.cut > 0:
                self.send_response(answer.status)
                self.send_header("content-length", str(len(payload)))
                for name, value in answer.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(payload[: answer.cut])
            if answer.cut is not None:
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        script.url = f"http://127.0.0.1:{server.server_port}"
        yield
        server.shutdown()


def reelserve(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)
