"""The settings of a run, as one tree of dataclasses.

Each default is written here and nowhere else. It is the published recipe of DFER-CLIP (Zhao &
Patras, BMVC'23, section 4.1), with class sentences of our own writing. A file in ``configs/`` holds
only what differs; :mod:`dfer_dist.config.load` reads it, :mod:`dfer_dist.config.checks` checks it,
and :mod:`dfer_dist.config.reference` lists all settings.
"""

# ruff: noqa: RUF009 (setting() returns a dataclasses.field)

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from dfer_dist.config.model import (  # noqa: F401 (the tree's types are imported from here)
    ClassText,
    Head,
    HeadInit,
    ImageTuning,
    ModelConfig,
    Output,
    TemporalKind,
    TemporalPool,
    TextPolarity,
    TextTuning,
    TokenPosition,
)
from dfer_dist.config.setting import Choice, info_of, setting
from dfer_dist.config.train import (  # noqa: F401 (the tree's types are imported from here)
    Device,
    OptimConfig,
    Optimizer,
    Precision,
    Schedule,
    Selection,
    Supervision,
    TargetKind,
    TrainConfig,
)
from dfer_dist.utils.errors import UserError


class Sampling(Choice):
    """Which frames of a clip are read."""

    segments = (
        "One frame of each of equal segments: a random one in training, the middle one in a test "
        "(TSN: Wang et al., ECCV 2016)."
    )
    uniform = "Frames at equal distances, the first and the last included."
    dense = (
        "A window of frames data.stride apart, at a random place in training, in the middle in a "
        "test (SlowFast: Feichtenhofer et al., ICCV 2019)."
    )


class Ambiguous(Choice):
    """What training does with clips without a majority, the split ``ambiguous``."""

    leave_out = "Nothing."
    train = "Every fold trains on their votes; no test has them."


class ExtraClasses(Choice):
    """What becomes of clips of a class that the first of several sets lacks."""

    leave_out = (
        "They are neither trained on nor tested; the classes, and so the scores of the first set, "
        "stay those of a training on that set alone."
    )
    keep = "Their classes follow those of the first set."


if TYPE_CHECKING:
    StrOrList = str | list[str]
else:
    # OmegaConf has no type for it; dfer_dist.config.checks checks the value
    StrOrList = Any


# Settings by their name in version 1, whose stored files and hashes use these names.
RENAMED_KEYS = {
    "model.levels": "model.modalities",
    "model.level_ratio": "model.modality_ratio",
    "model.text_sides": "model.text_polarity",
}

_DFER_CLIP = "DFER-CLIP: Zhao & Patras, BMVC 2023"


@dataclass
class AugmentConfig:
    """Training augmentation; all frames of a clip get the same."""

    crop_scale: float = setting(
        0.08,
        "Smallest share of the frame's area that a random crop keeps; 1 turns cropping off.",
        above=0,
        at_most=1,
        source=_DFER_CLIP,
    )
    flip: bool = setting(True, "Mirror every other clip.", source=_DFER_CLIP)
    brightness: float = setting(
        0.0,
        "Largest relative change of brightness.",
        at_least=0,
        source=f"{_DFER_CLIP} (0.5 for DFEW)",
    )
    rotation: float = setting(
        0.0,
        "Largest rotation in degrees, either way.",
        at_least=0,
        source=f"{_DFER_CLIP} (4 for FERV39k)",
    )
    rand_augment: int = setting(
        0,
        "Operations of RandAugment on each clip; 0 turns it off.",
        at_least=0,
        source="RandAugment: Cubuk et al., NeurIPS 2020 (2)",
        later=True,
    )
    rand_magnitude: int = setting(
        9,
        "Strength of these operations on torchvision's scale.",
        at_least=0,
        at_most=30,
        source="RandAugment: Cubuk et al., NeurIPS 2020",
        later=True,
    )
    erasing: float = setting(
        0.0,
        "Probability that a random box of a clip is erased.",
        at_least=0,
        at_most=1,
        source="Random Erasing: Zhong et al., AAAI 2020 (0.5)",
        later=True,
    )
    mixup: float = setting(
        0.0,
        "Alpha of the Beta distribution of mixup's weights; 0 turns it off.",
        at_least=0,
        source="mixup: Zhang et al., ICLR 2018 (0.1 to 0.4)",
        later=True,
    )
    cutmix: float = setting(
        0.0,
        "Alpha of the Beta distribution of CutMix's areas; 0 turns it off.",
        at_least=0,
        source="CutMix: Yun et al., ICCV 2019 (1)",
        later=True,
    )

    @property
    def mixes_clips(self) -> bool:
        """Whether pairs of clips are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass
class DataConfig:
    """The packed data set and how clips are read from it."""

    shards: StrOrList = setting(
        "???",
        "Folder with index.json, or its URL (https, s3, hf, gs, file, …); or a list of them.",
        neutral=True,
    )
    mixture: dict[str, float] | None = setting(
        None,
        "Weights of several sets by name: each epoch takes so many times a set's clips, in turns; "
        "1 for a set without one.",
        later=True,
    )
    extra_classes: ExtraClasses = setting(ExtraClasses.leave_out, later=True)
    folds: str | None = setting(
        None, "File of dfer folds with other folds than the set's own.", neutral=True
    )
    folds_hash: str | None = setting(
        None, "Content hash of data.folds; a run records it and keeps to it.", later=True
    )
    cache: str | None = setting(
        None, "Folder for shards of a URL; may hold $VARIABLES; null chooses one.", neutral=True
    )
    cache_gb: float = setting(
        50.0, "Maximum size of the cache in GB (10^9 bytes).", above=0, neutral=True
    )
    num_frames: int = setting(16, "Number of frames sampled from a clip.", at_least=1)
    sampling: Sampling = setting(Sampling.segments)
    stride: int = setting(4, "Frames from one frame of a dense window to the next.", at_least=1)
    image_size: int | None = setting(
        None, "Pixels per side of what the model sees; null is the backbone's size.", at_least=1
    )
    workers: int = setting(
        2, "Decoding processes of a rank; 0 decodes in the rank itself.", at_least=0, neutral=True
    )
    block: int = setting(
        512, "Steps within which clips are shuffled; more need more shards at a time.", at_least=1
    )
    balanced: bool = setting(
        False,
        "Show every class equally often in an epoch by repeating clips of the rarer ones.",
        source="Kang et al., ICLR 2020",
    )
    ambiguous: Ambiguous = setting(Ambiguous.leave_out, later=True)
    descriptions: str | None = setting(
        None, "Source of the descriptions, by name or hash, if the set has several in English."
    )
    loss_budget: int = setting(
        0, "Damaged clips that a training run may leave out.", neutral=True, at_least=0
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @property
    def locations(self) -> list[str]:
        """The folders and URLs of ``shards``, one or more."""
        if isinstance(self.shards, str):
            return [self.shards]
        return self.shards


@dataclass
class EvalConfig:
    """How a checkpoint is tested."""

    batch: int = setting(
        16, "Clips in one evaluation batch; it changes no result.", at_least=1, neutral=True
    )
    views: int = setting(
        1,
        "Times that a clip is seen with other frames; the probabilities are averaged.",
        at_least=1,
        source="Non-local Neural Networks: Wang et al., CVPR 2018",
    )
    crops: int = setting(
        1,
        "Square crops of a clip along the longer side of its frames; 1 is the whole frame.",
        at_least=1,
        source="Non-local Neural Networks: Wang et al., CVPR 2018 (3)",
        later=True,
    )
    mirror: bool = setting(
        False,
        "Also see each clip mirrored; the probabilities are averaged.",
        source="AlexNet: Krizhevsky et al., NeurIPS 2012, section 4.1",
        later=True,
    )
    shuffle_frames: bool = setting(
        False, "Also test with the frames of each clip in random order.", neutral=True
    )
    each_epoch: bool = setting(
        False,
        "Also test after each epoch with train.selection=last; it selects none.",
        neutral=True,
    )


@dataclass
class TrackingConfig:
    """The MLflow tracking server."""

    enabled: bool = setting(True, "Log to MLflow.", neutral=True)
    uri: str | None = setting(
        None,
        "URL, or sqlite:///FILE; null: MLFLOW_TRACKING_URI, or mlflow.db next to the runs.",
        neutral=True,
    )
    experiment: str | None = setting(
        None,
        "Experiment's name; null: MLFLOW_EXPERIMENT_NAME or _ID, or the data set's name.",
        neutral=True,
    )


@dataclass
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def walk_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield the dotted key, the field and the value of each setting below a dataclass."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from walk_settings(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f, value


def flatten(config: Config) -> dict[str, Any]:
    """Return all settings by dotted key, in plain JSON types; an enum by its name."""
    return {
        key: value.name if isinstance(value, Choice) else copy.deepcopy(value)
        for key, _, value in walk_settings(config)
    }


#: Keys of the settings that can change no result.
NEUTRAL = tuple(key for key, f, _ in walk_settings(Config()) if info_of(f).neutral)
_LATER = {key for key, f, _ in walk_settings(Config()) if info_of(f).later}
_LATER_DEFAULTS = [(key, value) for key, value in flatten(Config()).items() if key in _LATER]


def config_hash(config: Config) -> str:
    """Return the first 16 hex digits of the sha256 of the settings that can change a result.

    Settings in :data:`NEUTRAL` are left out: they change at most the last bit of a sum. Renamed
    settings enter under their first name, and settings that earlier versions lack only if they are
    not at their default, so the hash of a stored run stays the same.
    """
    first_name = {new: old for old, new in RENAMED_KEYS.items()}
    flat = {
        first_name.get(key, key): value
        for key, value in flatten(config).items()
        if key not in NEUTRAL and (key, value) not in _LATER_DEFAULTS
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def split_batch(config: Config, world: int) -> tuple[int, int]:
    """Return micro batch and accumulation steps for ``world`` ranks.

    Ranks x micro batch x accumulation steps is the global batch.

    Raises
    ------
    UserError
        If the global batch cannot be divided that way, or must not be divided: descriptions are
        contrasted over all clips of a step, and pairs of clips that are mixed stay together.
    """
    train = config.train
    if train.global_batch % world:
        raise UserError(
            f"train.global_batch={train.global_batch} cannot be shared by {world} ranks: "
            f"choose a multiple of {world}"
        )
    own = train.global_batch // world
    micro = train.micro_batch or own
    if own % micro:
        raise UserError(
            f"train.global_batch={train.global_batch} is not a multiple of {world} ranks x "
            f"train.micro_batch={micro}: choose a micro batch that divides {own}"
        )
    if micro % 2 and config.data.augment.mixes_clips:
        raise UserError(
            f"train.global_batch={train.global_batch} on {world} ranks gives micro batches of "
            f"{micro} clips, and data.augment.mixup and cutmix mix pairs of clips: choose an even "
            "number of clips a rank, and an even train.micro_batch"
        )
    if micro < own and train.objective is not Supervision.labels:
        raise UserError(
            f"train.objective={train.objective.name} compares all clips of a step with each "
            f"other, so they cannot come in parts: leave train.micro_batch out (a rank has {own} "
            "clips); model.checkpoint_image and more ranks save memory too"
        )
    return micro, own // micro
