"""The MLflow runs of a cross-validation: a parent run, and a child run for each fold.

The parent of a run in a sweep is a child of the sweep's own (:mod:`dfer_dist.tracking.sweeps`).

``run.json`` has a unique key before anything is created at the server. Everything created there
has it as a tag, so that creating the runs again, after any crash, first finds what exists.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from dfer_dist.config.applicable import applicable_settings
from dfer_dist.config.load import read_config
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import DataOrigin, FoldStatus, GitState, Provenance, TrackingInfo
from dfer_dist.runs.sweep import sweep_of
from dfer_dist.tracking.identity import artifact_folder, forget_sent, own_tracking
from dfer_dist.tracking.metric_names import CURRENT, MetricNames
from dfer_dist.tracking.notes import describe_experiment
from dfer_dist.tracking.server import SQLITE, client, describe_failure, lock_if_possible, probe
from dfer_dist.tracking.sweeps import PARENT_TAG, parent_tag, sweep_tags
from dfer_dist.tracking.uploader import Connect, reason
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

logger = logging.getLogger(__name__)
T = TypeVar("T")

_KEY_TAG, _FOLD_TAG = "dfer.run", "fold"
# MLflow's limits: parameters or tags in one request, and characters of each.
_BATCH = 100
_MAX_PARAM, _MAX_TAG = 6000, 5000


def tracking_of(run: RunDir) -> TrackingInfo:
    """Return ``tracking`` of ``run.json``, as :func:`~dfer_dist.tracking.identity.own_tracking`.

    Raises
    ------
    UserError
        If the run has no server.
    """
    tracking = own_tracking(run)
    if tracking is None:
        raise UserError(
            f"{run.root} has no MLflow runs: it was made by dfer eval --endpoint, or with "
            "tracking.enabled=false"
        )
    return tracking


def metric_names(run: RunDir) -> MetricNames:
    """Return the names of a run's metrics in MLflow."""
    tracking = run.info().tracking
    return MetricNames(tracking.metric_names) if tracking else CURRENT


def begin(run: RunDir) -> None:
    """Create the MLflow runs of a run, or reopen them, without waiting for a slow server.

    Nothing is raised: what could not be created is created by the job once the server answers, or
    by ``dfer sync``.
    """
    tracking = own_tracking(run)
    if tracking is None:
        return
    if tracking.closed or tracking.given_up:
        run.update_info(tracking=replace(tracking, closed=None, given_up=[]))
    try:
        api = client(tracking.uri)
        probe(api)
        # Runs that were known may have been deleted meanwhile.
        parent = make_runs(run, api, check=True).run_id
        if tracking.closed:
            api.update_run(parent, status="RUNNING")
    except Exception as e:
        # MLflow raises many kinds of errors; none may stop a run.
        logger.warning(
            f"{describe_failure(tracking.uri, e)}: continuing without it; "
            f"dfer sync {run.root} sends what is missing"
        )


def make_runs(run: RunDir, api: MlflowClient, check: bool = False) -> TrackingInfo:
    """Create what the server lacks of a run's experiment, parent and children.

    Several processes may call this at a time.

    Parameters
    ----------
    check : bool
        Check even if all ids are known: add missing parameters and tags, restore what was deleted
        in MLflow, and delete duplicates from requests that were completed after their time-out.

    Returns
    -------
    TrackingInfo
        ``tracking`` of ``run.json`` with all ids.
    """
    if (tracking := tracking_of(run)).run_id and not check:
        return tracking
    with lock_if_possible(run.root / ".tracking.lock"):
        if (tracking := tracking_of(run)).run_id and not check:  # created meanwhile
            return tracking
        # not twice at a time by runs that begin together, such as the trials of a search
        with lock_if_possible(run.root.with_name(".tracking.lock")):
            experiment_id = _experiment(run, api, tracking)
            describe_experiment(api, experiment_id)
        found = _found(run, api, experiment_id, tracking)
        tags, key_tag, name = run_tags(run), {_KEY_TAG: tracking.key}, run.root.name
        own = key_tag | parent_tag(run, api, experiment_id)
        parent = found.get("") or api.create_run(experiment_id, tags=own, run_name=name)
        complete(run, api, parent, tags | own)
        parent_id, children = parent.info.run_id, {}
        for fold in map(str, run.info().folds):
            own = {PARENT_TAG: parent_id, _FOLD_TAG: fold, **key_tag}
            child = found.get(fold)
            if child is None:
                child = api.create_run(experiment_id, tags=own, run_name=f"{name}-fold{fold}")
                api.update_run(child.info.run_id, status="SCHEDULED")
            complete(run, api, child, tags | own)
            children[fold] = child.info.run_id
        now = replace(
            tracking_of(run), experiment_id=experiment_id, run_id=parent_id, folds=children
        )
        if now != tracking:
            run.update_info(tracking=now)
        return now


def _experiment(run: RunDir, api: MlflowClient, tracking: TrackingInfo) -> str:
    """Return the id of a run's experiment; create it, or restore it if it was deleted."""
    from mlflow import MlflowException

    known = _get(api.get_run, tracking.run_id)
    # An id alone may be another experiment's, in a new database.
    experiment = _get(api.get_experiment, known and known.info.experiment_id)
    if tracking.run_id is None and tracking.experiment_id:
        # the user's own, for a new run
        experiment = _get(api.get_experiment, tracking.experiment_id)
        if experiment is None:
            logger.warning(
                f"MLFLOW_EXPERIMENT_ID={tracking.experiment_id} is no experiment of "
                f"{tracking.uri}: using {tracking.experiment}"
            )
    experiment = experiment or api.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        place = None
        if tracking.uri.startswith(SQLITE):
            place = artifact_folder(run.root.parent)
        try:
            return str(api.create_experiment(tracking.experiment, place))
        except MlflowException:
            # Another process created it meanwhile.
            experiment = api.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        api.restore_experiment(experiment.experiment_id)
        logger.warning(
            f"the MLflow experiment {experiment.name} had been deleted and was restored for "
            f"{run.root}: tracking.experiment=NAME chooses another for a new run"
        )
    return str(experiment.experiment_id)


def _get(get: Callable[[str], T], known: str | None) -> T | None:
    """Return what the server has with an id; None if it was removed for good."""
    from mlflow import MlflowException

    if known is None:
        return None
    try:
        return get(known)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _found(
    run: RunDir, api: MlflowClient, experiment_id: str, tracking: TrackingInfo
) -> dict[str, Run]:
    """Return the runs with the run's key: the parent as "", children by fold.

    Of duplicates, the known one counts, or the older one. Known ones that were deleted are
    restored.
    """
    known = {run_id for run_id in (tracking.run_id, *tracking.folds.values()) if run_id}
    query = f"tags.`{_KEY_TAG}` = '{tracking.key}'"
    runs = list(api.search_runs([experiment_id], query, max_results=1000))
    for run_id in sorted(known - {r.info.run_id for r in runs}):
        known_run = _get(api.get_run, run_id)
        if known_run is None:
            forget_sent(run)
            continue
        if known_run.info.lifecycle_stage == "deleted":
            api.restore_run(run_id)
            logger.warning(f"the MLflow run {known_run.info.run_name} was deleted and is restored")
        runs.append(known_run)
    runs.sort(key=lambda r: (r.info.run_id not in known, r.info.start_time, r.info.run_id))
    out: dict[str, Run] = {}
    for r in runs:
        if out.setdefault(r.data.tags.get(_FOLD_TAG, ""), r) is not r:
            api.delete_run(r.info.run_id)
    return out


def complete(run: RunDir, api: MlflowClient, at: Run, tags: dict[str, str]) -> None:
    """Add missing parameters, tags and data set to an MLflow run.

    Settings that cannot matter, given the others, are no parameters. Existing parameters cannot
    be changed.
    """
    from mlflow.entities import Param, RunTag

    settings = applicable_settings(read_config(run.config))
    data = Provenance.read(run.provenance).data
    params = [Param(k, str(v)[:_MAX_PARAM]) for k, v in settings.items() if k not in at.data.params]
    cut = {k: v[:_MAX_TAG] for k, v in tags.items()}
    new_tags = [RunTag(k, v) for k, v in cut.items() if at.data.tags.get(k) != v]
    for i in range(0, max(len(params), len(new_tags)), _BATCH):
        part = slice(i, i + _BATCH)
        api.log_batch(at.info.run_id, params=params[part], tags=new_tags[part])
    if data and not at.inputs.dataset_inputs:
        sets = [_dataset(own) for own in data.sets or [data]]
        api.log_inputs(at.info.run_id, datasets=sets)


def _dataset(data: DataOrigin) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme, is_url, _ = data.shards.partition("://")
    dataset = Dataset(
        data.name,
        data.hash[:32],  # MLflow takes 36 characters
        scheme if is_url else "local",
        json.dumps({"uri": data.shards}),
        profile=json.dumps({"index_hash": data.hash}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def run_tags(run: RunDir) -> dict[str, str]:
    """Return the tags that distinguish runs in the server's tables."""
    info, origin, config = run.info(), Provenance.read(run.provenance), read_config(run.config)
    git = origin.git or GitState()
    tags = {
        "dataset": info.dataset,
        "index_hash": info.index_hash,
        "folds_hash": config.data.folds_hash,
        "config_hash": info.config_hash,
        "code_hash": origin.code_hash,
        "selection": config.train.selection.name,
        "precision": config.train.precision.name,
        "mlflow.user": origin.user,
        "mlflow.source.name": "dfer",
        "mlflow.source.git.commit": git.sha,
        "drift": ", ".join(sorted({key for drift in info.drift for key in drift.changes})),
        **sweep_tags(run),
    }
    return {k: v for k, v in tags.items() if v}


def job_tags(fold: FoldDir) -> dict[str, str]:
    """Return tags of the last job of a fold."""
    attempts = FoldStatus.read(fold.status).attempts if fold.status.exists() else []
    if not attempts:
        return {}
    last = attempts[-1]
    tags = {
        "slurm.array": last.array,
        "slurm.job": last.job,
        "nodes": last.nodes,
        "world_size": last.world_size,
        "device": last.device,
        "attempts": len(attempts),
    }
    return {k: str(v) for k, v in tags.items() if v is not None}


def job_connection(run: RunDir, fold: int, running: bool) -> Connect | None:
    """Return how a rank connects to its fold's MLflow run; None if it is not to.

    Jobs of a cluster leave a sqlite store to the login node and to the summary job.
    """
    tracking = run.info().tracking
    if tracking is None or (tracking.uri.startswith(SQLITE) and "SLURM_JOB_ID" in os.environ):
        return None
    return partial(connect_child, run, fold, running)


def connect_child(run: RunDir, fold: int, running: bool) -> tuple[MlflowClient, str]:
    """Return a client and the id of a fold's MLflow run; create what does not exist yet.

    ``running`` marks it as running, with the job's tags.
    """
    from mlflow.entities import RunTag

    api = client(tracking_of(run).uri)
    child = make_runs(run, api).folds[str(fold)]
    if running:
        api.update_run(child, status="RUNNING")
        tags = job_tags(run.fold(fold))
        api.log_batch(child, tags=[RunTag(k, v) for k, v in tags.items()])
    return api, child


def close_early(run: RunDir, fold: int, status: str) -> None:
    """End the MLflow run of a fold whose job failed before it had a metrics log."""
    if connect := job_connection(run, fold, running=True):
        try:
            api, child = connect()
            api.set_terminated(child, status)
        except Exception as e:
            logger.warning(f"tracking: {reason(e)}")


def delete_runs(run: RunDir) -> None:
    """Delete the MLflow runs of a run without training, and that of a sweep with its last run.

    MLflow keeps them for its own ``gc``.
    """
    try:
        tracking = own_tracking(run)
        if tracking is None or tracking.run_id is None:
            return
        api = client(tracking.uri)
        probe(api)
        sweep, run_ids = sweep_of(run), [*tracking.folds.values(), tracking.run_id]
        if sweep and sweep.runs() == [run] and (sweep_id := sweep.info().run_id):
            run_ids.append(sweep_id)
        for run_id in run_ids:
            api.delete_run(run_id)
    except Exception as e:
        # Whatever MLflow raises, the folder can be reused.
        logger.warning(f"tracking: {reason(e)}")
