"""A cross-validation's runs at the tracking server: an experiment for its data set, a parent run, a child run for each fold.

``run.json`` has a key that is the run's own before anything is made at the server. All that is made there bears it as a tag, so that who makes
the runs, at whatever time and after whatever crash, finds first what is there.
"""

from __future__ import annotations

import logging
import os
import re
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

_KEY, _FOLD = "dfer.run", "fold"  # tags
_PROBE = 3.0  # seconds in which a server has to say something when a run begins
_WORDS = 100  # parameters or tags that MLflow takes in one request
_PARAM, _TAG = 6000, 5000  # characters of one


def client(uri: str) -> MlflowClient:
    """An MLflow client with short time-outs, which sends no usage statistics.

    It never repeats a request by itself: one that makes a run and is answered late would make two.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

    logging.getLogger("alembic").setLevel(
        logging.WARNING
    )  # creating the tables of a sqlite store is many lines
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    file = Path(uri.removeprefix("sqlite:///"))
    with _alone(
        file.with_name(f".{file.name}.lock")
    ):  # MLflow lets two processes make the tables at a time, and fails
        return MlflowClient(uri)


def fresh_tracking(run: RunDir, config: Config, dataset: str) -> dict[str, Any] | None:
    """What ``run.json`` says of tracking before anything is made at the server; None where it is switched off."""
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
    """Whether a run has a tracking server, be it away."""
    return run.describe()["tracking"] is not None


def tracking_of(run: RunDir) -> dict[str, Any]:
    """What ``run.json`` says of tracking, whichever version of this program wrote it.

    Raises
    ------
    UserError
        If the run has no server.
    """
    about = run.describe()
    said = about["tracking"]
    if said is None:
        raise UserError(
            f"{run.root} was made with tracking.enabled=false: it has no tracking server"
        )
    return {
        "key": said["run_id"],
        "experiment": about["dataset"],
        "closed": None,
        "given_up": [],
        **said,
    }


def begin(run: RunDir) -> None:
    """Make the runs of a run at its server, or open them again. A server that does not answer at once holds nothing up.

    Nothing is raised: what could not be made now is made by the job, once the server answers, or by ``dfer sync``.
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
    except Exception as e:  # MLflow raises many kinds; none may stop a run
        logger.warning(
            f"tracking server {tracking['uri']} does not answer ({reason(e)}): going on without it; what it misses is sent "
            f"when it answers, or by dfer sync {run.root}"
        )


def _probe(uri: str) -> None:
    """Wait :data:`_PROBE` seconds for a web server to say anything at all; looking up its name counts."""
    if not uri.startswith("http"):
        return
    fault: list[Exception] = [TimeoutError(f"no answer in {_PROBE:.0f} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=_PROBE).close()
        except urllib.error.HTTPError as e:
            if e.code >= 500:
                fault.append(e)
                return
        except Exception as e:
            fault.append(e)
            return
        fault.clear()

    thread = threading.Thread(target=ask, name="probe", daemon=True)
    thread.start()
    thread.join(_PROBE + 1)
    if fault:
        raise fault[-1]


def make_runs(run: RunDir, api: MlflowClient, check: bool = False) -> dict[str, Any]:
    """Make what the server lacks of a run's experiment, parent and children; returns tracking of ``run.json`` with all ids.

    Several processes may call this at a time.

    Parameters
    ----------
    check : bool
        Look even where all ids are known: parameters and tags that are missing are added, runs that a request made after it had been
        given up are deleted.
    """
    if (tracking := tracking_of(run))["run_id"] and not check:
        return tracking
    with _alone(run.root / ".tracking.lock"):
        if (tracking := tracking_of(run))["run_id"] and not check:  # made while we waited
            return tracking
        return _make_runs(run, api, tracking)


def _make_runs(run: RunDir, api: MlflowClient, tracking: dict[str, Any]) -> dict[str, Any]:
    about = run.describe()
    experiment_id = tracking["experiment_id"] or _experiment(run, api, tracking)
    found = _found(api, experiment_id, tracking)
    tags, name = run_tags(run), run.root.name
    children = {}
    parent = found.get("") or api.create_run(
        experiment_id, tags={_KEY: tracking["key"]}, run_name=name
    )
    complete(run, api, parent, tags)
    for fold in map(str, about["folds"]):
        own = {"mlflow.parentRunId": parent.info.run_id, _FOLD: fold, _KEY: tracking["key"]}
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
    """Runs at the server that bear the run's key: the parent as "", children by fold. Of two the known one counts, or the elder."""
    known = {tracking["run_id"], *tracking["folds"].values()}
    runs = api.search_runs(
        [experiment_id], f"tags.`{_KEY}` = '{tracking['key']}'", max_results=1000
    )
    lacking = known - {None} - {r.info.run_id for r in runs}
    runs = [*runs, *map(api.get_run, sorted(lacking))]
    runs = sorted(
        runs, key=lambda r: (r.info.run_id not in known, r.info.start_time, r.info.run_id)
    )
    out: dict[str, Run] = {}
    for r in runs:
        if out.setdefault(r.data.tags.get(_FOLD, ""), r) is not r:
            api.delete_run(r.info.run_id)
    return out


def complete(run: RunDir, api: MlflowClient, at: Run, tags: dict[str, str]) -> None:
    """Give a run at the server the parameters, tags and data set that it lacks. Parameters that are there cannot be changed."""
    from mlflow.entities import Param, RunTag

    flat = flatten(read_config(run.config))
    params = [Param(k, str(v)[:_PARAM]) for k, v in flat.items() if k not in at.data.params]
    words = [RunTag(k, v[:_TAG]) for k, v in tags.items() if at.data.tags.get(k) != v[:_TAG]]
    for i in range(0, max(len(params), len(words)), _WORDS):
        api.log_batch(at.info.run_id, params=params[i : i + _WORDS], tags=words[i : i + _WORDS])
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
    """What tells runs apart in the server's tables."""
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
    """What is known of a fold's job only while it runs, of the last one."""
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
    """Finds a fold's run for a job, and makes it where the server was away until now."""

    def __init__(self, run: RunDir, fold: int, running: bool) -> None:
        """``running``: also mark it as running now, with what there is to tell of the job."""
        self.run, self.fold, self.running = run, fold, running

    def __call__(self) -> tuple[MlflowClient, str]:
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
    """End the run of a fold's job that came to nothing before it had a tracker."""
    if is_tracked(run):
        try:
            api, child = ChildRun(run, fold, running=True)()
            api.set_terminated(child, status)
        except Exception as e:
            logger.warning(f"tracking: {reason(e)}")


def delete_runs(run: RunDir) -> None:
    """Take a run in which nothing was trained out of the server's lists (MLflow keeps deleted runs for its own `gc`)."""
    try:
        if not is_tracked(run) or not (tracking := tracking_of(run))["run_id"]:
            return
        _probe(tracking["uri"])
        api = client(tracking["uri"])
        for run_id in (*tracking["folds"].values(), tracking["run_id"]):
            api.delete_run(run_id)
    except Exception as e:  # whatever MLflow raises, the folder is free
        logger.warning(f"tracking: {reason(e)}")


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """As :func:`file_lock`; where there can be no lock, all go on at once: runs made twice are found later, and a table made twice is an error of MLflow's."""
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(file_lock(file))
        yield


def metric_name(words: str) -> str:
    """``words`` with what MLflow takes in a name."""
    return re.sub(r"[^\w. /:-]", "_", words)
