"""``dfer ui``, ``dfer sync`` and ``dfer register``: a run at its MLflow server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import TrackingInfo
from dfer_dist.runs.sweep import SweepDir, expand
from dfer_dist.utils.errors import UserError
from launch.console import print_line
from launch.options import RunFolder, RunsFolder

T = TypeVar("T")
ModelName = Annotated[
    str | None, typer.Option(help="Name in the registry. Default: the run's name.")
]

# MLflow opens its pages for GenAI by default, which show no metrics
WORKFLOW = "?workflowType=machine_learning"
_START_TIMEOUT = 120.0  # seconds that `mlflow ui` may take to start on a busy machine


def ui(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of the run, or of a sweep. Default: all of runs/mlflow.db."),
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Open a run in the MLflow UI.

    Prints the addresses of the run and of a table of all runs, at the run's server or at one that
    serves its sqlite file until Ctrl-C.

    Example: [bold]dfer ui runs/demo[/bold]
    """
    uri, page = f"sqlite:///{(runs / 'mlflow.db').resolve()}", f"/#/experiments{WORKFLOW}"
    table = ""
    if run is not None:
        sweep = SweepDir(run.resolve())
        tracking = _tracking(expand(run)[0])
        uri, run_id = tracking.uri, tracking.run_id
        if sweep.file.is_file():
            run_id = sweep.info().run_id
        if run_id:
            all_runs = f"/#/experiments/{tracking.experiment_id}/runs"
            page, table = f"{all_runs}/{run_id}{WORKFLOW}", table_of_runs(all_runs)
    if not uri.startswith("sqlite:"):
        _print_pages(uri, page, table)
        return
    store = Path(uri.removeprefix("sqlite:///"))
    if not store.exists():
        raise UserError(f"{store} does not exist: no run was tracked yet, or it was moved")
    # as Ctrl-C does: the server ends with this command
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with suppress(KeyboardInterrupt), mlflow_server(uri) as (address, server):
        _print_pages(address, f"{page} (Ctrl-C ends it)", table)
        sys.exit(server.wait())


def table_of_runs(all_runs: str) -> str:
    """Return the address of the saved view of an experiment's page of runs."""
    from dfer_dist.tracking.notes import VIEW

    return f"{all_runs}{WORKFLOW}&viewStateShareKey={VIEW}"


def _print_pages(server: str, page: str, table: str) -> None:
    print_line(f"{server}{page}")
    if table:
        print_line(f"all runs by UAR: {server}{table}")


@contextmanager
def mlflow_server(uri: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a store on this machine with ``mlflow ui``; yield its address and its process.

    Raises
    ------
    UserError
        If it ends, or does not answer within two minutes.
    """
    from dfer_dist.tracking.server import store_url
    from launch.processes import free_port

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1"]
    command += ["--backend-store-uri", store_url(uri), "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    # eight processes for evaluations of language models
    quiet["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = subprocess.Popen(
        command,
        env=os.environ | quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, server)
        yield address, server
    finally:
        # its workers may outlive it
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        time.sleep(0.25)
    raise UserError(f"mlflow ui does not start at {address}: run python -m mlflow ui to see why")


def sync(run: RunFolder) -> None:
    """Send to MLflow what its server lacks of a run.

    Sends metrics, files, the summary and the final status; of a sweep, those of all its runs, and
    their comparison. Running it twice does no harm.

    Example: [bold]dfer sync runs/dfew_vitb32[/bold]
    """
    from dfer_dist.tracking.sync import sync as sync_run
    from dfer_dist.tracking.sync_sweep import sync_sweep

    sweep = SweepDir(run.resolve())
    is_sweep = sweep.file.is_file()
    for run_dir in expand(run):
        uri = _tracking(run_dir).uri
        sent = _send(uri, partial(sync_run, run_dir))
        print_line(f"{run_dir.root.name}: " * is_sweep + sent.describe(uri))
    if is_sweep:
        changes = _send(uri, partial(sync_sweep, sweep))
        print_line(f"{sweep.root.name}: sent {changes} files and changes to {uri}")


def _send(uri: str, send: Callable[[], T]) -> T:
    """Send what a server lacks; a failure is an error of one line."""
    from dfer_dist.tracking.server import describe_failure

    try:
        return send()
    except (UserError, OSError):
        raise
    # MLflow raises many types
    except Exception as error:
        raise UserError(
            f"{describe_failure(uri, error)}; "
            "what it received is kept, run the same command to send the rest"
        ) from error


def register(
    run: RunFolder,
    fold: Annotated[
        int | None, typer.Option(help="Fold of the model. Default: the first that is done.")
    ] = None,
    name: ModelName = None,
    alias: Annotated[str, typer.Option(help="Alias to set to this version.")] = "candidate",
) -> None:
    """Register a fold's model in the MLflow model registry.

    The exported model becomes a logged model of the fold's MLflow run.

    Example: [bold]dfer register runs/dfew_vitb32 --fold 1 --alias champion[/bold]
    """
    from dfer_dist.inference.register import register as register_model

    run_dir = RunDir(run.resolve())
    uri = _tracking(run_dir).uri
    version = register_model(run_dir, fold, name or run_dir.root.name, alias)
    verb = "was registered before as" if version.known else "is"
    print_line(f"fold {version.fold} {verb} version {version.number} of {version.name} at {uri}")
    print_line(f"load it: mlflow.pyfunc.load_model('models:/{version.name}@{alias}')")


def _tracking(run: RunDir) -> TrackingInfo:
    from dfer_dist.tracking.mlflow_runs import tracking_of

    return tracking_of(run)
