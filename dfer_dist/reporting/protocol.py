"""Protocol and provenance of a run as text: how the numbers were produced, and from what.

User, machine and folders are left out: these pages are shown to other people, among them reviewers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import (
    Config,
    ImageTuning,
    Optimizer,
    Sampling,
    Schedule,
    Supervision,
    TemporalKind,
    TextTuning,
    TokenPosition,
)
from dfer_dist.reporting.wording import PROTOCOLS
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

Rows = list[list[str]]
_UNREADABLE = "not on record in a form that this version reads"
_SAMPLING = {
    Sampling.segments: "one from each of as many equal segments, its middle in tests",
    Sampling.uniform: "at equal distances, first and last among them",
    Sampling.dense: "a window of every {stride}th frame",
}
_MODALITIES = {"parsing": "parsing maps", "landmarks": "landmarks"}
_POSITIONS = {
    TokenPosition.end: "after",
    TokenPosition.middle: "around",
    TokenPosition.front: "before",
}
# The folder part of a path or URL, alone or after "key=".
_FOLDER = re.compile(r"(^|=)(?:[a-z][a-z0-9+.-]*://|~|\.{0,2}/)\S*/")


def protocol_rows(run: RunDir, result: Mapping[str, Any]) -> Rows:
    """Return the settings that a reader of the numbers must know, as (setting, description).

    Without a ``config.yaml`` they come from the result alone.
    """
    rows = [["Selection", PROTOCOLS[result["selection"]]]]
    config = None
    # The file may be of another version of this program.
    with suppress(UserError):
        if run.config.is_file():
            config = read_config(run.config)
    if "views" in result:
        views = "once"
        if result["views"] != 1:
            views = f"in {result['views']} views, whose probabilities are averaged"
        rows.append(["Test clips", f"every clip {views}, {result['num_frames']} frames a view"])
    elif config is None:
        return [*rows, ["Settings", _UNREADABLE]]
    if result.get("described_clips") is not None:
        count = f"of {result['described_clips']} training clips in fold {result['fold']}"
        rows.append(["Descriptions", f"{count}; none of a test clip"])
    if config is None:
        return [*rows, ["Other settings", _UNREADABLE]]
    return [*rows, *_data_rows(config), *_model_rows(config), *_training_rows(config)]


def _data_rows(c: Config) -> Rows:
    data, augment, model = c.data, c.data.augment, c.model
    size = "the backbone's own size"
    if data.image_size:
        size = f"{data.image_size} x {data.image_size} pixels"
    sampling = _SAMPLING[data.sampling].format(stride=data.stride)
    rows = [["Frames", f"{data.num_frames}, {sampling}; {size}"]]
    if model.modalities:
        weights = "learned weights"
        if model.video_weight is not None:
            weights = f"the frames weigh {model.video_weight:g}"
        names = " and ".join(_MODALITIES[m] for m in model.modalities)
        rows.append(["Other modalities", f"{names}, {weights}"])
    normalization = "pixels in [0, 1], CLIP's mean and deviation not taken off"
    if model.normalize:
        normalization = "CLIP's mean and deviation taken off"
    changes = []
    if augment.crop_scale < 1:
        changes.append(f"random crops of at least {100 * augment.crop_scale:.0f} % of the area")
    if augment.flip:
        changes.append("mirrored every other time")
    if augment.brightness:
        changes.append(f"brightness ± {100 * augment.brightness:.0f} %")
    if augment.rotation:
        changes.append(f"turned by up to {augment.rotation:g}°")
    rows += [
        ["Normalisation", normalization],
        ["Augmentation", ", ".join(changes) or "none"],
    ]
    if data.balanced:
        rows.append(["Sampling of clips", "every class as often as any other"])
    return rows


def _model_rows(c: Config) -> Rows:
    m = c.model
    weights = f"weights {Path(m.pretrained).name}"
    if m.pretrained == "none":
        weights = "random weights"
    temporal, over_time = "", "mean of the frames' features"
    if m.temporal is TemporalKind.transformer:
        temporal = "temporal transformer"
        layers = f"{m.temporal_layers} layer{'s' * (m.temporal_layers > 1)}"
        over_time = f"transformer, {layers}, {m.temporal_heads} heads"
    texts = "own sentences" if m.sentences else m.text.name
    context = f"{_POSITIONS[m.token_position]} {m.context_tokens} learned tokens"
    if m.class_specific:
        context += " of each class's own"
    prompts = "learned prompts" if m.context_tokens else ""
    trained = filter(None, [*_tuned_towers(c), temporal, prompts])
    return [
        ["Backbone", f"{Path(m.backbone).name}, {weights}"],
        ["Over time", over_time],
        ["Class text", f"{texts}, {context}"],
        ["Trained", ", ".join(trained) or "nothing"],
    ]


def _tuned_towers(c: Config) -> list[str]:
    m = c.model
    image = {
        ImageTuning.all: "image tower",
        ImageTuning.last: f"last {m.image_blocks} blocks of the image tower",
        ImageTuning.norms: "norms of the image tower",
        ImageTuning.lora: f"LoRA of rank {m.lora_rank} in the image tower",
        ImageTuning.adapters: "adapters in the image tower" + ", along time too" * m.adapter_time,
        ImageTuning.none: "",
    }
    text = {
        TextTuning.lora: f"LoRA of rank {m.lora_rank} in the text tower",
        TextTuning.adapters: "adapters in the text tower",
        TextTuning.frozen: "",
    }
    return [image[m.image], text[m.text_tower]]


def _training_rows(c: Config) -> Rows:
    o, t = c.optim, c.train
    optimizer = "AdamW"
    if o.name is Optimizer.sgd:
        optimizer = f"SGD, momentum {o.momentum:g}"
    rates = f"image {o.lr_image:g}, temporal {o.lr_temporal:g}, prompt {o.lr_prompt:g}"
    schedule = "half a cosine to zero"
    if o.schedule is Schedule.step:
        schedule = f"times {o.gamma:g} after epochs {', '.join(map(str, o.milestones))}"
    if o.warmup_epochs:
        epochs = f"{o.warmup_epochs:g} epoch{'s' * (o.warmup_epochs != 1)}"
        schedule += f", warm-up over {epochs}"
    size = f"{t.epochs} epochs, {t.global_batch} clips a step, {t.precision.name}"
    return [
        ["Optimiser", f"{optimizer}, weight decay {o.weight_decay:g}"],
        ["Learning rates", f"{rates}; {schedule}"],
        ["Loss", ", ".join(_loss_terms(c))],
        ["Training", f"{size}, ZeRO stage {t.zero_stage}, seed {t.seed}"],
    ]


def _loss_terms(c: Config) -> list[str]:
    t, terms, weight = c.train, [], "no labels"
    if t.objective is not Supervision.descriptions:
        terms.append("cross-entropy")
        weight = f"weight {t.description_weight:g}"
    if t.objective is not Supervision.labels:
        terms.append(
            f"contrast of clips with their descriptions over all clips of a step, {weight}"
        )
    if t.label_smoothing:
        terms.append(f"label smoothing {t.label_smoothing:g}")
    if t.class_balance:
        terms.append(f"class-balanced, beta {t.class_balance:g}")
    if c.optim.clip_norm:
        terms.append(f"gradients clipped at {c.optim.clip_norm:g}")
    return terms


def provenance_rows(run: RunDir, result: Mapping[str, Any]) -> Rows:
    """Return code, data and versions as (what, value), without what was not recorded."""
    about: dict[str, Any] = {}
    with suppress(UserError):
        about = read_json(run.provenance)
    git, data = about.get("git") or {}, about.get("data") or {}
    rows = []
    if about.get("command"):
        rows.append(["Command", command_text(about["command"])])
    if git.get("sha"):
        changed = ", with changes that are not committed" if git.get("diff") else ""
        rows.append(["Code", f"git {git['sha']}{changed}"])
    if about.get("code_hash"):
        rows.append(["Hash of the code", about["code_hash"]])
    if about.get("time"):
        rows.append(["Opened", about["time"]])
    rows += [
        ["Data", f"{data.get('name', result['dataset'])}, index {result['index_hash']}"],
        ["Hash of the settings", result["config_hash"]],
    ]
    if result.get("pretrained_sha256"):
        rows.append(["Pretrained weights", f"sha256 {result['pretrained_sha256']}"])
    versions = {
        "Python": about.get("python"),
        "dfer_dist": about.get("dfer_dist"),
        **about.get("versions", {}),
    }
    if any(versions.values()):
        rows.append(["Versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)])
    drifts = run.info().drift if run.run.is_file() else []
    changes = dict.fromkeys(key for drift in drifts for key in drift.changes)
    if changes:
        rows.append(["Changed on the way", ", ".join(changes)])
    return rows


def command_text(command: list[str]) -> str:
    """Return the command line, with only the last part of folders and URLs."""
    return " ".join([Path(command[0]).name, *(_FOLDER.sub(r"\1…/", arg) for arg in command[1:])])
