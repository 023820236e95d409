"""The MLflow runs of a cross-validation: a parent run, and a child run for each fold.

``run.json`` has a unique key before anything is created at the server. Everything created there
has it as a tag, so that creating the runs again, after any crash, first finds what exists.
"""

from __future__ import annotations

import logging
import os
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, flatten
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.tracking.uploader import reason
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from dfer_dist.utils.locks import file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

logger = logging.getLogger(__name__)

_KEY_TAG, _FOLD_TAG = "dfer.run", "fold"
_PROBE_SECONDS = 3.0  # in which a server has to answer when a run starts
# MLflow's limits: parameters or tags in one request, and characters of each.
_BATCH = 100
_MAX_PARAM, _MAX_TAG = 6000, 5000


def client(uri: str) -> MlflowClient:
    """Return an MLflow client with short time-outs that sends no usage statistics.

    It never retries a request: creating a run with a late answer would create two.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

    # Creating the tables of a sqlite store logs many lines.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    file = Path(uri.removeprefix("sqlite:///"))
    # MLflow fails if two processes create the tables at a time.
    with _lock_if_possible(file.with_name(f".{file.name}.lock")):
        return MlflowClient(uri)


def fresh_tracking(run: RunDir, config: Config, dataset: str) -> dict[str, Any] | None:
    """Return ``tracking`` of a new ``run.json``; None if tracking is disabled."""
    if not config.tracking.enabled:
        return None
    uri = config.tracking.uri or f"sqlite:///{run.root.parent / 'mlflow.db'}"
    names = {
        "uri": uri.rstrip("/"),
        "key": uuid.uuid4().hex,
        "experiment": config.tracking.experiment or dataset,
    }
    return {
        **names,
        "experiment_id": None,
        "run_id": None,
        "folds": {},
        "closed": None,
        "given_up": [],
    }


def is_tracked(run: RunDir) -> bool:
    """Return whether a run has a tracking server, reachable or not."""
    return run.describe()["tracking"] is not None


def tracking_of(run: RunDir) -> dict[str, Any]:
    """Return ``tracking`` of ``run.json``, of any version of this program.

    Raises
    ------
    UserError
        If the run has no server.
    """
    about = run.describe()
    tracking = about["tracking"]
    if tracking is None:
        raise UserError(
            f"{run.root} was made with tracking.enabled=false: it has no tracking server"
        )
    return {
        "key": tracking["run_id"],
        "experiment": about["dataset"],
        "closed": None,
        "given_up": [],
        **tracking,
    }


def begin(run: RunDir) -> None:
    """Create the MLflow runs of a run, or reopen them, without waiting for a slow server.

    Nothing is raised: what could not be created is created by the job once the server answers, or
    by ``dfer sync``.
    """
    if not is_tracked(run):
        return
    tracking = tracking_of(run)
    if tracking["closed"] or tracking["given_up"]:
        run.change(tracking={**tracking, "closed": None, "given_up": []})
    try:
        _probe(tracking["uri"])
        api = client(tracking["uri"])
        ids = make_runs(run, api)
        if tracking["closed"]:
            api.update_run(ids["run_id"], status="RUNNING")
    except Exception as e:
        # MLflow raises many kinds of errors; none may stop a run.
        logger.warning(
            f"tracking server {tracking['uri']} does not answer ({reason(e)}): continuing without "
            f"it; what it misses is sent when it answers, or by dfer sync {run.root}"
        )


def _probe(uri: str) -> None:
    """Wait for any answer of a web server, including the look-up of its name."""
    if not uri.startswith("http"):
        return
    errors: list[Exception] = [TimeoutError(f"no answer in {_PROBE_SECONDS:.0f} s")]

    def request() -> None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=_PROBE_SECONDS).close()
        except urllib.error.HTTPError as e:
            if e.code >= 500:
                errors.append(e)
                return
        except Exception as e:
            errors.append(e)
            return
        errors.clear()

    thread = threading.Thread(target=request, name="probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 1)
    if errors:
        raise errors[-1]


def make_runs(run: RunDir, api: MlflowClient, check: bool = False) -> dict[str, Any]:
    """Create what the server lacks of a run's experiment, parent and children.

    Several processes may call this at a time.

    Parameters
    ----------
    check : bool
        Check even if all ids are known: add missing parameters and tags, and delete duplicates
        from requests that were completed after their time-out.

    Returns
    -------
    dict
        ``tracking`` of ``run.json`` with all ids.
    """
    if (tracking := tracking_of(run))["run_id"] and not check:
        return tracking
    with _lock_if_possible(run.root / ".tracking.lock"):
        if (tracking := tracking_of(run))["run_id"] and not check:  # created meanwhile
            return tracking
        return _make_runs(run, api, tracking)


def _make_runs(run: RunDir, api: MlflowClient, tracking: dict[str, Any]) -> dict[str, Any]:
    about = run.describe()
    experiment_id = tracking["experiment_id"] or _experiment(run, api, tracking)
    found = _found(api, experiment_id, tracking)
    tags, name = run_tags(run), run.root.name
    children = {}
    parent = found.get("") or api.create_run(
        experiment_id, tags={_KEY_TAG: tracking["key"]}, run_name=name
    )
    complete(run, api, parent, tags)
    for fold in map(str, about["folds"]):
        own = {"mlflow.parentRunId": parent.info.run_id, _FOLD_TAG: fold, _KEY_TAG: tracking["key"]}
        child = found.get(fold)
        if child is None:
            child = api.create_run(experiment_id, tags=own, run_name=f"{name}-fold{fold}")
            api.update_run(child.info.run_id, status="SCHEDULED")
        complete(run, api, child, tags | own)
        children[fold] = child.info.run_id
    ids = {"experiment_id": experiment_id, "run_id": parent.info.run_id, "folds": children}
    now = {**tracking_of(run), **ids}
    if now != tracking:
        run.change(tracking=now)
    return now


def _experiment(run: RunDir, api: MlflowClient, tracking: dict[str, Any]) -> str:
    name, uri = tracking["experiment"], tracking["uri"]
    if experiment := api.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    place = (
        (run.root.parent / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    )
    try:
        return str(api.create_experiment(name, place))
    except Exception:  # another run was quicker
        if experiment := api.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        raise


def _found(api: MlflowClient, experiment_id: str, tracking: dict[str, Any]) -> dict[str, Run]:
    """Return the runs with the run's key: the parent as "", children by fold.

    Of duplicates, the known one counts, or the older one.
    """
    known = {tracking["run_id"], *tracking["folds"].values()}
    runs = api.search_runs(
        [experiment_id], f"tags.`{_KEY_TAG}` = '{tracking['key']}'", max_results=1000
    )
    lacking = known - {None} - {r.info.run_id for r in runs}
    runs = [*runs, *map(api.get_run, sorted(lacking))]
    runs = sorted(
        runs, key=lambda r: (r.info.run_id not in known, r.info.start_time, r.info.run_id)
    )
    out: dict[str, Run] = {}
    for r in runs:
        if out.setdefault(r.data.tags.get(_FOLD_TAG, ""), r) is not r:
            api.delete_run(r.info.run_id)
    return out


def complete(run: RunDir, api: MlflowClient, at: Run, tags: dict[str, str]) -> None:
    """Add missing parameters, tags and data set to an MLflow run.

    Existing parameters cannot be changed.
    """
    from mlflow.entities import Param, RunTag

    flat = flatten(read_config(run.config))
    params = [Param(k, str(v)[:_MAX_PARAM]) for k, v in flat.items() if k not in at.data.params]
    cut = {k: v[:_MAX_TAG] for k, v in tags.items()}
    new_tags = [RunTag(k, v) for k, v in cut.items() if at.data.tags.get(k) != v]
    for i in range(0, max(len(params), len(new_tags)), _BATCH):
        part = slice(i, i + _BATCH)
        api.log_batch(at.info.run_id, params=params[part], tags=new_tags[part])
    if not at.inputs.dataset_inputs:
        api.log_inputs(at.info.run_id, datasets=[_dataset(read_json(run.provenance)["data"])])


def _dataset(data: dict[str, str]) -> DatasetInput:
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    place = data["shards"]
    kind = place.partition("://")[0] if "://" in place else "local"
    digest = data["hash"][:32]  # MLflow takes 36 characters
    profile = json.dumps({"index_hash": data["hash"]})
    dataset = Dataset(data["name"], digest, kind, json.dumps({"uri": place}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def run_tags(run: RunDir) -> dict[str, str]:
    """Return the tags that distinguish runs in the server's tables."""
    about, origin, config = run.describe(), read_json(run.provenance), read_config(run.config)
    tags = {
        "dataset": about["dataset"],
        "index_hash": about["index_hash"],
        "config_hash": about["config_hash"],
    }
    tags |= {"code_hash": origin["code_hash"], "selection": config.train.selection.name}
    tags |= {
        "precision": config.train.precision.name,
        "mlflow.user": origin["user"],
        "mlflow.source.name": "dfer",
    }
    tags |= (
        {"mlflow.source.git.commit": origin["git"]["sha"]}
        if origin["git"] and origin["git"]["sha"]
        else {}
    )
    drift = sorted({key for d in run.drifts() for key in d["changes"]})
    return tags | ({"drift": ", ".join(drift)} if drift else {})


def job_tags(fold: FoldDir) -> dict[str, str]:
    """Return tags of the last job of a fold."""
    attempts = read_json(fold.status)["attempts"] if fold.status.exists() else []
    if not attempts:
        return {}
    last = attempts[-1]
    tags = {
        "slurm.array": last.get("array"),
        "slurm.job": last["job"],
        "nodes": last["nodes"],
        "world_size": last["world_size"],
    }
    return {
        k: str(v)
        for k, v in (tags | {"device": last.get("device"), "attempts": len(attempts)}).items()
        if v is not None
    }


class ChildRun:
    """Connect a job to its fold's MLflow run, and create it if the server did not answer before."""

    def __init__(self, run: RunDir, fold: int, running: bool) -> None:
        """Store the arguments; ``running`` marks the run as running, with the job's tags."""
        self.run, self.fold, self.running = run, fold, running

    def __call__(self) -> tuple[MlflowClient, str]:
        """Return a client and the id of the fold's run."""
        api = client(tracking_of(self.run)["uri"])
        child = make_runs(self.run, api)["folds"][str(self.fold)]
        if self.running:
            from mlflow.entities import RunTag

            api.update_run(child, status="RUNNING")
            api.log_batch(
                child, tags=[RunTag(k, v) for k, v in job_tags(self.run.fold(self.fold)).items()]
            )
        return api, child


def close_early(run: RunDir, fold: int, status: str) -> None:
    """End the MLflow run of a fold whose job failed before it had a metrics log."""
    if is_tracked(run):
        try:
            api, child = ChildRun(run, fold, running=True)()
            api.set_terminated(child, status)
        except Exception as e:
            logger.warning(f"tracking: {reason(e)}")


def delete_runs(run: RunDir) -> None:
    """Delete the MLflow runs of a run without training; MLflow keeps them for its own ``gc``."""
    try:
        if not is_tracked(run) or not (tracking := tracking_of(run))["run_id"]:
            return
        _probe(tracking["uri"])
        api = client(tracking["uri"])
        for run_id in (*tracking["folds"].values(), tracking["run_id"]):
            api.delete_run(run_id)
    except Exception as e:
        # Whatever MLflow raises, the folder can be reused.
        logger.warning(f"tracking: {reason(e)}")


@contextmanager
def _lock_if_possible(file: Path) -> Iterator[None]:
    """Hold a file lock, or continue without one if the file system has none.

    Runs that are created twice are found later; a table created twice is an error of MLflow's.
    """
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(file_lock(file))
        yield
