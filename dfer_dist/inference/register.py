"""A fold's model in the model registry of the run's tracking server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dfer_dist.inference.export import export
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.mlflow_runs import client, make_runs, tracking_of
from dfer_dist.tracking.uploader import reason
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HASH = "dfer.hash"  # tag: model.json's own


@dataclass(frozen=True)
class Version:
    """A model in the registry; ``known`` if it was there before."""

    name: str
    number: str
    fold: int
    known: bool


def register(run: RunDir, fold: int | None, name: str, alias: str) -> Version:
    """Export the checkpoint that a fold's result is of, log it as a model of the fold's run, and let ``alias`` name it in the registry.

    The same model again makes no second version: the alias moves.

    Parameters
    ----------
    fold : int, optional
        By default the first that is done. It is not chosen by its score, which would be a choice on the test fold.

    Raises
    ------
    UserError
        If the fold is not done, the checkpoint cannot be exported, or the server takes it not.
    """
    done = [k for k in run.describe()["folds"] if run.fold(k).result.exists()]
    if not done or (fold is not None and fold not in done):
        raise UserError(
            f"{run.root}: fold {fold} has no result (done: {done})"
            if done
            else f"{run.root}: no fold has a result yet"
        )
    chosen = done[0] if fold is None else fold
    result = read_json(run.fold(chosen).result)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        about = export(run.fold(chosen).root / result["checkpoint"], out, [])
        try:
            return _put(run, chosen, name, alias, out, about)
        except Exception as e:  # MLflow raises many kinds
            raise UserError(
                f"tracking server {run.describe()['tracking']['uri']}: {reason(e)}"
            ) from e


def _put(
    run: RunDir, fold: int, name: str, alias: str, out: Path, about: dict[str, Any]
) -> Version:
    api = client(tracking_of(run)["uri"])
    if not api.search_registered_models(f"name = '{name}'"):
        api.create_registered_model(name)
    same = [
        v
        for v in api.search_model_versions(f"name = '{name}'")
        if v.tags.get(_HASH) == about["hash"] and v.status == "READY"
    ]
    number = str(same[0].version) if same else _new_version(run, fold, name, out, about, api)
    api.set_registered_model_alias(name, alias, number)
    return Version(name, number, fold, bool(same))


def _new_version(
    run: RunDir, fold: int, name: str, out: Path, about: dict[str, Any], api: MlflowClient
) -> str:
    from mlflow.entities import LoggedModelOutput

    tracking = make_runs(run, api)
    child, tags = (
        tracking["folds"][str(fold)],
        {_HASH: about["hash"], "fold": str(fold), "config_hash": about["config_hash"]},
    )
    logged = api.create_logged_model(
        tracking["experiment_id"], name, source_run_id=child, tags=tags, model_type="DFER-CLIP"
    )
    try:
        api.log_model_artifacts(logged.model_id, str(out))
    except BaseException:
        api.finalize_logged_model(logged.model_id, "FAILED")
        raise
    api.finalize_logged_model(logged.model_id, "READY")
    api.log_outputs(child, [LoggedModelOutput(logged.model_id, about["step"] or 0)])
    version = api.create_model_version(
        name,
        logged.artifact_location,
        run_id=child,
        tags=tags,
        model_id=logged.model_id,
        description=_words(about),
    )
    return str(version.version)


def _words(about: dict[str, Any]) -> str:
    result = about["result"]
    score = (
        f"UAR {result['uar']:.2f}, WAR {result['war']:.2f} on fold {result['fold']} of {about['dataset']}"
        if result
        else "not tested"
    )
    return f"{about['backbone']}, {score}; {about['selection']}"
