"""Making a run folder, or finding the one to go on with."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dfer_dist.config.load import dump_config, load_config, read_config
from dfer_dist.config.schema import NEUTRAL, Config, Supervision, config_hash, flatten, split_batch
from dfer_dist.runs.layout import RunDir, parse_folds
from dfer_dist.runs.provenance import changed_files, collect, environment_lock, snapshot_code
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json, write_text
from launch.slurm.state import is_held

if TYPE_CHECKING:
    from dfer_dist.data.shards.index import Index


def open_run(
    runs: Path,
    name: str | None,
    experiment: str,
    overrides: list[str],
    allow: Sequence[str],
    folds: str | None,
    ranks: int,
) -> tuple[RunDir, list[int]]:
    """The run folder ``runs/name`` for an experiment, made now or gone on with; and its folds. Nothing is made at the tracking server yet.

    Parameters
    ----------
    allow : sequence of str
        What may differ from the run that is there: keys as the error names them, or their beginnings, such as ``optim``.
    folds : str, optional
        Words such as ``1,3-5``; all folds of the data set by default.
    ranks : int
        How many will train a fold. Like the folds, checked before anything is made.

    Raises
    ------
    UserError
        If the settings, folds or ranks do not go together, the shards lack what the model is to see or to learn from beside frames, or the folder is taken: by something that
        is no run, or by a run with other settings, data, code or versions of libraries.
    """
    from dfer_dist.data.captions.store import find_source
    from dfer_dist.data.shards.index import open_index
    from dfer_dist.data.shards.sidecars import describe_modalities
    from dfer_dist.data.shards.store import resolve_cache, settle

    if name is not None and (name in ("", "..") or name != Path(name).name):
        raise UserError(f"--name '{name}': give a plain name; --runs says in which folder")
    config = load_config(experiment, overrides)
    split_batch(config, ranks)
    config.data.shards = settle(config.data.shards)  # jobs run from other folders
    config.data.cache = resolve_cache(config.data.cache)
    index = open_index(config.data, config.data.loss_budget)
    describe_modalities(index, config.model.modalities)
    if config.train.objective is not Supervision.labels:
        find_source(index, config.data.descriptions)
    chosen = index.folds if folds is None else parse_folds(folds, index.folds)
    run = RunDir((runs / (name or Path(experiment).stem)).resolve())
    if run.run.exists() and _failed_at_once(run):
        remove_run(
            run
        )  # a start that failed at once does not keep the name from the mended command
    if run.run.exists():
        done = all(run.fold(k).result.exists() for k in chosen)
        _go_on(run, config, index, allow, done)
        return run, chosen
    if run.root.exists() and any(run.root.iterdir()):
        raise UserError(
            f"{run.root} is not empty and holds no run: remove it or choose another --name"
        )
    try:
        _create(run, config, index, Path(experiment).stem)
    except BaseException:  # Ctrl-C too: a start that is cut short leaves the name free
        shutil.rmtree(run.root, ignore_errors=True)
        raise
    return run, chosen


@contextmanager
def run_lock(run: RunDir) -> Iterator[IO[str]]:
    """Be the only one who opens a run, submits it, or writes its summary. The file keeps the id of the array that opened it last."""
    run.root.parent.mkdir(parents=True, exist_ok=True)
    with run.array.open("a+") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0)
        yield f


def _failed_at_once(run: RunDir) -> bool:
    """Whether all there is of a run are failures before the first step: no figures, no checkpoint, no command at it now."""
    folds = [run.fold(k) for k in run.describe()["folds"]]
    trained = any(
        (f.metrics.exists() and f.metrics.stat().st_size) or f.checkpoints.exists() for f in folds
    )
    states = [read_json(f.status)["state"] for f in folds if f.status.exists()]
    return (
        not trained and bool(states) and set(states) == {"FAILED"} and not any(map(is_held, folds))
    )


def remove_run(run: RunDir) -> None:
    """Make as if a run in which nothing was trained had never been opened."""
    from dfer_dist.tracking.mlflow_runs import delete_runs

    delete_runs(run)
    shutil.rmtree(run.root)


def _create(run: RunDir, config: Config, index: Index, experiment: str) -> None:
    run.root.mkdir(parents=True, exist_ok=True)
    write_text(run.config, dump_config(config))
    write_json(run.provenance, _provenance(index))
    write_text(run.environment, environment_lock())
    snapshot_code(run.code)
    about: dict[str, object] = {
        "name": run.root.name,
        "experiment": experiment,
        "dataset": index.name,
        "classes": list(index.classes),
    }
    about |= {"folds": index.folds, "config_hash": config_hash(config), "index_hash": index.hash}
    from dfer_dist.tracking.mlflow_runs import fresh_tracking

    about |= {"tracking": fresh_tracking(run, config, index.name)}
    write_json(run.run, about)  # last: its presence means that the rest is there


def _provenance(index: Index) -> dict[str, Any]:
    return {
        **collect(sys.argv),
        "data": {"name": index.name, "hash": index.hash, "shards": str(index.root)},
    }


def _go_on(run: RunDir, config: Config, index: Index, allow: Sequence[str], done: bool) -> None:
    """Check that a run is the one that is asked for, and take over settings that change no result, and what else is allowed.

    Where all is ``done``, it does not matter what code would do the rest.
    """
    before, now = flatten(read_config(run.config)), flatten(config)
    new = {k: (before[k], now[k]) for k in now if now[k] != before[k]}
    drift = {
        k: change
        for k, change in new.items()
        if not k.startswith(NEUTRAL) or k.startswith("tracking.")
    }
    drift |= _other_data(run, index) | ({} if done else _other_code(run))
    allowed = {k for k in drift if any(k == a or k.startswith(f"{a}.") for a in allow)}
    allowed = {
        k for k in allowed if not k.startswith("tracking.")
    }  # the server's runs are made once
    odd = [f"{k} was {was}, now {is_}" for k, (was, is_) in drift.items() if k not in allowed]
    if odd:
        raise UserError(
            f"{run.root} belongs to another run: {'; '.join(odd)}. Use the same, --name OTHER for another run, or --allow-drift KEY "
            "to go on with what is now"
        )
    if new or allowed:
        held = [k for k in run.describe()["folds"] if is_held(run.fold(k))]
        if held:
            raise UserError(
                f"another command is working on {run.fold(held[0]).root}: wait for it, or stop it, before settings change"
            )
    if allowed:
        _take_over(run, index, {k: list(drift[k]) for k in sorted(allowed)})
    if new:
        write_text(run.config, dump_config(config))


Drift = dict[str, tuple[object, object]]  # what was and what is, by key


def _other_data(run: RunDir, index: Index) -> Drift:
    was = run.describe()["index_hash"]
    return (
        {}
        if was == index.hash
        else {"index_hash": (was[:12], f"{index.hash[:12]} in {index.root}")}
    )


def _other_code(run: RunDir) -> Drift:
    """The code of this run and the libraries beside it, where they differ from what is here now."""
    then, now = read_json(run.provenance), collect(sys.argv)
    found: Drift = {}
    if then["code_hash"] != now["code_hash"]:
        files = ", ".join(changed_files(run.code)) or "files that are gone"
        found["code"] = (then["code_hash"], f"{now['code_hash']} ({files})")
    versions = [{**x["versions"], "python": x["python"]} for x in (then, now)]
    for name in sorted(versions[0].keys() | versions[1].keys()):
        was, is_ = (v.get(name) for v in versions)
        if was != is_:
            found[f"versions.{name}"] = (was, is_)
    return found


def _take_over(run: RunDir, index: Index, changes: dict[str, list[object]]) -> None:
    """Go on with other things, and keep a record: ``run.json`` has the changes, what was replaced is kept with a number.

    The record comes first. Cut short after it, the same command finds what still differs, and records and does that.
    """
    drifts = [*run.drifts(), {"time": collect(sys.argv)["time"], "changes": changes}]
    run.change(index_hash=index.hash, drift=drifts)
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
    write_json(
        run.provenance, _provenance(index)
    )  # last: until then the same command finds that it differs
