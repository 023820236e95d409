"""Create a run's folder, or find the one to resume."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.config.load import dump_config, load_config, read_config
from dfer_dist.config.schema import NEUTRAL, Config, Supervision, config_hash, flatten, split_batch
from dfer_dist.runs.layout import FoldDir, RunDir, parse_folds
from dfer_dist.runs.provenance import changed_files, collect, environment_lock, snapshot_code
from dfer_dist.runs.records import DataOrigin, DriftRecord, FoldStatus, Provenance
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json, write_text
from launch.locks import is_held

if TYPE_CHECKING:
    from dfer_dist.data.shards.index import Index

_MAX_SHOWN = 3  # changed files in an error

Drift = dict[str, tuple[object, object]]  # old and new value by key


def open_run(
    runs: Path,
    name: str | None,
    experiment: str,
    overrides: list[str],
    allow: Sequence[str],
    folds: str | None,
    ranks: int,
) -> tuple[RunDir, list[int]]:
    """Create the run folder ``runs/name`` for an experiment, or resume it; return it and its folds.

    Nothing is created at the tracking server yet.

    Parameters
    ----------
    allow : sequence of str
        What may differ from an existing run: keys as the error names them, or their beginnings,
        such as ``optim``.
    folds : str, optional
        Such as ``1,3-5``; all folds of the data set by default.
    ranks : int
        Ranks that will train a fold. Like the folds, checked before anything is created.

    Raises
    ------
    UserError
        If settings, folds and ranks do not fit together, if the shards lack a modality or the
        descriptions that the model needs, or if the folder holds something else: files that are no
        run, or a run with other settings, data, code or versions of libraries.
    """
    if name is not None and (name in ("", "..") or name != Path(name).name):
        raise UserError(f"--name '{name}': give a plain name; --runs sets the folder")
    config, index = _load(experiment, overrides, ranks)
    chosen = parse_folds(folds, index.folds)
    run = RunDir((runs / (name or Path(experiment).stem)).resolve())
    # a start that failed at once does not keep the name from the corrected command
    if run.run.exists() and _failed_before_training(run):
        remove_run(run)
    if run.run.exists():
        is_done = all(run.fold(k).result.exists() for k in chosen)
        _resume(run, config, index, allow, is_done)
        return run, chosen
    _create(run, config, index, Path(experiment).stem)
    return run, chosen


def _load(experiment: str, overrides: list[str], ranks: int) -> tuple[Config, Index]:
    """Load settings and index, and check that they and the number of ranks fit together."""
    from dfer_dist.data.captions.store import find_source
    from dfer_dist.data.shards.index import open_index
    from dfer_dist.data.shards.sidecars import describe_modalities
    from dfer_dist.data.shards.store import resolve_cache, resolve_location

    config = load_config(experiment, overrides)
    split_batch(config, ranks)
    # absolute, because jobs run in other folders
    config.data.shards = resolve_location(config.data.shards)
    config.data.cache = resolve_cache(config.data.cache)
    index = open_index(config.data, config.data.loss_budget)
    describe_modalities(index, config.model.modalities)
    if config.train.objective is not Supervision.labels:
        find_source(index, config.data.descriptions)
    return config, index


def _failed_before_training(run: RunDir) -> bool:
    """Return whether all that a run holds are failures before the first step."""
    folds = [run.fold(k) for k in run.info().folds]
    if any(_has_trained(fold) for fold in folds):
        return False
    states = {FoldStatus.read(fold.status).state for fold in folds if fold.status.exists()}
    return states == {"FAILED"} and not any(map(is_held, folds))


def _has_trained(fold: FoldDir) -> bool:
    has_metrics = fold.metrics.exists() and fold.metrics.stat().st_size > 0
    return has_metrics or fold.checkpoints.exists()


def remove_run(run: RunDir) -> None:
    """Delete a run in which nothing was trained, at the tracking server too."""
    from dfer_dist.tracking.mlflow_runs import delete_runs

    delete_runs(run)
    shutil.rmtree(run.root)


def _create(run: RunDir, config: Config, index: Index, experiment: str) -> None:
    if run.root.exists() and any(run.root.iterdir()):
        raise UserError(
            f"{run.root} is not empty and holds no run: remove it or choose another --name"
        )
    try:
        _write_run(run, config, index, experiment)
    # after Ctrl-C too the name is free again
    except BaseException:
        shutil.rmtree(run.root, ignore_errors=True)
        raise


def _write_run(run: RunDir, config: Config, index: Index, experiment: str) -> None:
    from dfer_dist.tracking.mlflow_runs import fresh_tracking

    run.root.mkdir(parents=True, exist_ok=True)
    write_text(run.config, dump_config(config))
    _provenance(index).write(run.provenance)
    write_text(run.environment, environment_lock())
    snapshot_code(run.code)
    about = {
        "name": run.root.name,
        "experiment": experiment,
        "dataset": index.name,
        "classes": list(index.classes),
        "folds": index.folds,
        "config_hash": config_hash(config),
        "index_hash": index.hash,
        "tracking": fresh_tracking(run, config, index.name),
    }
    # last: where it exists, the rest does too
    write_json(run.run, about)


def _provenance(index: Index) -> Provenance:
    data = DataOrigin(index.name, index.hash, str(index.root))
    return replace(collect(sys.argv), data=data)


def _resume(run: RunDir, config: Config, index: Index, allow: Sequence[str], is_done: bool) -> None:
    """Check that an existing run is the one asked for, and apply what may change.

    That are settings that change no result, and the drift that is allowed. Once all folds are
    done, it does not matter which code would train the rest.
    """
    before, now = flatten(read_config(run.config)), flatten(config)
    changed = {key: (before[key], now[key]) for key in now if now[key] != before[key]}
    drift = {key: change for key, change in changed.items() if _matters(key)}
    drift |= _data_drift(run, index)
    if not is_done:
        drift |= _code_drift(run)
    allowed = {key for key in drift if _is_allowed(key, allow)}
    refused = [
        f"{key} was {old}, now {new}" for key, (old, new) in drift.items() if key not in allowed
    ]
    if refused:
        if any(key.startswith("tracking.") for key in drift):
            raise UserError(
                f"{run.root} belongs to another run: {'; '.join(refused)}. Tracking settings are "
                "fixed when a run is created: use the same, or --name OTHER for another run"
            )
        options = " ".join(f"--allow-drift {key}" for key in drift if key not in allowed)
        raise UserError(
            f"{run.root} belongs to another run: {'; '.join(refused)}. Use the same settings, "
            f"--name OTHER for another run, or {options} to resume with the new ones"
        )
    if not changed and not allowed:
        return
    held = [k for k in run.info().folds if is_held(run.fold(k))]
    if held:
        raise UserError(
            f"another command is working on {run.fold(held[0]).root}: "
            "wait for it, or stop it, before settings change"
        )
    if allowed:
        _apply_drift(run, index, {key: list(drift[key]) for key in sorted(allowed)})
    if changed:
        write_text(run.config, dump_config(config))


def _matters(key: str) -> bool:
    """Return whether a changed setting is a drift; MLflow runs are created once."""
    return key.startswith("tracking.") or not key.startswith(NEUTRAL)


def _is_allowed(key: str, allow: Sequence[str]) -> bool:
    is_named = any(key == name or key.startswith(f"{name}.") for name in allow)
    return is_named and not key.startswith("tracking.")


def _data_drift(run: RunDir, index: Index) -> Drift:
    old = run.info().index_hash
    if old == index.hash:
        return {}
    return {"index_hash": (old[:12], f"{index.hash[:12]} in {index.root}")}


def _code_drift(run: RunDir) -> Drift:
    """Return how code and libraries differ from those of the run."""
    old, new = Provenance.read(run.provenance), collect(sys.argv)
    drift: Drift = {}
    if old.code_hash != new.code_hash:
        drift["code"] = (old.code_hash, f"{new.code_hash} ({_changed_files(run)})")
    old_versions = {**old.versions, "python": old.python}
    new_versions = {**new.versions, "python": new.python}
    for name in sorted(old_versions.keys() | new_versions.keys()):
        change = (old_versions.get(name), new_versions.get(name))
        if change[0] != change[1]:
            drift[f"versions.{name}"] = change
    return drift


def _changed_files(run: RunDir) -> str:
    """Return the first changed files of the code, and how many more changed."""
    files = changed_files(run.code)
    shown = ", ".join(files[:_MAX_SHOWN]) or "files that are gone"
    return f"{shown} and {len(files) - _MAX_SHOWN} more" if len(files) > _MAX_SHOWN else shown


def _apply_drift(run: RunDir, index: Index, changes: dict[str, list[object]]) -> None:
    """Record changes in ``run.json`` and keep what they replace under a number.

    The record comes first. After an interruption the same command finds what still differs, and
    records and applies that.
    """
    drifts = [*run.info().drift, DriftRecord(collect(sys.argv).time, changes)]
    run.update_info(index_hash=index.hash, drift=drifts)
    number = len(drifts)
    if "code" in changes:
        new = run.code.with_name(".code-new")
        shutil.rmtree(new, ignore_errors=True)
        snapshot_code(new)
        if run.code.exists():
            run.code.rename(run.code.with_name(f"code-{number}"))
        new.rename(run.code)
    for file in (run.provenance, run.environment):
        if file.exists():
            write_text(file.with_stem(f"{file.stem}-{number}"), file.read_text(encoding="utf-8"))
    write_text(run.environment, environment_lock())
    # last: until then the same command finds that the provenance differs
    _provenance(index).write(run.provenance)
