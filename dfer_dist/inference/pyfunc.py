"""An exported model's folder as an MLflow model: the files MLflow reads, and the loader it calls.

Nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.inference.exported import ExportedModel, load
from dfer_dist.inference.predict import STEP, WINDOW, predict_video
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_text
from dfer_dist.utils.version import installed_version

if TYPE_CHECKING:
    from pandas import DataFrame

# Distributions that loading a model and predicting clips import.
REQUIREMENTS = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "einops",
    "safetensors",
    "omegaconf",
    "psutil",
    "numpy",
    "pillow",
    "simplejpeg",
    "pyarrow",
    "fsspec",
    "pandas",
)


def write_mlflow(folder: Path, classes: Sequence[str]) -> None:
    """Write ``MLmodel`` and ``requirements.txt``.

    ``MLmodel`` names this module, from the folder's own ``code``, as the loader. Inputs have no
    schema, since they are frames or paths of videos: MLflow passes them on as they are.
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
    outputs = Schema([ColSpec("double", name) for name in classes])
    model = Model(signature=ModelSignature(outputs=outputs, params=ParamSchema(params)))
    pyfunc.add_to_model(model, loader_module=__name__, code="code")
    model.save(str(folder / "MLmodel"))
    lines = [
        *map(_pinned, (*REQUIREMENTS, "av")),
        "# to find faces in videos (weights for research only):",
        *(f"# {_pinned(name)}" for name in ("dlib-bin", "face-recognition-models")),
    ]
    write_text(folder / "requirements.txt", "\n".join(lines) + "\n")


def _pinned(name: str) -> str:
    """Return ``name==version`` without a local version (2.9.0+cpu), which no index has."""
    version = installed_version(name)
    return name if version is None else f"{name}=={version.partition('+')[0]}"


class PyfuncModel:
    """An exported model behind MLflow's interface: ``mlflow.pyfunc.load_model(OUT).predict(…)``."""

    def __init__(self, model: ExportedModel) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> DataFrame:
        """Return probabilities: a row for each clip or video, a column for each class.

        Parameters
        ----------
        data : uint8 array [N, T, H, W, 3], or the path of a video, or a list of paths
        params : dict, optional
            For videos: ``window``, ``step`` (seconds) and ``faces``, as for :func:`predict_video`.
            The row of a video is :attr:`VideoPrediction.overall`.

        Raises
        ------
        UserError
            If ``data`` is something else, or a video cannot be read.
        """
        import pandas as pd

        columns = list(self.model.classes)
        if isinstance(data, np.ndarray):
            return pd.DataFrame(self.model.probabilities(data), columns=columns)
        videos = data if isinstance(data, list) else [data]
        if not videos or not all(isinstance(video, (str, Path)) for video in videos):
            raise UserError(
                f"{type(data).__name__}: give frames, uint8 [N, T, H, W, 3], or the path of a "
                "video, or a list of paths"
            )
        predictions = [predict_video(self.model, Path(v), **(params or {})) for v in videos]
        index = pd.Index(map(str, videos), name="video")
        return pd.DataFrame([p.overall for p in predictions], columns=columns, index=index)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Load the model for MLflow, which finds this function through ``MLmodel``."""
    return PyfuncModel(load(path))
