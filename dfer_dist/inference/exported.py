"""An exported model: the files of its folder, how they are checked and loaded, and predictions.

Nothing here imports DeepSpeed, MLflow, Submitit or webdataset: predicting needs none of them.
:mod:`dfer_dist.inference.export` describes the folder and writes it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Output, Precision
from dfer_dist.data.loading import augmentation
from dfer_dist.data.loading.augmentation import SpatialView, spatial_views, stack_params
from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.loading.modalities import draw_modality, find_points
from dfer_dist.data.shards.sidecars import PARSING, REGIONS
from dfer_dist.evaluation.evaluate import average_views, clip_logits
from dfer_dist.evaluation.explain import ExplainedClip, explain_clip
from dfer_dist.models.build import build_untrained, inference_dtype, resolve_image_size
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, sha256_file
from dfer_dist.utils.records import Record, stored_as
from dfer_dist.utils.version import package_version

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
BACKBONE = "backbone.json"
INFO = "model.json"
CARD = "README.md"

KIND = "model of dfer_dist"


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Record):
    """The content of ``model.json``: what an exported model is, and where it comes from.

    Attributes
    ----------
    classes : list of C str
        In the order of the logits.
    texts, negative_texts : dict of class name to sentences
        What the text tower reads for each class; the second only with ``model.text_polarity=both``.
        Empty for a linear head.
    parameters : int
        Numbers in all tensors.
    output : str
        ``softmax``, or ``sigmoid`` for classes that do not exclude each other.
    converted_from : dict, optional
        Name and sha256 of the authors' file that the checkpoint was converted from.
    modalities : dict, optional
        How landmarks and parsing maps of the training clips were made.
    result : dict, optional
        The fold's ``result.json``, if it was measured with these weights.
    software : dict of package name to version
    code_hash : str
        Of the sources of the package.
    git_sha : str, optional
        The commit, if no file was edited.
    files : dict of path in the folder to bytes and sha256
    """

    classes: list[str]
    texts: dict[str, list[str]]
    negative_texts: dict[str, list[str]] | None = None
    parameters: int
    backbone: str
    pretrained: str
    dataset: str | None = None
    fold: int | None = None
    epoch: int | None = None
    step: int | None = None
    index_hash: str | None = None
    pretrained_sha256: str | None = None
    converted_from: dict[str, str] | None = None
    config_hash: str
    modalities: dict[str, Any] | None = field(default=None, metadata=stored_as("levels"))
    objective: str
    output: str = "softmax"
    selection: str
    precision: str
    result: dict[str, Any] | None = None
    software: dict[str, str]
    code_hash: str
    git_sha: str | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def temperature(self) -> float | None:
        """That fitted on the validation clips of the training; None if there were none."""
        return (self.result or {}).get("temperature")

    @property
    def method(self) -> str:
        """DFER-CLIP, or the backbone of a linear head."""
        return "DFER-CLIP" if self.texts else self.backbone

    @property
    def hash(self) -> str:
        """sha256 of everything else in ``model.json``."""
        return str(self.to_json()["hash"])

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``model.json``, its hash included."""
        content = {"kind": KIND, **super().to_json()}
        if self.negative_texts is None:
            del content["negative_texts"]
        return {**content, "hash": _hash(content)}

    @classmethod
    def read(cls, path: Path) -> ModelInfo:
        """Read ``model.json`` and hold every file of its folder against its hash.

        Raises
        ------
        UserError
            If the folder holds no exported model, or one of its files is missing or was changed.
        """
        if not path.is_file():
            raise UserError(
                f"{path.parent} is no exported model, it has no {path.name}: "
                "dfer export CHECKPOINT OUT makes one"
            )
        content = read_json(path)
        if content.get("kind") != KIND or content.get("hash") != _hash(content):
            raise UserError(
                f"{path} was changed after it was written: copy or export the model again"
            )
        info = cls.from_json(content, str(path))
        for name, about in info.files.items():
            file = path.parent / name
            if not file.is_file() or sha256_file(file) != about["sha256"]:
                raise UserError(
                    f"{file} is missing or differs from its sha256 in {path.name}: "
                    "copy or export the model again"
                )
        return info


def _hash(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key not in ("version", "hash")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ExportedModel:
    """A loaded model, ready for clips.

    Attributes
    ----------
    config : Config
        Its settings. ``config.data`` and ``config.eval`` choose frames and views, as in an
        evaluation.
    text_features : Tensor, float32 [P C, D], optional
        Features of the class texts, C classes of each of P polarities; None for a linear head.
    """

    folder: Path
    config: Config
    info: ModelInfo
    model: DFERCLIP
    text_features: Tensor | None
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(self.info.classes)

    def logits(self, frames: np.ndarray) -> np.ndarray:
        """Return the logits of clips, as ``dfer eval`` computes them.

        Parameters
        ----------
        frames : uint8 array [N, T, H, W, 3], RGB
            Whole clips of any length and size. The model samples and resizes the frames.

        Returns
        -------
        float32 array [N, C]

        Raises
        ------
        UserError
            If the array has another type or shape; and as :meth:`check_modalities`.
        """
        self.check_modalities()
        has_shape = frames.ndim == 5 and frames.shape[-1] == 3 and 0 not in frames.shape[1:]
        if frames.dtype != np.uint8 or not has_shape:
            raise UserError(
                f"frames are {frames.dtype} {list(frames.shape)}: "
                "give uint8 [clips, frames, height, width, 3], RGB"
            )
        chosen = eval_frames(frames.shape[1], self.config.data, self.config.eval.views).ravel()
        rows = [np.empty((0, len(self.classes)), np.float32)]
        for i in range(0, len(frames), self.config.eval.batch):
            batch = frames[i : i + self.config.eval.batch]
            rows.append(self.forward([self._preprocess_clip(clip, chosen) for clip in batch]))
        return np.concatenate(rows)

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        """Return the softmax of :meth:`logits`, or their sigmoid, float32 [N, C].

        Logits are divided by :attr:`temperature`.
        """
        return probabilities(self.logits(frames) / self.temperature, self.config.model.output)

    @property
    def temperature(self) -> float:
        """That fitted on the validation clips of the training; 1 if there were none."""
        return self.info.temperature or 1.0

    def check_modalities(self) -> None:
        """Check that the model's parsing maps can be drawn from landmarks, as in its training.

        Raises
        ------
        UserError
            If they came from a network or from another program.
        """
        made = (self.info.modalities or {}).get("made", {}).get(PARSING, [REGIONS])
        if made != [REGIONS]:
            raise UserError(
                f"{self.folder} was trained on parsing maps of another source "
                f"({', '.join(made)}), which videos do not have: "
                "test it with dfer eval on enriched shards"
            )

    def preprocess(self, frames: np.ndarray, landmarks: np.ndarray | None) -> Tensor:
        """Crop and resize frames as an evaluation does, and draw the other modalities of each.

        Parameters
        ----------
        frames : uint8 array [T, H, W, 3]
        landmarks : float array [T, 68, 2], optional
            Of the frames, in pixels. A model of frames alone needs none.

        Returns
        -------
        uint8 Tensor [T, K, M, 3, S, S]
            K spatial views, M modalities of each, the frame first.
        """
        test = self.config.eval
        views = spatial_views(test.crops, test.mirror)
        return torch.stack([self._see(frames, landmarks, view) for view in views], 1)

    def _see(self, frames: np.ndarray, landmarks: np.ndarray | None, view: SpatialView) -> Tensor:
        """Return a spatial view of frames, uint8 [T, M, 3, S, S]."""
        size = resolve_image_size(self.config)
        shape = (frames.shape[1], frames.shape[2])
        params = view.params(*shape)
        pixels = torch.from_numpy(np.array(frames))[None]
        images = [augmentation.apply(pixels, stack_params([params]), size)[0]]
        for kind in self.config.model.modalities:
            assert landmarks is not None, "a model with further modalities is given landmarks"
            drawn = torch.from_numpy(draw_modality(kind, landmarks, shape, params, size))
            images.append(drawn.permute(0, 3, 1, 2))
        return torch.stack(images, 1)

    def _preprocess_clip(self, clip: np.ndarray, chosen: np.ndarray) -> Tensor:
        landmarks = find_points(clip)[chosen] if self.config.model.modalities else None
        return self.preprocess(clip[chosen], landmarks)

    @torch.no_grad()
    def forward(self, clips: list[Tensor]) -> np.ndarray:
        """Return the logits of preprocessed clips.

        Parameters
        ----------
        clips : list of N uint8 Tensor [V T, K, M, 3, S, S]
            From :meth:`preprocess`; the V views in time of a clip one after the other.

        Returns
        -------
        float32 array [N, C]
        """
        views, logits = self.config.eval.views, list[Tensor]()
        output = self.config.model.output
        for spatial in range(clips[0].shape[1]):
            seen = torch.stack([clip[:, spatial] for clip in clips]).to(self.device)
            pixels = seen.unflatten(1, (views, -1)).transpose(2, 3).flatten(1, 3)
            logits.append(
                clip_logits(
                    lambda part: self.model(part, self.text_features), pixels, views, output
                )
            )
        return average_views(torch.stack(logits), output).cpu().numpy()

    def explain(self, clip: Tensor) -> ExplainedClip:
        """Explain the most probable class of a clip: its first view in time and in space.

        Parameters
        ----------
        clip : uint8 Tensor [V T, K, M, 3, S, S]
            From :meth:`preprocess`.

        Raises
        ------
        UserError
            As :func:`~dfer_dist.evaluation.explain.explain_clip`.
        """
        view = clip[: len(clip) // self.config.eval.views, 0].transpose(0, 1)
        found = explain_clip(self.model, view.flatten(0, 1).to(self.device), self.text_features)
        return ExplainedClip(view[0].permute(0, 2, 3, 1).numpy(), found)


def probabilities(logits: np.ndarray, output: Output) -> np.ndarray:
    """Return probabilities along the last axis, in the logits' own type."""
    if output is Output.sigmoid:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def load(
    folder: Path | str, device: str | None = None, precision: Precision | str | None = None
) -> ExportedModel:
    """Load an exported model. No pretrained file is needed, and nothing is unpickled.

    Parameters
    ----------
    folder : Path or str
        The output folder of ``dfer export``.
    device : str, optional
        Such as ``cpu`` or ``cuda:1``; by default the GPU if the machine has one.
    precision : Precision or str, optional
        Number format of the towers, ``bf16``, ``fp16`` or ``fp32``; by default that of the
        training. A processor without float16 units computes fp16 in float32.

    Raises
    ------
    UserError
        If the folder holds no exported model, or one of its files is missing or was changed.
    """
    folder = Path(folder)
    info = ModelInfo.read(folder / INFO)
    config = read_config(folder / CONFIG)
    # The random initialization is replaced, so the caller's random state must not change.
    with torch.random.fork_rng(devices=[]):
        model = build_untrained(config, info.classes)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as e:
        raise UserError(
            f"{folder} does not fit this version of dfer_dist ({package_version()}): {e}"
        ) from e
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = inference_dtype(Precision(precision or config.train.precision), target)
    model = model.eval().requires_grad_(False).to(target, dtype)
    with torch.no_grad():
        text_features = model.text_features()
    return ExportedModel(folder, config, info, model, text_features, target)
