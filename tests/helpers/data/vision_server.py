"""A local server of a vision model that answers and fails as a test asks for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.quiet_server import QuietServer

Fault = Callable[[BaseHTTPRequestHandler], None]
PLAIN = "The brows rise quickly and stay high. The mouth opens wide and then closes slowly."


def completion(text: object, finish: str = "stop", **more: object) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **more},
        "finish_reason": finish,
    }
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


def send(request: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(data)


class Vision:
    """The server.

    ``text`` gives the answer to a request, or a fault. ``faults`` are used up, one for each
    request, before any answer; ``hold``, when cleared, keeps answers back until it is set.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.faults: list[Fault] = []
        self.text: Callable[[dict[str, Any]], str | Fault] = lambda _: PLAIN
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0  # requests at the same time
        self.seconds = seconds
        self.hold = threading.Event()
        self.hold.set()
        self._now, self._lock = 0, threading.Lock()
        vision = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                vision.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = QuietServer(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        asked = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            self.times.append(time.monotonic())
            self.requests.append(asked)
            self.headers.append({**dict(request.headers), "path": request.path})
            self._now += 1
            self.most = max(self.most, self._now)
            fault = self.faults.pop(0) if self.faults else None
        try:
            if fault:
                fault(request)
            else:
                self.hold.wait(30)
                time.sleep(self.seconds)
                with self._lock:
                    self._now -= 1
                reply = self.text(asked)
                if isinstance(reply, str):
                    reply = answer(completion(reply))
                reply(request)
                return
        except OSError:
            request.close_connection = True  # the client has gone
        with self._lock:
            self._now -= 1

    def asked(self) -> Counter[tuple[str, ...]]:
        """How often each clip was asked for, by its frames."""
        return Counter(images(request) for request in self.requests)

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


def images(request: dict[str, Any]) -> tuple[str, ...]:
    """A request's frames as data URLs."""
    return tuple(
        part["image_url"]["url"]
        for part in request["messages"][1]["content"]
        if part["type"] == "image_url"
    )


def status(code: int, **headers: str) -> Fault:
    return lambda request: send(request, b'{"error": {"message": "not now"}}', code, **headers)


def answer(data: bytes) -> Fault:
    return lambda request: send(request, data)


def stall(request: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)
    request.close_connection = True


def trickle(request: BaseHTTPRequestHandler) -> None:
    """A byte from time to time: there is never silence, and never an end."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.1)


def cut(request: BaseHTTPRequestHandler) -> None:
    """Half of the body, then the end of the connection."""
    data = completion(PLAIN)
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[: len(data) // 2])
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True
