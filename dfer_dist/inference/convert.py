"""Convert checkpoints of DFER-CLIP's authors into ours and back."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.checks import check_values
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Head, ModelConfig, Precision, Selection, TokenPosition
from dfer_dist.data.shards.index import open_index
from dfer_dist.data.sources.records import ELEVEN, SEVEN
from dfer_dist.evaluation.evaluate import load_model
from dfer_dist.inference.official import (
    HEAD_WIDTH,
    read_official,
    read_sentences,
    read_sizes,
    to_ours,
    to_theirs,
)
from dfer_dist.models.build import build_untrained
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.towers.open_clip_models import clip_config
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, sha256_file, write_text

BACKBONE = "backbone.json"
# Initial value of CLIP's training (Radford et al., ICML 2021, section 2.5).
_LOGIT_SCALE = math.log(1 / 0.07)


def from_official(path: Path, out: Path, position: TokenPosition = TokenPosition.end) -> Config:
    """Convert a checkpoint of the authors into a folder for ``dfer eval``; return its settings.

    Classes, sizes and sentences are read from the tensors. The folder holds the frozen weights too,
    so it needs no pretrained file. Nothing is written unless
    :func:`~dfer_dist.inference.official.to_theirs` returns every tensor of the file to the bit.

    Parameters
    ----------
    path : Path
        Read without running any code that it names.
    out : Path
        The folder to make; it must not exist.
    position : TokenPosition
        Position of the class text, which the file does not hold. The authors' scripts for all three
        data sets set ``end``.

    Raises
    ------
    UserError
        If ``out`` exists, or the file is not a checkpoint of DFER-CLIP in every respect.
    """
    if out.exists():
        raise UserError(f"{out} exists: give a new folder")
    state = {name: tensor.float() for name, tensor in read_official(path).items()}
    try:
        config, clip = _settings(state, position)
        model = _rebuild(config, clip, state)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    # The file does not say which fold it was trained for.
    about: dict[str, Any] = {
        "step": 0,
        "skipped_steps": 0,
        "fold": None,
        "classes": list(config.model.sentences or ()),
        "logit_scale": state["clip_model_.logit_scale"].item(),
        "converted_from": {"file": path.name, "sha256": sha256_file(path)},
    }
    trained = {name: p for group in param_groups(model).values() for name, p in group}
    about["frozen_sha256"] = checkpoint.frozen_checksum(model, trained)
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    frozen = {name: weights.pop(name) for name in list(weights) if name not in trained}
    files = {BACKBONE: json.dumps(clip, indent=1)} if config.model.backbone == BACKBONE else {}
    checkpoint.write(out, weights, {}, config, about, frozen, files)
    return config


def write_experiment(config: Config, out: Path, source: str) -> None:
    """Write an experiment whose class texts are a checkpoint's, all else the published recipe.

    Parameters
    ----------
    config : Config
        Of :func:`from_official`.
    out : Path
        The YAML file to make; it must not exist.
    source : str
        The checkpoint, for the comment at the top.

    Raises
    ------
    UserError
        If ``out`` exists or is no YAML file.
    """
    if out.exists() or out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--experiment {out}: give a new file that ends with .yaml")
    settings = {"model": {"sentences": config.model.sentences}}
    comment = (
        f"# The published recipe of DFER-CLIP with the authors' sentences, read from {source}.\n"
    )
    write_text(out, comment + OmegaConf.to_yaml(settings))


def to_official(path: Path, out: Path, overrides: list[str]) -> None:
    """Write a checkpoint of ours in the authors' format.

    ``optimizer`` and ``recorder`` are empty: the authors' code reads ``state_dict`` only.

    Parameters
    ----------
    path : Path
        A checkpoint's folder, or LATEST or BEST next to it.
    out : Path
        The file to make; it must not exist.
    overrides : list of str
        ``key=value`` settings that override the checkpoint's own, such as ``data.shards=…``.

    Raises
    ------
    UserError
        If ``out`` exists, or the authors' code would compute something else from these weights.
    """
    if out.exists():
        raise UserError(f"{out} exists: give a new file")
    saved = checkpoint.read(path, weights_only=True)
    config = read_config(saved.path / checkpoint.CONFIG, overrides)
    _check_theirs(config.model)
    classes = saved.state.get("classes") or open_index(config.data).classes
    model = load_model(saved, config, tuple(classes))
    theirs = to_theirs(model, torch.tensor(saved.state.get("logit_scale", _LOGIT_SCALE)))
    content = {
        "epoch": saved.state.get("epoch", 0),
        "state_dict": {f"module.{name}": tensor for name, tensor in theirs.items()},
        "best_acc": 0.0,
        "optimizer": {},
        "recorder": None,
    }
    with atomic_path(out) as temporary:
        torch.save(content, temporary)


def _settings(
    state: Mapping[str, Tensor], position: TokenPosition
) -> tuple[Config, dict[str, Any]]:
    clip, model, frames = read_sizes(state)
    texts = read_sentences(state)
    names = next((c for c in (SEVEN, ELEVEN) if len(c) == len(texts)), None)
    if names is None:
        raise UserError(
            f"it has {len(texts)} classes; known are the 7 of DFEW and FERV39k and the 11 of MAFW"
        )
    model.backbone = _open_clip_name(clip) or BACKBONE
    model.sentences = {name: [text] for name, text in zip(names, texts, strict=True)}
    model.token_position = position
    config = Config(model=model)
    # The user gives the shards to dfer eval.
    config.data.shards = "not-set"
    config.data.num_frames, config.data.image_size = frames, clip["vision_cfg"]["image_size"]
    # As the authors train and test.
    config.train.precision = Precision.fp32
    config.train.selection = Selection.best_test
    check_values(config)
    return config, clip


def _open_clip_name(clip: dict[str, Any]) -> str | None:
    """Return the model of open_clip with these sizes, if possible made for this image size."""
    same = []
    for name in open_clip.list_models():
        known = open_clip.get_model_config(name)
        vision = {**known["vision_cfg"], "image_size": clip["vision_cfg"]["image_size"]}
        if {**known, "vision_cfg": vision} == clip:
            same.append((known["vision_cfg"].get("image_size") != vision["image_size"], name))
    return min(same, default=(False, None))[1]


def _rebuild(config: Config, clip: dict[str, Any], state: Mapping[str, Tensor]) -> DFERCLIP:
    """Build our model with the weights of the file, and check that it gives every tensor again."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = Path(folder) / BACKBONE
        sizes.write_text(json.dumps(clip))
        settings = replace(config.model, backbone=str(sizes))
        model = build_untrained(replace(config, model=settings), list(settings.sentences or ()))
    wanted = to_theirs(model, torch.empty(()))
    for name in sorted(wanted.keys() | state.keys()):
        own, expected = (
            tuple(tensors[name].shape) if name in tensors else "none" for tensors in (state, wanted)
        )
        if own != expected:
            raise UserError(
                f"not a checkpoint of DFER-CLIP: the shape of {name} is {own} in the file, "
                f"{expected} in the model"
            )
    model.load_state_dict(to_ours(state))
    for name, tensor in to_theirs(model, state["clip_model_.logit_scale"]).items():
        if not torch.equal(tensor, state[name]):
            raise UserError(
                f"{name} does not agree with the other tensors of the file: "
                "the authors' code did not write it"
            )
    return model


def _check_theirs(model: ModelConfig) -> None:
    """Refuse settings that the authors' code does not have.

    Most leave no trace in the weights: the authors' code would compute other logits silently.
    """
    if model.head is not Head.text:
        raise UserError("the authors' code cannot compute this model: model.head is linear")
    clip = clip_config(model.backbone)
    vision, text = clip["vision_cfg"], clip["text_cfg"]
    others = [*set(text) - {"context_length", "vocab_size", "width", "heads", "layers"}]
    if clip.get("custom_text") or "timm_model_name" in vision or others:
        raise UserError(
            f"the authors' code cannot compute this model: {model.backbone} is not built as "
            "OpenAI's CLIP"
        )
    kinds = {model.image.name, model.text_tower.name}
    sentences = max(map(len, (model.sentences or {"": [""]}).values()))
    rows = (
        ("the backbone's activation QuickGELU", bool(clip.get("quick_gelu")), True),
        ("a head's width in the image tower", vision.get("head_width", HEAD_WIDTH), HEAD_WIDTH),
        ("a head's width in the text tower", text["width"] // text["heads"], HEAD_WIDTH),
        ("model.temporal_head_dim", model.temporal_head_dim, HEAD_WIDTH),
        ("model.temperature", model.temperature, 0.01),
        ("model.normalize", model.normalize, False),
        ("model.output", model.output.name, "softmax"),
        ("model.temporal", model.temporal.name, "transformer"),
        ("LoRA in a tower", "lora" in kinds, False),
        ("adapters in a tower", "adapters" in kinds, False),
        ("model.text_polarity", model.text_polarity.name, "positive"),
        ("sentences without a context", model.context_tokens == 0, False),
        ("the most sentences of a class", sentences, 1),
    )
    for setting, ours, theirs in rows:
        if ours != theirs:
            raise UserError(
                f"the authors' code cannot compute this model: {setting} is {ours}, not {theirs}"
            )
