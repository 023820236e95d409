"""A local web server that fails as a test asks for."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.helpers.quiet_server import QuietServer


class Web:
    """Serves the files of ``folder``.

    ``faults[name]`` are used up, one for each request: a status, or cut, alter, slow, hang.
    Requests without the ``query``, byte by byte, are refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.query = ""
        self.faults: dict[str, list[object]] = defaultdict(list)
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = QuietServer(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        name, _, query = request.path.removeprefix("/set/").partition("?")
        self.asked[name] += 1
        fault = self.faults[name].pop(0) if self.faults[name] else None
        if query != self.query:
            fault = 403
        path = self.folder / name
        if isinstance(fault, int) or not path.is_file():
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        data = path.read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        half = len(data) // 2
        if fault == "alter":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        request.wfile.write(data[:half])
        request.wfile.flush()
        if fault == "cut":
            request.close_connection = True
            return
        if fault in ("slow", "hang"):
            time.sleep(0.3 if fault == "slow" else 60)
        request.wfile.write(data[half:])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
