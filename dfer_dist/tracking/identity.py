"""Which MLflow runs belong to a run's folder: a copy of a folder gets MLflow runs of its own.

``run.json`` records the folder for which they were created. A folder that was renamed on its file
system keeps them. So does a folder that was copied or moved together with the sqlite store next
to it: the copy of the store is its own.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from dfer_dist.config.checks import check_uri
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, TrackingConfig
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import TrackingInfo
from dfer_dist.tracking.metric_names import VERSION
from dfer_dist.tracking.server import SQLITE, lock_if_possible
from dfer_dist.utils.errors import UserError

logger = logging.getLogger(__name__)

_URI, _EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
_ID = "MLFLOW_EXPERIMENT_ID"
# Where MLflow's tables have the place of files.
_FILE_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def default_store(runs: Path) -> Path:
    """Return the sqlite store of the runs in a folder."""
    return runs / "mlflow.db"


def artifact_folder(runs: Path) -> str:
    """Return the URL of the artifacts of runs in a folder, in a sqlite store."""
    return (runs / "mlartifacts").resolve().as_uri()


def environment_settings(tracking: TrackingConfig) -> dict[str, str]:
    """Return MLflow's own variables that replace settings which are not set, with their values.

    Of an experiment's name and id the name counts.
    """
    if not tracking.enabled:
        return {}
    experiment = tracking.experiment
    settings = {_URI: tracking.uri, _EXPERIMENT: experiment, _ID: experiment}
    silent = [name for name, value in settings.items() if value is None]
    # files of variables leave blanks around a value
    found = {name: value for name in silent if (value := os.environ.get(name, "").strip())}
    if _EXPERIMENT in found:
        found.pop(_ID, None)
    return found


def store_uri(tracking: TrackingConfig, runs: Path) -> str:
    """Return the URI of the server of runs in a folder.

    Raises
    ------
    UserError
        If ``MLFLOW_TRACKING_URI`` counts and is not supported.
    """
    uri = tracking.uri
    if variable := environment_settings(tracking).get(_URI):
        check_uri(variable, _URI)
        uri = variable
    if uri is None:
        return f"{SQLITE}{default_store(runs)}"
    if uri.startswith(SQLITE):
        # Jobs run in other folders.
        file = os.path.expanduser(uri.removeprefix(SQLITE))
        return f"{SQLITE}{Path(file).absolute()}"
    return uri.rstrip("/")


def fresh_tracking(run: RunDir, config: Config, dataset: str) -> TrackingInfo | None:
    """Return ``tracking`` of a new ``run.json``; None if tracking is disabled.

    Raises
    ------
    UserError
        As for :func:`store_uri`.
    """
    if not config.tracking.enabled:
        return None
    variables = environment_settings(config.tracking)
    return TrackingInfo(
        uri=store_uri(config.tracking, run.root.parent),
        key=uuid.uuid4().hex,
        experiment=config.tracking.experiment or variables.get(_EXPERIMENT, dataset),
        experiment_id=variables.get(_ID),
        root=str(run.root),
        inode=_inode(run),
        metric_names=VERSION,
    )


def own_tracking(run: RunDir) -> TrackingInfo | None:
    """Return ``tracking`` of ``run.json``, a new one if the folder is a copy of another.

    Every command that writes to the server calls this first.
    """
    tracking = run.info().tracking
    if tracking is None or tracking.root == str(run.root):
        return tracking
    with lock_if_possible(run.root / ".tracking.lock"):
        tracking = run.info().tracking
        # another process did it meanwhile
        if tracking is None or tracking.root == str(run.root):
            return tracking
        own = _claim(run, tracking)
        changes: dict[str, object] = {"tracking": own}
        if own is None or own.key != tracking.key:
            # the original is in the sweep
            changes["sweep"] = ""
        run.update_info(**changes)
        return own


def _claim(run: RunDir, tracking: TrackingInfo) -> TrackingInfo | None:
    """Return ``tracking`` of a run whose folder has another path than the recorded one."""
    recorded = _recorded_root(run, tracking)
    old, new = default_store(recorded.parent), default_store(run.root.parent)
    has_moved_store = tracking.uri == f"{SQLITE}{old}" and old != new
    own = replace(tracking, root=str(run.root), inode=_inode(run))
    has_same_name = recorded.name == run.root.name
    if has_moved_store and has_same_name and _take_store(old, new, tracking.run_id):
        return replace(own, uri=f"{SQLITE}{new}")
    if _is_same_folder(run, tracking, recorded) and not (has_moved_store and not old.exists()):
        return own
    logger.warning(f"{run.root} was copied from {recorded}: it gets MLflow runs of its own")
    forget_sent(run)
    fresh = fresh_tracking(run, read_config(run.config), run.info().dataset)
    return fresh and replace(fresh, closed=tracking.closed, given_up=tracking.given_up)


def _recorded_root(run: RunDir, tracking: TrackingInfo) -> Path:
    """Return the folder for which the MLflow runs were created."""
    if tracking.root:
        return Path(tracking.root)
    # Earlier versions recorded it only as the place of the default store.
    if read_config(run.config).tracking.uri is None and tracking.uri.startswith(SQLITE):
        return Path(tracking.uri.removeprefix(SQLITE)).parent / (run.info().name or run.root.name)
    return run.root


def _is_same_folder(run: RunDir, tracking: TrackingInfo, recorded: Path) -> bool:
    """Return whether the folder is the recorded one: renamed, or under another path."""
    with suppress(OSError):
        if recorded.samefile(run.root):
            return True
    if tracking.inode is None or tracking.inode != _inode(run):
        return False
    # a copy of it may have taken its place
    with suppress(UserError):
        at_its_place = RunDir(recorded).info().tracking
        return at_its_place is None or at_its_place.key != tracking.key
    return True


def _inode(run: RunDir) -> int | None:
    """Return what a folder keeps when it is renamed; None before it exists."""
    with suppress(OSError):
        return run.root.stat().st_ino
    return None


def _take_store(old: Path, new: Path, run_id: str | None) -> bool:
    """Let files in a store that was at ``old`` be next to it; return whether it has the run."""
    if run_id is None or not new.exists() or (old.exists() and old.samefile(new)):
        return False
    before, after = artifact_folder(old.parent), artifact_folder(new.parent)
    try:
        with closing(sqlite3.connect(new)) as store, store:
            if not store.execute("SELECT 1 FROM runs WHERE run_uuid = ?", [run_id]).fetchone():
                return False
            for table, column in _FILE_COLUMNS:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    [after, len(before) + 1, len(before), before],
                )
    except sqlite3.Error as e:
        logger.warning(f"{new} cannot be read: {e}")
        return False
    return True


def forget_sent(run: RunDir) -> None:
    """Let all metrics and files be sent again, to MLflow runs that have none."""
    for file in (*run.root.glob("*.sent"), *run.root.glob("fold-*/*.sent")):
        file.unlink()
