"""A proxy between a run and its tracking server, which can be made to fail."""

from __future__ import annotations

import http.client
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.helpers.quiet_server import QuietServer

PASS, DEAD, BROKEN, SLOW = "pass", "dead", "500", "slow"


class Proxy:
    """Forward requests to ``target``.

    :attr:`mode` is PASS, DEAD (closes the connection), BROKEN (answers 500) or SLOW (answers after
    :attr:`delay` seconds).
    """

    def __init__(self, target: str, mode: str = PASS) -> None:
        self.target, self.mode, self.delay, self.requests = urlsplit(target), mode, 30.0, 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests += 1
                mode = proxy.mode
                if mode == DEAD:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, text = 500, [], b"out of order"
                if mode != BROKEN:
                    status, headers, text = self.forward(body)
                if mode == SLOW:
                    time.sleep(proxy.delay)
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in (
                        "transfer-encoding",
                        "connection",
                        "content-length",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                try:
                    server = http.client.HTTPConnection(
                        proxy.target.hostname or "", proxy.target.port, timeout=60
                    )
                    kept = {
                        k: v
                        for k, v in self.headers.items()
                        if k.lower() not in ("connection", "accept-encoding")
                    }
                    server.request(
                        self.command, self.path, body, kept | {"Host": proxy.target.netloc}
                    )
                    reply = server.getresponse()
                    return reply.status, reply.getheaders(), reply.read()
                except OSError as e:
                    return 502, [], str(e).encode()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = QuietServer(Handler)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
