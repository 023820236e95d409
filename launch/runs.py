"""Create a run's folder, or find the one to resume."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.config.load import dump_config, load_config, read_config
from dfer_dist.config.schema import NEUTRAL, Config, Supervision, config_hash, flatten, split_batch
from dfer_dist.runs.layout import RunDir, parse_folds
from dfer_dist.runs.provenance import changed_files, collect, environment_lock, snapshot_code
from dfer_dist.runs.records import DataOrigin, DriftRecord, Provenance, RunInfo
from dfer_dist.runs.sweep import sweep_of
from dfer_dist.utils.errors import UserError, first_of
from dfer_dist.utils.files import write_text
from launch.console import print_line
from launch.locks import is_held
from launch.progress import read_status

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
        If settings, folds and ranks do not fit together, if the shards lack a modality,
        descriptions or votes that are trained on, if a class has no text, or if the folder holds
        something else: files that are no run, or a run with other settings, data, code or versions
        of libraries.
    """
    check_name(name)
    config, index = load_experiment(experiment, overrides, ranks)
    chosen = parse_folds(folds, known_folds(config, index))
    run = RunDir((runs / (name or Path(experiment).stem)).resolve())
    # a start that failed at once does not keep the name from the corrected command
    if run.run.exists() and _failed_before_training(run):
        remove_run(run)
    if run.run.exists():
        is_done = all(run.fold(k).result.exists() for k in chosen)
        _resume(run, config, index, allow, is_done)
        _request(run, chosen)
        return run, chosen
    # PYTHONPATH cannot hold a path with a colon, Slurm writes no output into one with a backslash
    if unusable := re.search(r"[:\\\n]", str(run.root)):
        what = f"ranks cannot use a path with {unusable[0]!r}"
        raise UserError(f"{run.root}: {what}: choose another --runs or --name")
    _create(run, config, index, Path(experiment).stem, chosen)
    return run, chosen


def check_name(name: str | None) -> None:
    """Refuse a name that is a path.

    Raises
    ------
    UserError
    """
    if name is not None and (name in ("", "..") or name != Path(name).name):
        raise UserError(f"--name '{name}': give a plain name; --runs sets the folder")


def load_experiment(experiment: str, overrides: list[str], ranks: int) -> tuple[Config, Index]:
    """Load settings and index, and check that they and the number of ranks fit together."""
    from dfer_dist.data.captions.store import read as read_descriptions
    from dfer_dist.data.folds.packed import open_folds
    from dfer_dist.data.loading.votes import check_votes
    from dfer_dist.data.shards.joint import open_sets, sets_of
    from dfer_dist.data.shards.sidecars import describe_modalities
    from dfer_dist.data.shards.store import resolve_cache, resolve_locations
    from dfer_dist.evaluation.multilabel import check_labels
    from dfer_dist.models.class_texts import polarity_texts

    config = load_config(experiment, overrides)
    split_batch(config, ranks)
    # absolute, because jobs run in other folders
    config.data.shards = resolve_locations(config.data.shards)
    config.data.cache = resolve_cache(config.data.cache)
    index = open_sets(config.data, config.data.loss_budget)
    if config.data.folds:
        config.data.folds = str(Path(config.data.folds).expanduser().resolve())
        if overlay := open_folds(config.data, index):
            config.data.folds_hash = overlay.hash
    describe_modalities(index, config.model.modalities)
    check_votes(index, config)
    polarity_texts(index.classes, config.model)
    for own in sets_of(index):
        check_labels(own, config.model.output)
    if config.train.objective is not Supervision.labels:
        for own in sets_of(index):
            read_descriptions(own).choose(config.data.descriptions)
    return config, index


def known_folds(config: Config, index: Index) -> list[int]:
    """Return the numbers of the folds that can be trained."""
    from dfer_dist.data.folds.clips import fold_numbers
    from dfer_dist.data.folds.overlay import FoldOverlay

    overlay = FoldOverlay.read(Path(config.data.folds)) if config.data.folds else None
    return fold_numbers(index, overlay)


def _failed_before_training(run: RunDir) -> bool:
    """Return whether all that a run holds are failures before the first step."""
    states = set()
    for fold in map(run.fold, run.info().folds):
        has_metrics = fold.metrics.exists() and fold.metrics.stat().st_size > 0
        if has_metrics or fold.checkpoints.exists() or is_held(fold):
            return False
        states.add(read_status(fold).state)
    return states - {""} == {"FAILED"}


def remove_run(run: RunDir) -> None:
    """Delete a run in which nothing was trained, at the tracking server too.

    A sweep goes with its last run; a search stays.
    """
    from dfer_dist.tracking.mlflow_runs import delete_runs

    sweep = sweep_of(run)
    delete_runs(run)
    shutil.rmtree(run.root)
    if sweep and not sweep.runs() and not sweep.search.is_file():
        shutil.rmtree(sweep.root)


def _request(run: RunDir, folds: list[int]) -> None:
    """Record that folds were asked for, besides earlier ones, for ``dfer resume``."""
    before = run.info().requested
    requested = sorted({*before, *folds})
    # a run of an earlier version resumes all folds
    if before and requested != before:
        run.update_info(requested=requested)


def _create(
    run: RunDir, config: Config, index: Index, experiment: str, requested: list[int]
) -> None:
    from dfer_dist.tracking.identity import environment_settings, fresh_tracking

    if run.root.exists() and any(run.root.iterdir()):
        raise UserError(
            f"{run.root} is not empty and holds no run: remove it or choose another --name"
        )
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        if config.data.folds:
            # jobs read the copy, which nobody edits
            shutil.copyfile(config.data.folds, run.folds)
            config.data.folds = str(run.folds)
        write_text(run.config, dump_config(config))
        _provenance(index).write(run.provenance)
        write_text(run.environment, environment_lock())
        snapshot_code(run.code)
        info = RunInfo(
            name=run.root.name,
            experiment=experiment,
            dataset=index.name,
            classes=list(index.classes),
            folds=known_folds(config, index),
            config_hash=config_hash(config),
            index_hash=index.hash,
            tracking=fresh_tracking(run, config, index.name),
            requested=requested,
        )
        # last: where it exists, the rest does too
        info.write(run.run)
        if variables := environment_settings(config.tracking):
            values = ", ".join(f"{name}={value}" for name, value in variables.items())
            print_line(f"MLflow: using {values} of the environment")
    # after Ctrl-C too the name is free again
    except BaseException:
        shutil.rmtree(run.root, ignore_errors=True)
        raise


def command_line() -> list[str]:
    """Return the command line without the signature of a URL, which is a password for some time."""
    return [re.sub(r"^(data\.shards=[^?]*\?).*", r"\1…", word) for word in sys.argv]


def _provenance(index: Index) -> Provenance:
    from dfer_dist.data.shards.joint import sets_of

    sets = [DataOrigin(own.name, own.hash, str(own.root)) for own in sets_of(index)]
    data = sets[0]
    if len(sets) > 1:
        data = DataOrigin(index.name, index.hash, ", ".join(own.shards for own in sets), sets)
    return replace(collect(command_line()), data=data)


def _resume(run: RunDir, config: Config, index: Index, allow: Sequence[str], is_done: bool) -> None:
    """Check that an existing run is the one asked for, and apply what may change.

    That are settings that change no result, and the drift that is allowed. Once all folds are
    done, it does not matter which code would train the rest.
    """
    if config.data.folds:
        config.data.folds = str(run.folds)
    changed = find_changes(flatten(read_config(run.config)), flatten(config))
    drift = {key: change for key, change in changed.items() if _matters(key)}
    old_index = run.info().index_hash
    if old_index != index.hash:
        where = ", ".join(config.data.locations)
        drift["index_hash"] = (old_index[:12], f"{index.hash[:12]} in {where}")
    if not is_done:
        drift |= _code_drift(run)
    refused = {key: change for key, change in drift.items() if not _is_allowed(key, allow)}
    if refused:
        options = " ".join(f"--allow-drift {key}" for key in refused)
        remedy = f"--name OTHER for another run, or {options} to resume with the new ones"
        if any(map(_is_fixed, drift)):
            remedy = "or --name OTHER for another run: tracking and folds are set when one is made"
        listed = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in refused.items())
        raise UserError(
            f"{run.root} belongs to another run: {listed}. Use the same settings, {remedy}"
        )
    if not changed and not drift:
        return
    for fold in map(run.fold, run.info().folds):
        if is_held(fold):
            raise UserError(f"another command is working on {fold.root}: wait for it, or stop it")
    if drift:
        _apply_drift(run, index, {key: list(drift[key]) for key in sorted(drift)})
    if changed:
        write_text(run.config, dump_config(config))


def find_changes(old: Mapping[str, object], new: Mapping[str, object]) -> Drift:
    """Return what differs, None for what is missing."""
    changes = {key: (old.get(key), new.get(key)) for key in {**old, **new}}
    return {key: change for key, change in changes.items() if change[0] != change[1]}


def _is_fixed(key: str) -> bool:
    """Return whether a setting cannot change during a run."""
    return key.startswith("tracking.") or key == "data.folds_hash"


def _matters(key: str) -> bool:
    """Return whether a changed setting is a drift; MLflow runs are created once."""
    return _is_fixed(key) or key not in NEUTRAL


def _is_allowed(key: str, allow: Sequence[str]) -> bool:
    is_named = any(key == name or key.startswith(f"{name}.") for name in allow)
    return is_named and not _is_fixed(key)


def _code_drift(run: RunDir) -> Drift:
    """Return how code and libraries differ from those of the run."""
    old, new = Provenance.read(run.provenance), collect(command_line())
    drift = find_changes(_versions(old), _versions(new))
    if old.code_hash != new.code_hash:
        files = first_of(changed_files(run.code), _MAX_SHOWN) or "files that are gone"
        drift["code"] = (old.code_hash, f"{new.code_hash} ({files})")
    return drift


def _versions(provenance: Provenance) -> dict[str, str]:
    versions = {**provenance.versions, "python": provenance.python}
    return {f"versions.{name}": version for name, version in versions.items()}


def _apply_drift(run: RunDir, index: Index, changes: dict[str, list[object]]) -> None:
    """Record changes in ``run.json`` and keep what they replace under a number.

    The record comes first. After an interruption the same command finds what still differs, and
    records and applies that.
    """
    drifts = [*run.info().drift, DriftRecord(collect(command_line()).time, changes)]
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
