"""The settings of a run, as one tree of dataclasses.

Every default stands here and nowhere else: it is the published recipe of DFER-CLIP (Zhao & Patras, BMVC'23, section 4.1).
A file in ``configs/`` holds only what differs; :mod:`dfer_dist.config.load` reads it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from dfer_dist.utils.errors import UserError


class Precision(Enum):
    """Number format of the forward and backward pass; master weights are float32 in both."""

    bf16 = "bf16"
    fp32 = "fp32"


class Selection(Enum):
    """Which epoch's weights are reported, and on what data that was decided."""

    last = "last"
    best_val = "best_val"
    best_test = "best_test"


class Optimizer(Enum):
    sgd = "sgd"
    adamw = "adamw"


class Schedule(Enum):
    """How learning rates fall: times ``gamma`` at each milestone, or along half a cosine to zero."""

    step = "step"
    cosine = "cosine"


class TokenPosition(Enum):
    """Where the class words stand among the learned context tokens."""

    end = "end"
    middle = "middle"
    front = "front"


class ClassText(Enum):
    """What the text tower reads for a class: its name, a sentence with its name, or a description of the face."""

    names = "names"
    sentence = "sentence"
    person = "person"
    descriptions = "descriptions"


class TextPolarity(Enum):
    """Whether a clip is compared with what its class is, or also with what it is not."""

    positive = "positive"
    both = "both"


class ImageTuning(Enum):
    """What is trained of the image tower; ``last`` is the last ``model.image_blocks`` blocks and what follows them."""

    all = "all"
    last = "last"
    norms = "norms"
    lora = "lora"
    adapters = "adapters"
    none = "none"


class TextTuning(Enum):
    """What is trained of the text tower."""

    frozen = "frozen"
    lora = "lora"
    adapters = "adapters"


class TemporalKind(Enum):
    """How the features of a clip's frames become one: a transformer, or their mean."""

    transformer = "transformer"
    mean = "mean"


class Sampling(Enum):
    """Which frames of a clip are read: one of each of equal segments, frames at equal distances, or a dense window."""

    segments = "segments"
    uniform = "uniform"
    dense = "dense"


class Supervision(Enum):
    """What a training step learns from: labels, descriptions of the clips without any label, or both."""

    labels = "labels"
    descriptions = "descriptions"
    both = "both"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


# settings, by the beginning of their keys, that can change no result
NEUTRAL: tuple[str, ...] = (
    "tracking.",
    "train.micro_batch",
    "train.zero_stage",
    "train.save_",
    "train.keep",
    "train.log_every",
    "train.print_every",
)
NEUTRAL += (
    "data.loss_budget",
    "train.max_bad_steps",
    "train.hang_minutes",
    "train.device",
    "train.offload_optimizer",
    "data.workers",
    "data.shards",
    "data.cache",
    "model.checkpoint_",
    "eval.batch",
    "eval.shuffle_frames",
)


@dataclass
class AugmentConfig:
    """Training augmentation; one draw serves all frames of a clip."""

    crop_scale: float = (
        0.08  # smallest share of the frame's area that a random crop keeps; 1 turns cropping off
    )
    flip: bool = True  # mirror every other clip
    brightness: float = 0.0  # largest relative change of brightness
    rotation: float = 0.0  # largest angle, degrees


@dataclass
class DataConfig:
    shards: str = "???"  # the folder that holds index.json, or its URL: http://…, https://…, s3://… or file:///…
    cache: str | None = (
        None  # folder for shards that come from a URL, $VARIABLES as on the node; null: see docs/guides/remote-shards.md
    )
    cache_gb: float = 50.0  # most bytes in it, 10^9 each
    num_frames: int = 16  # frames sampled from a clip
    sampling: Sampling = Sampling.segments
    stride: int = 4  # from one frame of a dense window to the next, frames
    image_size: int | None = (
        None  # side of the square the model sees, pixels; null: what the backbone was trained on
    )
    workers: int = 2  # decoding processes of each rank; 0 decodes in the training process
    block: int = 512  # clips that are shuffled among themselves within a lane of the plan
    balanced: bool = (
        False  # every class as often as any other in an epoch, by repeating clips of the rarer ones
    )
    descriptions: str | None = (
        None  # the source to train on, by name or hash, where the set has several in English
    )
    loss_budget: int = 0  # clips that a training run may lose to damage before it stops
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class ModelConfig:
    backbone: str = "ViT-B-32-quickgelu"  # any open_clip name with a ViT image tower, or `tiny`
    pretrained: str = (
        "openai"  # open_clip tag, `demo` for `tiny`, a weights file, or `none` for random weights
    )
    text: ClassText = ClassText.descriptions
    sentences: dict[str, list[str]] | None = (
        None  # class name: one or more sentences; null: what model.text says
    )
    text_polarity: TextPolarity = TextPolarity.positive
    negative_sentences: dict[str, list[str]] | None = (
        None  # as sentences, for text_polarity=both; null: that it is no such expression
    )
    negative_weight: float = (
        1.0  # of the negative side beside the positive one's 1, in the loss and in the logits
    )
    context_tokens: int = 8  # learned ones around each sentence; 0: the sentences alone
    class_specific: bool = True  # a context of its own for each class
    token_position: TokenPosition = TokenPosition.end
    image: ImageTuning = ImageTuning.all
    image_blocks: int = 2  # for image=last
    text_tower: TextTuning = TextTuning.frozen
    lora_rank: int = 8
    lora_alpha: float = 16.0  # LoRA's product is weighted with lora_alpha / lora_rank
    adapter_ratio: float = 0.25  # width of an adapter's bottleneck, of the tower's width
    adapter_scale: float = 0.5  # weight of the adapters beside the MLPs
    adapter_time: bool = (
        False  # for image=adapters: one more in each block, which attends from frame to frame
    )
    modalities: list[str] = field(
        default_factory=list
    )  # beside frames, for image=adapters: parsing, landmarks (dfer enrich)
    modality_ratio: float = 0.1  # as adapter_ratio, of the levels' own adapters in the image tower
    video_weight: float | None = (
        None  # of the frames among levels, which share the rest; null: all weights are learned
    )
    description_ratio: float = 0.0  # as adapter_ratio, of descriptions' own adapters in the text tower; 0: the positive texts' ones
    temporal: TemporalKind = TemporalKind.transformer
    temporal_layers: int = 1
    temporal_heads: int = 8
    temporal_head_dim: int = 64
    temporal_mlp: int = 1024
    temperature: float = 0.01  # logits are cosine / temperature
    normalize: bool = (
        False  # take off CLIP's mean and deviation; the published recipe feeds pixels in [0, 1]
    )
    checkpoint_image: bool = False  # recompute the image tower's activations in the backward pass
    checkpoint_temporal: bool = False  # likewise the temporal transformer's


@dataclass
class OptimConfig:
    name: Optimizer = Optimizer.sgd
    momentum: float = 0.9  # SGD only
    weight_decay: float = 1e-4
    lr_image: float = 1e-5
    lr_temporal: float = 1e-2
    lr_prompt: float = 1e-3
    lr_lora: float = 1e-4  # LoRA factors of either tower
    lr_adapters: float = 3e-4  # adapters of either tower
    schedule: Schedule = Schedule.step
    milestones: list[int] = field(default_factory=lambda: [30, 40])  # epochs
    gamma: float = 0.1
    clip_norm: float = 0.0  # largest 2-norm of the whole gradient; 0 leaves it as it is
    warmup_epochs: float = 0.0  # learning rates rise linearly from zero over this many epochs


@dataclass
class TrainConfig:
    epochs: int = 50
    global_batch: int = 48  # clips in one optimizer step, over all ranks
    micro_batch: int | None = (
        None  # clips in one forward pass of one rank; null: global_batch / ranks
    )
    precision: Precision = Precision.bf16
    zero_stage: int = 1  # DeepSpeed ZeRO: 1 shards moments, 2 gradients too, 3 weights too
    offload_optimizer: bool = (
        False  # master weights and moments in main memory, updated by the processor
    )
    seed: int = 0
    objective: Supervision = Supervision.labels
    description_weight: float = 1.0  # of the descriptions beside the labels' 1, for objective=both
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    class_balance: float = (
        0.0  # beta of the class-balanced loss, such as 0.999; 0 weighs all clips alike
    )
    selection: Selection = Selection.last
    val_fraction: float = 0.1  # part of the training folds held out, for selection=best_val
    max_bad_steps: int = 5  # steps in a row with non-finite gradients before the run stops
    save_epochs: int = 1  # a checkpoint at the end of every so many epochs, and of the last
    save_minutes: float = 10.0  # and at least this often
    save_steps: int | None = None  # and every so many steps
    keep: int = 2  # checkpoints kept beside LATEST and BEST
    log_every: int = 1  # steps between lines of the metrics file
    print_every: int = 10  # steps between lines of the log
    hang_minutes: float = 15.0  # without a step or a batch of a test, after which a rank counts as hanging and ends the job
    device: Device = Device.auto


@dataclass
class EvalConfig:
    batch: int = 16  # clips in one evaluation batch; ranks take whole batches, so their number changes no result
    views: int = (
        1  # times that a clip is seen, each time other frames of it; probabilities are averaged
    )
    shuffle_frames: bool = False  # also report WAR with the frames of each clip in a random order


@dataclass
class TrackingConfig:
    enabled: bool = True
    uri: str | None = (
        None  # http://… or https://…, or sqlite:///FILE; null: sqlite file mlflow.db beside the runs
    )
    experiment: str | None = None  # null: the data set's name


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def flatten(config: Config) -> dict[str, Any]:
    """Leaves of the tree by dotted key, in plain JSON types (an enum by its name)."""

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if is_dataclass(node):
            out: dict[str, Any] = {}
            for f in fields(node):
                out |= walk(getattr(node, f.name), f"{prefix}{f.name}.")
            return out
        return {prefix[:-1]: node.name if isinstance(node, Enum) else copy.deepcopy(node)}

    return walk(config, "")


def config_hash(config: Config) -> str:
    """First 16 hex digits of the sha256 of the settings that can change a result.

    Where a run tracks itself, and how it splits the same batch over memory, are left out (:data:`NEUTRAL`): they move
    nothing but the last bit of a sum.
    """
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(NEUTRAL)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def split_batch(config: Config, world: int) -> tuple[int, int]:
    """Micro batch and accumulation steps, so that ranks x micro batch x accumulation is the global batch.

    Raises
    ------
    UserError
        If the global batch cannot be cut that way, or must not be: descriptions are contrasted over all clips of a step.
    """
    batch, micro = config.train.global_batch, config.train.micro_batch
    if batch % world:
        raise UserError(
            f"train.global_batch={batch} cannot be shared by {world} ranks: choose a multiple of {world}"
        )
    own = batch // world
    micro = micro or own
    if own % micro:
        raise UserError(
            f"train.global_batch={batch} is not a multiple of {world} ranks x train.micro_batch={micro}: "
            f"choose a micro batch that divides {own}"
        )
    if micro < own and config.train.objective is not Supervision.labels:
        raise UserError(
            f"train.objective={config.train.objective.name} holds all clips of a step against each other, so they cannot come in parts: "
            f"leave train.micro_batch out (a rank has {own} clips); model.checkpoint_image and more ranks save memory too"
        )
    return micro, own // micro


_AT_LEAST_ONE = """
    data.num_frames data.image_size data.stride data.block model.image_blocks model.lora_rank model.temporal_layers
    model.temporal_heads model.temporal_head_dim model.temporal_mlp train.epochs train.log_every train.print_every
    train.global_batch
    train.micro_batch train.max_bad_steps train.save_epochs train.save_steps train.keep eval.batch
    eval.views
"""
_NOT_NEGATIVE = """
    data.workers data.loss_budget data.augment.brightness data.augment.rotation train.seed model.context_tokens model.negative_weight
    model.description_ratio
    optim.weight_decay optim.lr_image optim.lr_temporal optim.lr_prompt optim.lr_lora optim.lr_adapters optim.warmup_epochs optim.clip_norm optim.momentum optim.gamma
"""
_POSITIVE = """
    train.description_weight model.temperature model.lora_alpha model.adapter_ratio model.modality_ratio model.adapter_scale train.save_minutes train.hang_minutes data.cache_gb
"""


def check_values(c: Config) -> None:
    """Ranges that types cannot express.

    Raises
    ------
    UserError
        For the first value out of its range.
    """
    flat = flatten(c)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
    for key in _AT_LEAST_ONE.split():
        if flat[key] is not None and flat[key] < 1:
            raise UserError(f"{key}={flat[key]}: must be at least 1")
    for key in _NOT_NEGATIVE.split():
        if flat[key] < 0:
            raise UserError(f"{key}={flat[key]}: must not be negative")
    if c.train.zero_stage not in (1, 2, 3):
        raise UserError(f"train.zero_stage={c.train.zero_stage}: must be 1, 2 or 3")
    if c.data.sampling is Sampling.uniform and c.eval.views > 1:
        raise UserError(
            f"eval.views={c.eval.views}, but with data.sampling=uniform all views are the same: use segments or dense"
        )
    if not 0 < c.data.augment.crop_scale <= 1:
        raise UserError(f"data.augment.crop_scale={c.data.augment.crop_scale}: must lie in (0, 1]")
    for key in ("train.label_smoothing", "train.class_balance"):
        if not 0 <= flat[key] < 1:
            raise UserError(f"{key}={flat[key]}: must lie in [0, 1)")
    if not 0 < c.train.val_fraction < 1:
        raise UserError(f"train.val_fraction={c.train.val_fraction}: must lie between 0 and 1")
    for key in ("model.sentences", "model.negative_sentences"):
        for name, sentences in (flat[key] or {}).items():
            if not sentences or not all(s.strip() for s in sentences):
                raise UserError(
                    f"{key}.{name}={sentences}: give one or more sentences, none of them empty"
                )
    _check_modalities(c.model)
    _check_supervision(c)
    if c.tracking.uri is not None:
        _check_uri(c.tracking.uri)
    for key in _POSITIVE.split():
        if flat[key] <= 0:
            raise UserError(f"{key}={flat[key]}: must be greater than 0")


def _check_modalities(model: ModelConfig) -> None:
    known = ("parsing", "landmarks")
    if any(level not in known for level in model.modalities) or len(set(model.modalities)) < len(
        model.modalities
    ):
        raise UserError(
            f"model.modalities={model.modalities}: give each of {' and '.join(known)} once at most"
        )
    if model.modalities and model.image is not ImageTuning.adapters:
        raise UserError(
            f"model.modalities={model.modalities}, but model.image={model.image.name}: each level has adapters of its own, set model.image=adapters"
        )
    if model.video_weight is not None and not (model.modalities and 0 <= model.video_weight <= 1):
        raise UserError(
            f"model.video_weight={model.video_weight}: must lie in [0, 1], and needs model.modalities"
        )


def _check_supervision(c: Config) -> None:
    """What needs labels is refused without them, rather than left untrained or without effect."""
    learning = c.train.objective
    needs_labels = {
        "model.context_tokens": c.model.context_tokens > 0,
        "model.text_polarity": c.model.text_polarity is TextPolarity.both,
        "train.label_smoothing": c.train.label_smoothing > 0,
        "train.class_balance": c.train.class_balance > 0,
        "data.balanced": c.data.balanced,
    }
    without = {
        "model.context_tokens": "0",
        "model.text_polarity": "positive",
        "data.balanced": "false",
    }
    for key in (
        key for key, wrong in needs_labels.items() if wrong and learning is Supervision.descriptions
    ):
        raise UserError(
            f"train.objective=descriptions uses no label, and {key} needs them: set {key}={without.get(key, '0')}"
        )
    if c.model.description_ratio and not (
        learning is Supervision.both and c.model.text_tower is TextTuning.adapters
    ):
        raise UserError(
            f"model.description_ratio={c.model.description_ratio}: adapters of descriptions' own go with train.objective=both and "
            "model.text_tower=adapters"
        )


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.password or parts.username:  # not shown: it would stand in a log
        raise UserError(
            "tracking.uri: a URL without user and password; they belong in the variables MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    if parts.scheme not in ("http", "https") and not uri.startswith("sqlite:///"):
        raise UserError(
            f"tracking.uri={uri}: give http://… or https://… of an mlflow server, which may keep its runs in PostgreSQL "
            "(docs/guides/mlflow.md), or sqlite:///FILE"
        )
