"""``dfer ui``, ``dfer sync`` and ``dfer register``: a run at its tracking server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dfer_dist.utils.errors import UserError

Run = Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")]
_START = 120.0  # seconds that `mlflow ui` may take to come up: a busy machine's


def ui(
    run: Annotated[
        Path | None, typer.Argument(help="A run's folder; by default what runs/mlflow.db holds.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="The folder of all runs.")] = Path("runs"),
) -> None:
    """Open the MLflow UI on what a run used: print its server's address, or serve a sqlite file until Ctrl-C.

    Example: [bold]dfer ui runs/demo[/bold]
    """
    console = Console(highlight=False)
    tracking: dict[str, Any] = {
        "uri": f"sqlite:///{(runs / 'mlflow.db').resolve()}",
        "experiment_id": None,
        "run_id": None,
    }
    if run is not None:
        tracking = _tracking(run)
    uri = tracking["uri"]
    page = (
        f"/#/experiments/{tracking['experiment_id']}/runs/{tracking['run_id']}"
        if tracking["run_id"]
        else ""
    )
    if not uri.startswith("sqlite:"):
        console.print(f"{uri}{page}", soft_wrap=True)
        return
    store = Path(uri.removeprefix("sqlite:///"))
    if not store.exists():
        raise UserError(f"{store} is not there: nothing was tracked yet, or it was moved")
    from launch.processes import free_port

    port = free_port()
    address, server = f"http://127.0.0.1:{port}", serve(uri, port)
    try:
        wait_for(address, server)
        console.print(f"{address}{page} (Ctrl-C ends it)", soft_wrap=True)
        sys.exit(server.wait())
    except KeyboardInterrupt:
        return
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)


def serve(uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start ``mlflow ui`` on a store of this machine."""
    words = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    return subprocess.Popen(
        words, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises
    ------
    UserError
        If it ends, or does not answer in two minutes.
    """
    import urllib.request

    deadline = time.monotonic() + _START
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        time.sleep(0.25)
    raise UserError(f"mlflow ui does not come up at {address}: try it by hand, python -m mlflow ui")


def sync(run: Run) -> None:
    """Send what the tracking server lacks of a run: figures, files, summary, how it ended. Twice does no harm.

    Example: [bold]dfer sync runs/dfew_vitb32[/bold]
    """
    from dfer_dist.runs.layout import RunDir
    from dfer_dist.tracking.sync import sync as send
    from dfer_dist.tracking.uploader import reason

    there = RunDir(run.resolve())
    uri = _tracking(run)["uri"]
    try:
        sent = send(there)
    except (UserError, OSError):
        raise
    except Exception as e:  # MLflow raises many kinds
        raise UserError(
            f"tracking server {uri}: {reason(e)}; what it took stays there, the same command sends the rest"
        ) from e
    Console(highlight=False).print(sent.words(uri), soft_wrap=True, markup=False)


def register(
    run: Run,
    fold: Annotated[
        int | None, typer.Option(help="Of which fold; by default the first that is done.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="In the registry; the run's name by default.")
    ] = None,
    alias: Annotated[str, typer.Option(help="Points to this version from now on.")] = "candidate",
) -> None:
    """Put a fold's model into the model registry of the run's server: exported, as a logged model of the fold's run, under an alias.

    Example: [bold]dfer register runs/dfew_vitb32 --fold 1 --alias champion[/bold]
    """
    from dfer_dist.inference.register import register as put
    from dfer_dist.runs.layout import RunDir

    there, uri = RunDir(run.resolve()), _tracking(run)["uri"]
    version = put(there, fold, name or there.root.name, alias)
    said = "is there already as" if version.known else "is"
    console = Console(highlight=False)
    console.print(
        f"fold {version.fold} {said} version {version.number} of {version.name} at {uri}",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"load it: mlflow.pyfunc.load_model('models:/{version.name}@{alias}')",
        soft_wrap=True,
        markup=False,
    )


def _tracking(run: Path) -> dict[str, Any]:
    from dfer_dist.runs.layout import RunDir
    from dfer_dist.tracking.mlflow_runs import tracking_of

    return tracking_of(RunDir(run.resolve()))
