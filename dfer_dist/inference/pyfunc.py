"""An exported model's folder as an MLflow model: the files MLflow reads, and the loader it calls.

Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.inference.exported import ExportedModel, load
from dfer_dist.inference.portable_backbone import TOKENIZER
from dfer_dist.inference.predict import STEP, WINDOW, predict_video
from dfer_dist.inference.pyfunc_inputs import Input, parse_inputs
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_text
from dfer_dist.utils.version import installed_version

if TYPE_CHECKING:
    from pandas import DataFrame

TEMPLATES = Path(__file__).with_name("templates")
# Distributions that loading a model and predicting clips import.
REQUIREMENTS = tuple((TEMPLATES / "requirements.txt").read_text("utf-8").split())

# MLflow's names of an input and of a request to its server.
_EXAMPLE, _REQUEST = "input_example.json", "serving_input_example.json"


def write_mlflow(folder: Path, classes: Sequence[str]) -> None:
    """Write ``MLmodel``, an example of its input, and ``requirements.txt``.

    ``MLmodel`` names this module, from the folder's own ``code``, as the loader. The schema of the
    inputs is an array of any objects, since they are frames or videos: MLflow passes arrays and
    tables of one column on as they are.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    params = [
        ParamSpec("window", "double", WINDOW),
        ParamSpec("step", "double", STEP),
        ParamSpec("faces", "boolean", False),
    ]
    inputs = Schema([TensorSpec(np.dtype(object), (-1,))])
    outputs = Schema([ColSpec("double", name) for name in classes])
    signature = ModelSignature(inputs, outputs, ParamSchema(params))
    example = {"type": "ndarray", "artifact_path": _EXAMPLE, "serving_input_path": _REQUEST}
    model = Model(signature=signature, saved_input_example_info=example)
    black = np.zeros((1, 2, 4, 4, 3), np.uint8).tolist()
    write_text(folder / _EXAMPLE, json.dumps(black))
    write_text(folder / _REQUEST, json.dumps({"inputs": black}))
    pyfunc.add_to_model(model, loader_module=__name__, code="code")
    model.save(str(folder / "MLmodel"))
    # A tokenizer of the Hub.
    optional = ("transformers",) if (folder / TOKENIZER).is_dir() else ()
    lines = [
        *map(_pinned, (*REQUIREMENTS, "av", *optional)),
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
        data : uint8 array [N, T, H, W, 3], or as :func:`parse_inputs`
        params : dict, optional
            For videos: ``window``, ``step`` (seconds) and ``faces``, as for :func:`predict_video`.
            The row of a video is :attr:`VideoPrediction.overall`.

        Raises
        ------
        UserError
            If ``data`` is something else, or a video cannot be read. A server answers with its
            text and status 400.
        """
        import pandas as pd

        columns = list(self.model.classes)
        try:
            if isinstance(data, np.ndarray) and data.dtype == np.uint8:
                return pd.DataFrame(self.model.probabilities(data), columns=columns)
            inputs = parse_inputs(data)
            rows = [self._predict_one(item, i, params or {}) for i, item in enumerate(inputs, 1)]
        except UserError as e:
            from dfer_dist.inference.pyfunc_errors import RefusedInput

            raise RefusedInput(str(e)) from e
        names = [str(item) if isinstance(item, Path) else i for i, item in enumerate(inputs)]
        return pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="video"))

    def _predict_one(self, item: Input, number: int, params: dict[str, Any]) -> np.ndarray:
        """Return the probabilities of a clip or a video, float32 [C]."""
        if isinstance(item, np.ndarray):
            return self.model.probabilities(item[None])[0]
        if isinstance(item, Path):
            return predict_video(self.model, item, **params).overall
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"input {number}"
            file.write_bytes(item)
            try:
                return predict_video(self.model, file, **params).overall
            except UserError as e:
                raise UserError(str(e).replace(f"{folder}/", "")) from e


def _load_pyfunc(path: str) -> PyfuncModel:
    """Load the model for MLflow, which finds this function through ``MLmodel``."""
    return PyfuncModel(load(path))
