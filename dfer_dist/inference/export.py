"""A model on its own: one folder that needs no pretrained file, no data set and no DeepSpeed.

::

    OUT/
      model.safetensors             all weights in float32, frozen ones too
      config.yaml                   settings; the texts of the classes stand in model.sentences and model.negative_sentences
      backbone.json                 sizes of the towers, only where they were a file
      model.json                    classes, origin, the fold's result, sha256 of the files above
      README.md                     the model card
      MLmodel  requirements.txt     the same folder as an MLflow model
      code/dfer_dist/               this package, so that the folder loads where it is not installed

Nothing in it is pickled. :func:`export` writes one, whole or not at all; :func:`load` reads one, after checking the hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import dfer_dist
from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.load import dump_config, load_config, read_config
from dfer_dist.config.schema import Config, Precision, TrackingConfig
from dfer_dist.data.loading import augmentation
from dfer_dist.data.loading.augmentation import AugmentParams, stack_params
from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.loading.modalities import draw_modality, find_points
from dfer_dist.data.shards.sidecars import PARSING, REGIONS
from dfer_dist.evaluation.evaluate import clip_logits, load_model
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import (
    VERSION,
    atomic_path,
    fsync_dir,
    read_json,
    sha256_file,
    write_json,
    write_text,
)

WEIGHTS, CONFIG, BACKBONE, ABOUT, CARD = (
    "model.safetensors",
    "config.yaml",
    "backbone.json",
    "model.json",
    "README.md",
)
KIND = "model of dfer_dist"

_WHERE = "model.pretrained"  # the setting that tells where something lies, not what the model is


@dataclass(frozen=True)
class ExportedModel:
    """A loaded model, ready for clips.

    Attributes
    ----------
    config : Config
        Its settings; frames are chosen by ``config.data`` and ``config.eval.views``, as in an evaluation.
    classes : tuple of C str
        In the order of the logits.
    about : dict
        The content of ``model.json``.
    """

    folder: Path
    config: Config
    classes: tuple[str, ...]
    about: dict[str, Any]
    model: DFERCLIP
    text: Tensor
    device: torch.device

    def logits(self, frames: np.ndarray) -> np.ndarray:
        """Logits of clips, as ``dfer eval`` computes them.

        Parameters
        ----------
        frames : uint8 array [N, T, H, W, 3], RGB
            Whole clips of any length and size: which frames are seen, and how they become squares, is the model's business.

        Returns
        -------
        float32 array [N, C]

        Raises
        ------
        UserError
            If the array has another type or shape; and as :meth:`check_modalities`.
        """
        self.check_modalities()
        if (
            frames.dtype != np.uint8
            or frames.ndim != 5
            or frames.shape[-1] != 3
            or 0 in frames.shape[1:]
        ):
            raise UserError(
                f"frames are {frames.dtype} {list(frames.shape)}: give uint8 [clips, frames, height, width, 3], RGB"
            )
        chosen = eval_frames(frames.shape[1], self.config.data, self.config.eval.views).ravel()
        rows = [np.empty((0, len(self.classes)), np.float32)]
        for i in range(0, len(frames), self.config.eval.batch):
            some = frames[i : i + self.config.eval.batch]
            rows.append(
                self.forward(
                    [self.pictures(clip[chosen], self._points(clip, chosen)) for clip in some]
                )
            )
        return np.concatenate(rows)

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        """Softmax of :meth:`logits`, float32 [N, C]."""
        return softmax(self.logits(frames))

    def check_modalities(self) -> None:
        """Whether what the model sees beside frames can be drawn here, as it was for its training.

        Raises
        ------
        UserError
            If its parsing maps came from a network or from elsewhere.
        """
        made = (self.about.get("levels") or {}).get("made", {}).get(PARSING, [REGIONS])
        if made != [REGIONS]:
            raise UserError(
                f"{self.folder} learned from parsing maps of another source ({', '.join(made)}), which films do not have: test it with dfer eval on enriched shards"
            )

    def pictures(self, frames: np.ndarray, points: np.ndarray | None) -> Tensor:
        """Frames uint8 [T, H, W, 3] as the model reads them, resized as an evaluation does, each with its L levels: uint8 [T, 1 + L, 3, S, S].

        Levels are drawn from ``points``, landmarks of the frames, float [T, 68, 2]; a model without levels needs none.
        """
        size = self.config.data.image_size
        assert size is not None, "settled when the folder was written"
        shape = (frames.shape[1], frames.shape[2])
        params = stack_params([AugmentParams.identity(*shape)])
        seen = [augmentation.apply(torch.from_numpy(np.array(frames))[None], params, size)[0]]
        for kind in self.config.model.modalities:
            assert points is not None, "a model with levels is given landmarks"
            seen.append(
                torch.from_numpy(draw_modality(kind, points, shape, size)).permute(0, 3, 1, 2)
            )
        return torch.stack(seen, 1)

    def _points(self, clip: np.ndarray, chosen: np.ndarray) -> np.ndarray | None:
        return find_points(clip)[chosen] if self.config.model.modalities else None

    @torch.no_grad()
    def forward(self, clips: list[Tensor]) -> np.ndarray:
        """Logits float32 [N, C] of :meth:`pictures` of chosen frames: N tensors uint8 [V T, 1 + L, 3, S, S], the views one after the other."""
        by_view = torch.stack(clips).to(self.device).unflatten(1, (self.config.eval.views, -1))
        pixels = by_view.transpose(2, 3).flatten(1, 3)
        return (
            clip_logits(lambda part: self.model(part, self.text), pixels, self.config.eval.views)
            .cpu()
            .numpy()
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the last axis, in the logits' own type."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def load(
    folder: Path | str, device: str | None = None, precision: Precision | str | None = None
) -> ExportedModel:
    """Read an exported model. DeepSpeed and pretrained files are not needed, and nothing is unpickled.

    Parameters
    ----------
    folder : Path or str
        What ``dfer export`` wrote.
    device : str, optional
        Such as ``cpu`` or ``cuda:1``; by default the GPU where there is one.
    precision : Precision or str, optional
        Number format of the towers, ``bf16`` or ``fp32``; by default the one that the checkpoint was tested in.

    Raises
    ------
    UserError
        If the folder is none, or a file of it is missing or was changed.
    """
    folder = Path(folder)
    about = _check(folder)
    config, classes = read_config(folder / CONFIG), tuple(about["classes"])
    assert config.data.image_size is not None
    with torch.random.fork_rng(
        devices=[]
    ):  # the random start is replaced: the caller's random numbers stay as they were
        model = build_model(
            replace(config.model, pretrained="none"),
            classes,
            config.data.num_frames,
            config.data.image_size,
        )
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as e:
        raise UserError(
            f"{folder} does not fit this version of the program ({dfer_dist.__version__}): {e}"
        ) from e
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fast = (Precision(precision) if precision else config.train.precision) is Precision.bf16
    model = model.eval().requires_grad_(False).to(where, torch.bfloat16 if fast else torch.float32)
    with torch.no_grad():
        text = model.text_features()
    return ExportedModel(folder, config, classes, about, model, text, where)


def _check(folder: Path) -> dict[str, Any]:
    if not (folder / ABOUT).is_file():
        raise UserError(
            f"{folder} is no exported model, it has no {ABOUT}: dfer export CHECKPOINT OUT makes one"
        )
    about = read_json(folder / ABOUT)
    if about.get("kind") != KIND or about.get("hash") != _own_hash(about):
        raise UserError(
            f"{folder / ABOUT} was changed after it was written: copy or export the model again"
        )
    for name, file in about["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: copy or export the model again")
        if sha256_file(folder / name) != file["sha256"]:
            raise UserError(
                f"{folder / name} differs from its sha256 in {ABOUT}: copy or export the model again"
            )
    return about


def _own_hash(about: dict[str, Any]) -> str:
    """sha256 of everything else in ``model.json``."""
    rest = {key: value for key, value in about.items() if key not in ("version", "hash")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def export(path: Path, out: Path, overrides: list[str]) -> dict[str, Any]:
    """Write a checkpoint as a model on its own, whole or not at all.

    Parameters
    ----------
    path : Path
        A checkpoint's folder, or LATEST or BEST beside it.
    out : Path
        The folder to make; an empty one may be there.
    overrides : list of str
        ``model.pretrained=FILE``, where that lies somewhere else now.

    Returns
    -------
    dict
        The content of ``model.json``.

    Raises
    ------
    UserError
        If ``out`` holds something, a word would make another model, or the checkpoint cannot be loaded.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there and not empty: give a folder that is not there yet")
    for word in overrides:
        if word.partition("=")[0] != _WHERE:
            raise UserError(
                f"'{word}' does not tell where something lies: a model is exported as it was trained ({_WHERE} may be given)"
            )
    from dfer_dist.inference.model_card import describe

    saved = checkpoint.read(path, weights_only=True)
    config = load_config(str(saved.path / checkpoint.CONFIG), overrides)
    classes = tuple(saved.state["classes"])
    model = load_model(saved, config, classes)
    weights = {name: w.detach().float().contiguous() for name, w in model.state_dict().items()}
    about = describe(saved, config, classes, sum(w.numel() for w in weights.values()))
    temporary = out.absolute().with_name(f".{out.absolute().name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with atomic_path(
            temporary / WEIGHTS
        ) as file:  # for its mode: safetensors writes what only its owner may read
            save_file(weights, file)
        about = _fill(temporary, config, about)
        temporary.rename(out)
    except SafetensorError as e:  # its own word for any failure to write
        raise OSError(f"{out}: {e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_dir(out.absolute().parent)
    return about


def _fill(folder: Path, config: Config, about: dict[str, Any]) -> dict[str, Any]:
    """Everything beside the weights; returns ``about`` with the hashes, as it was written."""
    from dfer_dist.inference.model_card import card
    from dfer_dist.inference.pyfunc import write_mlflow

    # without paths of this machine, and with the texts themselves: the built-in ones may change one day
    texts = {"sentences": about["texts"], "negative_sentences": about.get("negative_texts")}
    model = replace(config.model, **texts, pretrained=about["pretrained"])
    if model.backbone.endswith(".json"):
        shutil.copyfile(model.backbone, folder / BACKBONE)
        model.backbone = BACKBONE
    data = replace(config.data, shards="not-set", cache=None)
    write_text(
        folder / CONFIG,
        dump_config(replace(config, model=model, data=data, tracking=TrackingConfig())),
    )
    names = [name for name in (WEIGHTS, CONFIG, BACKBONE) if (folder / name).exists()]
    files = {
        n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_file(folder / n)} for n in names
    }
    about = {**about, "files": files}
    about |= {"hash": _own_hash(about)}
    write_json(folder / ABOUT, about)
    write_text(folder / CARD, card(about, config, sha256_file(folder / ABOUT)))
    package = Path(dfer_dist.__file__).parent
    shutil.copytree(
        package, folder / "code" / "dfer_dist", ignore=shutil.ignore_patterns("__pycache__")
    )
    write_mlflow(folder, about["classes"])
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        else:
            fsync_dir(file)
    fsync_dir(folder)
    return {"version": VERSION, **about}
