"""Protocol and provenance of a run as text: how and when the numbers were produced, from what.

User, machine and folders are left out: these pages are shown to other people, among them reviewers.
The address of a model at an endpoint is in them, since it tells which model that was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from dfer_dist.config.applicable import VIDEO
from dfer_dist.config.schema import (
    Ambiguous,
    Config,
    Head,
    HeadInit,
    ImageTuning,
    ModelConfig,
    Optimizer,
    Output,
    Sampling,
    Schedule,
    Supervision,
    TargetKind,
    TemporalKind,
    TemporalPool,
    TextTuning,
    TokenPosition,
)
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.reporting.history import ranks_text, run_cost
from dfer_dist.reporting.results import LoadedRun, read_settings
from dfer_dist.reporting.wording import (
    NOT_RECORDED,
    applicable,
    folds_text,
    join,
    optional,
    protocol_text,
    views_text,
)
from dfer_dist.runs.records import GitState, Provenance
from dfer_dist.utils.errors import UserError

Rows = list[list[str]]
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


def head_rows(loaded: LoadedRun) -> Rows:
    """Return date, backbone, parameters, ranks and memory of a run, as (name, value)."""
    config, peak = read_settings(loaded.run), run_cost(loaded.costs).peak_bytes
    day = NOT_RECORDED
    with suppress(UserError, ValueError):
        opened = datetime.fromisoformat(Provenance.read(loaded.run.provenance).time)
        day = f"{opened.day} {opened:%B %Y}"
    if endpoint := loaded.result.endpoint:
        return [["Opened", day], ["Model at the endpoint", endpoint.model]]
    backbone = Path(config.model.backbone).name if config else NOT_RECORDED
    return [
        ["Opened", day],
        ["Backbone", backbone],
        ["Trained parameters, million", parameters_text(loaded)],
        ["Ranks × device", ranks_text(loaded.costs)],
        ["Memory of a rank, GiB", optional(peak, 2, 2**30)],
    ]


def parameters_text(loaded: LoadedRun) -> str:
    """Return the millions of parameters that are trained, of all if those are on record."""
    cost = run_cost(loaded.costs)
    text = optional(cost.trained_parameters, 3, 1e6)
    if cost.trained_parameters is not None and cost.parameters is not None:
        text += f" of {cost.parameters / 1e6:.3f}"
    return text


def protocol_rows(loaded: LoadedRun) -> Rows:
    """Return the settings that a reader of the numbers must know, as (setting, description).

    Without a readable ``config.yaml`` they come from the result alone.
    """
    result, config = loaded.result, read_settings(loaded.run)
    rows = {"Selection": protocol_text(loaded.summary), "Folds": _folds_row(loaded)}
    if result.views is not None:
        views = views_text(result.views, result.crops, result.mirror)
        rows["Test clips"] = f"every clip {views}, {result.num_frames} frames a view"
    if result.described_clips is not None:
        count = f"of {result.described_clips} training clips in fold {result.fold}"
        rows["Descriptions"] = f"{count}; none of a test clip"
    if endpoint := result.endpoint:
        rows["Model"] = f"{endpoint.model}, at an endpoint; it names a class, without probabilities"
        rows["Frames"] = f"{result.num_frames} of a clip ({result.sampling}), each once"
        rows["Prompt"] = endpoint.prompt
        rows["Endpoint"] = _urls_text(loaded)
    elif config is None:
        rows["Other settings"] = "not on record in a form that this version reads"
    else:
        rows |= _settings(config)
    return _rows(rows)


def _urls_text(loaded: LoadedRun) -> str:
    """Return the URLs that answers came from; with their folds, if these differ."""
    urls = {
        k: join(fold.result.endpoint.urls) or NOT_RECORDED
        for k, fold in loaded.folds.items()
        if fold.result.endpoint
    }
    found = list(dict.fromkeys(urls.values()))
    if len(found) == 1:
        return found[0]
    return "; ".join(f"{folds_text([k for k in urls if urls[k] == x])}: {x}" for x in found)


def _folds_row(loaded: LoadedRun) -> str:
    """Describe folds that are not the set's own."""
    if loaded.result.folds_hash is None:
        return ""
    try:
        overlay = FoldOverlay.read(loaded.run.folds)
    except UserError:
        return f"other ones than the set's own, hash {loaded.result.folds_hash}"
    by = f"made by {overlay.made_by}"
    if overlay.group_of:
        by += f": {len(set(overlay.group_of.values()))} groups, none in two folds"
    return f"{overlay.name}, not the set's own; {by}; hash {overlay.hash[:12]}"


def settings_rows(config: Config) -> Rows:
    """Return the settings of a training as (setting, description)."""
    return _rows(_settings(config))


def _settings(config: Config) -> dict[str, str]:
    return _data_rows(config) | _model_rows(config) | _training_rows(config)


def _rows(texts: Mapping[str, str | None]) -> Rows:
    """Return the names that have a text, with it."""
    return [[name, text] for name, text in texts.items() if text]


def _data_rows(c: Config) -> dict[str, str]:
    data, augment, model = c.data, c.data.augment, c.model
    size = "the backbone's own size"
    if data.image_size:
        size = f"{data.image_size} x {data.image_size} pixels"
    sampling = _SAMPLING[data.sampling].format(stride=data.stride)
    modalities = ""
    if model.modalities:
        weights = "learned weights"
        if model.video_weight is not None:
            weights = f"the frames weigh {model.video_weight:g}"
        names = " and ".join(_MODALITIES[m] for m in model.modalities)
        modalities = f"{names}, {weights}"
    normalization = "pixels in [0, 1], the backbone's mean and deviation not taken off"
    if model.normalize:
        normalization = "the backbone's mean and deviation taken off"
    area = f"random crops of at least {100 * augment.crop_scale:.0f} % of the area"
    changes = {
        area: augment.crop_scale < 1,
        "mirrored every other time": augment.flip,
        f"brightness ± {100 * augment.brightness:.0f} %": augment.brightness,
        f"turned by up to {augment.rotation:g}°": augment.rotation,
        f"RandAugment ({augment.rand_augment} operations, magnitude {augment.rand_magnitude})": (
            augment.rand_augment
        ),
        f"random erasing ({augment.erasing:g})": augment.erasing,
        f"mixup ({augment.mixup:g})": augment.mixup,
        f"CutMix ({augment.cutmix:g})": augment.cutmix,
    }
    ambiguous = "in the training of every fold, in no test"
    return {
        "Frames": f"{data.num_frames}, {sampling}; {size}",
        "Other modalities": modalities,
        "Normalisation": normalization,
        "Augmentation": join(applicable(changes)) or "none",
        "Sampling of clips": "every class as often as any other" * data.balanced,
        "Clips without a majority": ambiguous * (data.ambiguous is Ambiguous.train),
    }


def _model_rows(c: Config) -> dict[str, str]:
    m = c.model
    weights = f"weights {Path(m.pretrained).name}"
    if m.pretrained == "none":
        weights = "random weights"
    has_layers, over_time = m.temporal is TemporalKind.transformer, "mean of the frames' features"
    if has_layers:
        layers = f"{m.temporal_layers} layer{'s' * (m.temporal_layers > 1)}"
        over_time = f"transformer, {layers}, {m.temporal_heads} heads"
        if m.temporal_pool is TemporalPool.mean:
            over_time += ", mean of the frames' outputs"
    if m.backbone.startswith(VIDEO):
        has_layers, over_time = False, "the backbone reads clips"
    adapters = "adapters in the image tower" + ", along time too" * m.adapter_time
    trained = {
        "image tower": m.image is ImageTuning.all,
        f"last {m.image_blocks} blocks of the image tower": m.image is ImageTuning.last,
        "norms of the image tower": m.image is ImageTuning.norms,
        f"LoRA of rank {m.lora_rank} in the image tower": m.image is ImageTuning.lora,
        adapters: m.image is ImageTuning.adapters,
        f"LoRA of rank {m.lora_rank} in the text tower": m.text_tower is TextTuning.lora,
        "adapters in the text tower": m.text_tower is TextTuning.adapters,
        "temporal transformer": has_layers,
        "learned prompts": m.head is Head.text and m.context_tokens,
        "linear classifier": m.head is Head.linear,
    }
    depth = f"branches of the image tower dropped with a rate of up to {m.drop_path:g}"
    return {
        "Backbone": f"{Path(m.backbone).name}, {weights}",
        "Stochastic depth": depth * bool(m.drop_path),
        "Over time": over_time,
        **_head_rows(m),
        "Trained": join(applicable(trained)) or "nothing",
    }


def _head_rows(m: ModelConfig) -> dict[str, str]:
    texts = "own sentences" if m.sentences else m.text.name
    if m.head is Head.linear:
        begins = {
            HeadInit.zeros: "zeros",
            HeadInit.normal: "normally distributed numbers",
            HeadInit.text: f"features of class texts ({texts})",
        }
        return {"Classifier": f"linear layer, its weight begins with {begins[m.head_init]}"}
    context = f"{_POSITIONS[m.token_position]} {m.context_tokens} learned tokens"
    if m.class_specific:
        context += " of each class's own"
    return {"Class text": f"{texts}, {context}"}


def _optimizer_rows(c: Config) -> dict[str, str]:
    o = c.optim
    beta1, beta2 = o.betas
    optimizer = f"AdamW, betas {beta1:g} and {beta2:g}"
    if o.name is Optimizer.sgd:
        optimizer = f"SGD, momentum {o.momentum:g}"
    decay = f"weight decay {o.weight_decay:g}"
    if o.weight_decay and not o.decay_all:
        decay += ", none of norms, biases, positions, class tokens and layer scales"
    layers = ""
    if o.layer_decay < 1:
        layers = f" times {o.layer_decay:g} for each block nearer to the input"
    last = f"prompt {o.lr_prompt:g}"
    if c.model.head is Head.linear:
        last = f"classifier {o.lr_head:g}"
    rates = f"image {o.lr_image:g}{layers}, temporal {o.lr_temporal:g}, {last}"
    schedule = f"half a cosine to {o.min_lr:g}"
    if o.schedule is Schedule.step:
        schedule = f"times {o.gamma:g} after epochs {join(o.milestones)}"
    if o.warmup_epochs:
        epochs = f"{o.warmup_epochs:g} epoch{'s' * (o.warmup_epochs != 1)}"
        schedule += f", warm-up over {epochs}"
    return {"Optimiser": f"{optimizer}, {decay}", "Learning rates": f"{rates}; {schedule}"}


def _training_rows(c: Config) -> dict[str, str]:
    o, t = c.optim, c.train
    epochs = f"{t.epochs} epoch{'s' * (t.epochs > 1)}"
    size = f"{epochs}, {t.global_batch} clip{'s' * (t.global_batch > 1)} a step, {t.precision.name}"
    weight = "no labels"
    if t.objective is not Supervision.descriptions:
        weight = f"weight {t.description_weight:g}"
    contrast = f"contrast of clips with their descriptions over all clips of a step, {weight}"
    kind = "cross-entropy"
    if c.model.output is Output.sigmoid:
        kind = "mean over classes of binary cross-entropies"
    if t.target is TargetKind.votes:
        kind += " with the distribution of annotators' votes"
    loss = {
        kind: t.objective is not Supervision.descriptions,
        contrast: t.objective is not Supervision.labels,
        f"label smoothing {t.label_smoothing:g}": t.label_smoothing,
        f"class-balanced, beta {t.class_balance:g}": t.class_balance,
        f"gradients clipped at {o.clip_norm:g}": o.clip_norm,
    }
    return _optimizer_rows(c) | {
        "Loss": join(applicable(loss)),
        "Tested weights": f"moving average with decay {t.ema:g}" * bool(t.ema),
        "Training": f"{size}, ZeRO stage {t.zero_stage}, seed {t.seed}",
    }


def provenance_rows(loaded: LoadedRun) -> Rows:
    """Return code, data and versions as (what, value), without what was not recorded."""
    result, about = loaded.result, Provenance()
    with suppress(UserError):
        about = Provenance.read(loaded.run.provenance)
    git = about.git or GitState()
    changed = ", with changes that are not committed" * bool(git.diff)
    dataset = about.data.name if about.data else result.dataset
    versions = {"Python": about.python, "dfer_dist": about.dfer_dist, **about.versions}
    changes = {key: None for drift in loaded.run.info().drift for key in drift.changes}
    rows = {
        "Command": command_text(about.command),
        "Code": git.sha and f"git {git.sha}{changed}",
        "Hash of the code": about.code_hash,
        "Opened": about.time,
        "Data": f"{dataset}, index {result.index_hash}",
        "Hash of the folds": result.folds_hash,
        "Hash of the settings": result.config_hash,
        "Pretrained weights": result.pretrained_sha256 and f"sha256 {result.pretrained_sha256}",
        "Versions": join(f"{k} {v}" for k, v in versions.items() if v),
        "Changed on the way": join(changes),
    }
    return _rows(rows)


def command_text(command: list[str]) -> str:
    """Return the command line, with only the last part of folders and URLs."""
    if not command:
        return ""
    return " ".join([Path(command[0]).name, *(_FOLDER.sub(r"\1…/", arg) for arg in command[1:])])
