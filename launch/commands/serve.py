"""``dfer serve``."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from dfer_dist.utils.errors import UserError
from launch.commands.models import Model, Precision
from launch.console import print_line

LOOPBACK = "127.0.0.1"


def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Default: this machine only.")
    ] = LOOPBACK,
    precision: Precision = None,
) -> None:
    """Open a local page to try a model with a video or the camera.

    The same address answers MLflow's protocol: POST /invocations. There is no password: listen on
    another address only where everyone may use the model.

    Example: [bold]dfer serve models/demo-1[/bold]
    """
    import uvicorn

    from dfer_dist.inference.exported import load
    from dfer_dist.inference.serving.app import build_app

    listening = _listen(host, port)
    app = build_app(load(model, precision=precision), is_local=host == LOOPBACK)
    address, bound_port = listening.getsockname()[:2]
    print_line(f"open http://{address}:{bound_port} in a browser; Ctrl-C stops the server")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, before the model is loaded.

    Raises
    ------
    UserError
        If the address is not one of this machine, or the port is in use.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as e:
        raise UserError(
            f"--host {host} --port {port}: {e.strerror or e}: give another --port, or 0 for any"
        ) from e
