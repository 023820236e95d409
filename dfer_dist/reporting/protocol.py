"""Protocol and provenance of a run in words: how the numbers came about, and from what.

Who ran it, on which machine and in which folder is left out: these pages are shown to people elsewhere, reviewers among them.
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
_SAMPLING = {
    Sampling.segments: "one from each of as many equal segments, its middle in tests",
    Sampling.uniform: "at equal distances, first and last among them",
    Sampling.dense: "a window of every {stride}th frame",
}
_PLACE = re.compile(r"(^|=)(?:[a-z][a-z0-9+.-]*://|~|\.{0,2}/)\S*/")


def protocol_rows(run: RunDir, result: Mapping[str, Any]) -> Rows:
    """Settings that a reader of the numbers must know, as (what, words); from the result alone where there is no ``config.yaml``."""
    rows = [["Selection", PROTOCOLS[result["selection"]]]]
    try:
        config = read_config(run.config) if run.config.is_file() else None
    except UserError:  # of an older or newer version of this program
        config = None
    if "views" in result:
        views = (
            "once"
            if result["views"] == 1
            else f"in {result['views']} views, whose probabilities are averaged"
        )
        rows.append(["Test clips", f"every clip {views}, {result['num_frames']} frames a view"])
    elif config is None:
        return [*rows, ["Settings", "not on record in a form that this version reads"]]
    if result.get("described_clips") is not None:
        rows.append(
            [
                "Descriptions",
                f"of {result['described_clips']} training clips in fold {result['fold']}; none of a test clip",
            ]
        )
    if config is None:
        return [*rows, ["Other settings", "not on record in a form that this version reads"]]
    return [*rows, *_data_rows(config), *_model_rows(config), *_training_rows(config)]


def _data_rows(c: Config) -> Rows:
    data, augment = c.data, c.data.augment
    side = (
        f"{data.image_size} x {data.image_size} pixels"
        if data.image_size
        else "the backbone's own size"
    )
    normal = (
        "CLIP's mean and deviation taken off"
        if c.model.normalize
        else "pixels in [0, 1], CLIP's mean and deviation not taken off"
    )
    changes = (
        [f"random crops of at least {100 * augment.crop_scale:.0f} % of the area"]
        if augment.crop_scale < 1
        else []
    )
    changes += ["mirrored every other time"] if augment.flip else []
    changes += [f"brightness ± {100 * augment.brightness:.0f} %"] if augment.brightness else []
    changes += [f"turned by up to {augment.rotation:g}°"] if augment.rotation else []
    sampling = _SAMPLING[data.sampling].format(stride=data.stride)
    weights = (
        "learned weights"
        if c.model.video_weight is None
        else f"the frames weigh {c.model.video_weight:g}"
    )
    names = {"parsing": "parsing maps", "landmarks": "landmarks"}
    modalities = (
        [
            [
                "Beside frames",
                f"{' and '.join(names[level] for level in c.model.modalities)}, {weights}",
            ]
        ]
        if c.model.modalities
        else []
    )
    return [
        ["Frames", f"{data.num_frames}, {sampling}; {side}"],
        *modalities,
        ["Normalisation", normal],
        ["Augmentation", ", ".join(changes) or "none"],
        *([["Sampling of clips", "every class as often as any other"]] if data.balanced else []),
    ]


def _model_rows(c: Config) -> Rows:
    m = c.model
    weights = "random weights" if m.pretrained == "none" else f"weights {_plain(m.pretrained)}"
    image = {
        ImageTuning.all: "image tower",
        ImageTuning.last: f"last {m.image_blocks} blocks of the image tower",
        ImageTuning.norms: "norms of the image tower",
        ImageTuning.lora: f"LoRA of rank {m.lora_rank} in the image tower",
        ImageTuning.adapters: "adapters in the image tower" + ", along time too" * m.adapter_time,
        ImageTuning.none: "",
    }[m.image]
    text = {
        TextTuning.lora: f"LoRA of rank {m.lora_rank} in the text tower",
        TextTuning.adapters: "adapters in the text tower",
        TextTuning.frozen: "",
    }[m.text_tower]
    over_time = "mean of the frames' features"
    if m.temporal is TemporalKind.transformer:
        over_time = f"transformer, {m.temporal_layers} layer{'s' * (m.temporal_layers > 1)}, {m.temporal_heads} heads"
    place = {
        TokenPosition.end: "after",
        TokenPosition.middle: "around",
        TokenPosition.front: "before",
    }[m.token_position]
    own = " of each class's own" if m.class_specific else ""
    trained = [
        image,
        text,
        "temporal transformer" if m.temporal is TemporalKind.transformer else "",
    ]
    trained.append("learned prompts" if m.context_tokens else "")
    return [
        ["Backbone", f"{_plain(m.backbone)}, {weights}"],
        ["Over time", over_time],
        [
            "Class text",
            f"{'own sentences' if m.sentences else m.text.name}, {place} {m.context_tokens} learned tokens{own}",
        ],
        ["Trained", ", ".join(filter(None, trained)) or "nothing"],
    ]


def _training_rows(c: Config) -> Rows:
    o, t = c.optim, c.train
    name = f"SGD, momentum {o.momentum:g}" if o.name is Optimizer.sgd else "AdamW"
    rates = f"image {o.lr_image:g}, temporal {o.lr_temporal:g}, prompt {o.lr_prompt:g}"
    schedule = "half a cosine to zero"
    if o.schedule is Schedule.step:
        schedule = f"times {o.gamma:g} after epochs {', '.join(map(str, o.milestones))}"
    warm = (
        f", warm-up over {o.warmup_epochs:g} epoch{'s' * (o.warmup_epochs != 1)}"
        if o.warmup_epochs
        else ""
    )
    loss = ["cross-entropy"] if t.objective is not Supervision.descriptions else []
    if t.objective is not Supervision.labels:
        weight = f", weight {t.description_weight:g}" if loss else ", no labels"
        loss.append(f"contrast of clips with their descriptions over all clips of a step{weight}")
    loss += [f"label smoothing {t.label_smoothing:g}"] * bool(t.label_smoothing)
    loss += [f"class-balanced, beta {t.class_balance:g}"] * bool(t.class_balance)
    loss += [f"gradients clipped at {o.clip_norm:g}"] * bool(o.clip_norm)
    return [
        ["Optimiser", f"{name}, weight decay {o.weight_decay:g}"],
        ["Learning rates", f"{rates}; {schedule}{warm}"],
        ["Loss", ", ".join(loss)],
        [
            "Training",
            f"{t.epochs} epochs, {t.global_batch} clips a step, {t.precision.name}, ZeRO stage {t.zero_stage}, seed {t.seed}",
        ],
    ]


def provenance_rows(run: RunDir, result: Mapping[str, Any]) -> Rows:
    """Code, data and versions, as (what, words); what an older run did not record is left out."""
    about: dict[str, Any] = {}
    with suppress(UserError):
        about = read_json(run.provenance)
    git, data, rows = about.get("git") or {}, about.get("data") or {}, Rows()
    if about.get("command"):
        rows.append(["Command", command_text(about["command"])])
    if git.get("sha"):
        rows.append(
            [
                "Code",
                f"git {git['sha']}{', with changes that are not committed' if git.get('diff') else ''}",
            ]
        )
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
    changes = [k for d in (run.drifts() if run.run.is_file() else []) for k in d["changes"]]
    if changes:
        rows.append(["Changed on the way", ", ".join(dict.fromkeys(changes))])
    return rows


def command_text(command: list[str]) -> str:
    """The words a person typed; of folders and URLs only the last part."""
    return " ".join([Path(command[0]).name, *(_PLACE.sub(r"\1…/", word) for word in command[1:])])


def _plain(name: str) -> str:
    return Path(name).name if "/" in name else name
