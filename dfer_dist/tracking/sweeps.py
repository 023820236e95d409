"""The MLflow run of a sweep: the parent of the runs of its settings and seeds, with its comparison.

It is created with the first of them, and found again by the sweep's own key, which it has as a tag.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import TrackingInfo
from dfer_dist.runs.sweep import SweepDir, sweep_of
from dfer_dist.tracking.metrics_log import FAILED, FINISHED, KILLED
from dfer_dist.tracking.server import lock_if_possible
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Of the run of a sweep, with the sweep's key; and of all runs in it.
_OWN_TAG, _MEMBER_TAG = "dfer.sweep.root", "dfer.sweep"
PARENT_TAG = "mlflow.parentRunId"


def sweep_tags(run: RunDir) -> dict[str, str]:
    """Return the tags of a run and its folds that say where in its sweep it is, if it has one."""
    sweep = sweep_of(run)
    if sweep is None:
        return {}
    info = sweep.info()
    tags = {_MEMBER_TAG: info.key, "sweep": sweep.name}
    for member in info.members:
        if member.run == run.root.name:
            tags["setting"] = ", ".join(member.setting)
            tags["seed"] = str(member.seed)
            tags["pruned"] = "true" * member.pruned
    return {name: value for name, value in tags.items() if value not in ("", "None")}


def parent_tag(run: RunDir, api: MlflowClient, experiment_id: str) -> dict[str, str]:
    """Return the tag that puts a run under the run of its sweep; create that if it is missing.

    Of duplicates, from processes on a file system without locks, the oldest counts.
    """
    sweep = sweep_of(run)
    if sweep is None:
        return {}
    with lock_if_possible(sweep.root / ".tracking.lock"):
        info = sweep.info()
        query = f"tags.`{_OWN_TAG}` = '{info.key}'"
        found = api.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"])
        for duplicate in found[1:]:
            api.delete_run(duplicate.info.run_id)
        if found:
            at = found[0]
        else:
            tags = {_OWN_TAG: info.key, _MEMBER_TAG: info.key, "sweep": sweep.name}
            tags |= {"dataset": run.info().dataset, "mlflow.source.name": "dfer"}
            at = api.create_run(experiment_id, tags=tags, run_name=sweep.root.name)
        run_id: str = at.info.run_id
        if at.info.status in (FINISHED, FAILED) and sweep_status(sweep) is None:
            api.update_run(run_id, status="RUNNING")
    if info.run_id != run_id:
        sweep.update(run_id=run_id)
    return {PARENT_TAG: run_id}


def sweep_status(sweep: SweepDir) -> str | None:
    """Return how a sweep ended, from how its runs were closed; None while one is open."""
    states = {info.closed if info else None for info in _tracking(sweep)}
    if None in states:
        return None
    # of a search, KILLED ones were pruned
    return FINISHED if states <= {FINISHED, KILLED} else FAILED


def _tracking(sweep: SweepDir) -> list[TrackingInfo | None]:
    found: list[TrackingInfo | None] = []
    for member in sweep.info().members:
        with suppress(UserError):
            found.append(RunDir(sweep.root.with_name(member.run)).info().tracking)
    return found
