"""Register a fold's model in the model registry of the run's tracking server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dfer_dist.inference.export import export
from dfer_dist.inference.exported import ModelInfo
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.mlflow_runs import make_runs, tracking_of
from dfer_dist.tracking.server import client, describe_failure
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# Tag of a model version: the hash in model.json.
_HASH = "dfer.hash"


@dataclass(frozen=True)
class Version:
    """A model version in the registry; ``known`` if it was registered before."""

    name: str
    number: str
    fold: int
    known: bool


def register(run: RunDir, fold: int | None, name: str, alias: str) -> Version:
    """Export the checkpoint of a fold's result, log it in the fold's run, and register it.

    The same model again makes no second version: the alias moves.

    Parameters
    ----------
    fold : int, optional
        By default the first that has a result. A choice by score would be one on the test fold.
    name, alias : str
        The registered model, and the alias to set on its version.

    Raises
    ------
    UserError
        If the fold has no result, the checkpoint cannot be exported, or the server refuses it.
    """
    done = [k for k in run.info().folds if run.fold(k).result.exists()]
    if not done:
        raise UserError(f"{run.root}: no fold has a result yet")
    if fold is None:
        fold = done[0]
    elif fold not in done:
        raise UserError(f"{run.root}: fold {fold} has no result (done: {done})")
    result = read_json(run.fold(fold).result)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        info = export(run.fold(fold).root / result["checkpoint"], out, [])
        try:
            return _register(run, fold, name, alias, out, info)
        # MLflow raises many kinds.
        except Exception as e:
            uri = tracking_of(run).uri
            raise UserError(describe_failure(uri, e)) from e


def _register(run: RunDir, fold: int, name: str, alias: str, out: Path, info: ModelInfo) -> Version:
    api = client(tracking_of(run).uri)
    if not api.search_registered_models(f"name = '{name}'"):
        api.create_registered_model(name)
    versions = api.search_model_versions(f"name = '{name}'")
    same = [v for v in versions if v.tags.get(_HASH) == info.hash and v.status == "READY"]
    version = same[0] if same else _new_version(run, fold, name, out, info, api)
    api.set_registered_model_alias(name, alias, str(version.version))
    return Version(name, str(version.version), fold, bool(same))


def _new_version(
    run: RunDir, fold: int, name: str, out: Path, info: ModelInfo, api: MlflowClient
) -> ModelVersion:
    from mlflow.entities import LoggedModelOutput

    tracking = make_runs(run, api)
    child = tracking.folds[str(fold)]
    tags = {_HASH: info.hash, "fold": str(fold), "config_hash": info.config_hash}
    logged = api.create_logged_model(
        tracking.experiment_id, name, source_run_id=child, tags=tags, model_type=info.method
    )
    status = "FAILED"
    try:
        api.log_model_artifacts(logged.model_id, str(out))
        status = "READY"
    finally:
        api.finalize_logged_model(logged.model_id, status)
    api.log_outputs(child, [LoggedModelOutput(logged.model_id, info.step or 0)])
    return api.create_model_version(
        name,
        logged.artifact_location,
        run_id=child,
        tags=tags,
        model_id=logged.model_id,
        description=_description(info),
    )


def _description(info: ModelInfo) -> str:
    score = "not tested"
    if info.result:
        score = (
            f"UAR {info.result['uar']:.2f}, WAR {info.result['war']:.2f} "
            f"on fold {info.result['fold']} of {info.dataset}"
        )
    return f"{info.backbone}, {score}; {info.selection}"
