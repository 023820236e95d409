"""An exported model's folder as an MLflow model: what MLflow finds in it, and what it calls. Nothing is pickled."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.inference.export import ExportedModel, load
from dfer_dist.inference.predict import STEP, WINDOW, predict_video
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_text

if TYPE_CHECKING:
    from pandas import DataFrame

# what loading a model and predicting clips import; then what films need, and faces in them
NEEDS: tuple[str, ...] = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "einops",
    "safetensors",
    "omegaconf",
    "numpy",
    "pillow",
)
NEEDS += ("simplejpeg", "pyarrow", "fsspec", "pandas")
_VIDEO_PACKAGES = ("av",)
_FACES = ("dlib-bin", "face-recognition-models")


def write_mlflow(folder: Path, classes: list[str]) -> None:
    """Write ``MLmodel``, which names this module in the folder's own ``code`` as the loader, and ``requirements.txt``.

    Inputs have no schema, since they are frames or paths of films: MLflow passes them on as they are.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = [
        ParamSpec("window", "double", WINDOW),
        ParamSpec("step", "double", STEP),
        ParamSpec("faces", "boolean", False),
    ]
    signature = ModelSignature(
        outputs=Schema([ColSpec("double", name) for name in classes]), params=ParamSchema(params)
    )
    model = Model(signature=signature)
    pyfunc.add_to_model(model, loader_module=__name__, code="code")
    model.save(str(folder / "MLmodel"))
    lines = [
        *map(_pinned, (*NEEDS, *_VIDEO_PACKAGES)),
        "# to find faces in films (weights for research only):",
    ]
    write_text(
        folder / "requirements.txt",
        "\n".join([*lines, *(f"# {_pinned(name)}" for name in _FACES)]) + "\n",
    )


def _pinned(name: str) -> str:
    """``name==version``, without what a build of the version adds (2.9.0+cpu), which package indexes do not have."""
    try:
        return f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return name


class PyfuncModel:
    """An exported model as MLflow asks it: ``mlflow.pyfunc.load_model(OUT).predict(…)``."""

    def __init__(self, model: ExportedModel) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> DataFrame:
        """Probabilities, a row for each clip or film and a column for each class.

        Parameters
        ----------
        data : uint8 array [N, T, H, W, 3], or the path of a film, or a list of paths
        params : dict, optional
            For films: ``window``, ``step`` (seconds) and ``faces``, as for :func:`predict_video`. A film's row is :attr:`Course.overall`.

        Raises
        ------
        UserError
            If ``data`` is something else, or a film cannot be read.
        """
        import pandas as pd

        if isinstance(data, np.ndarray):
            return pd.DataFrame(self.model.probabilities(data), columns=list(self.model.classes))
        videos = [data] if isinstance(data, (str, Path)) else data
        if (
            not isinstance(videos, list)
            or not videos
            or not all(isinstance(video, (str, Path)) for video in videos)
        ):
            raise UserError(
                f"{type(data).__name__}: give frames, uint8 [N, T, H, W, 3], or the path of a film, or a list of paths"
            )
        rows = [
            predict_video(self.model, Path(video), **(params or {})).overall for video in videos
        ]
        return pd.DataFrame(
            np.stack(rows),
            columns=list(self.model.classes),
            index=pd.Index([str(f) for f in videos], name="video"),
        )


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow calls; named in ``MLmodel``."""
    return PyfuncModel(load(path))
