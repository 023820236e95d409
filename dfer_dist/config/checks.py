"""Checks of settings that types cannot express."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from dfer_dist.config.applicable import VIDEO, applicable_settings
from dfer_dist.config.schema import (
    Ambiguous,
    Config,
    DataConfig,
    Head,
    HeadInit,
    ImageTuning,
    ModelConfig,
    Output,
    Sampling,
    Supervision,
    TargetKind,
    TextPolarity,
    TextTuning,
    flatten,
    walk_settings,
)
from dfer_dist.config.setting import info_of
from dfer_dist.utils.errors import UserError

# Backbones without a text tower begin so.
WITHOUT_TEXT = ("timm:", VIDEO)
# Settings that need labels, and their values where there are none.
_WITHOUT_LABELS = {
    "model.context_tokens": 0,
    "model.output": "softmax",
    "model.text_polarity": "positive",
    "train.target": "majority",
    "train.label_smoothing": 0,
    "train.class_balance": 0,
    "data.balanced": False,
}


def check_values(config: Config) -> None:
    """Check each setting's range, and settings that depend on each other.

    Raises
    ------
    UserError
        For the first setting with a wrong value.
    """
    for key, field, value in walk_settings(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
        fault = info_of(field).find_fault(value)
        if fault:
            raise UserError(f"{key}={value}: {fault}")
    _check_sets(config.data)
    _check_sentences(config.model)
    _check_head(config)
    _check_modalities(config.model)
    _check_supervision(config)
    _check_optimizer(config)
    _check_augmentation(config)
    if config.data.folds_hash and not config.data.folds:
        raise UserError("data.folds_hash is the hash of data.folds, which is not set: set both")
    if config.data.sampling is Sampling.uniform and config.eval.views > 1:
        raise UserError(
            f"eval.views={config.eval.views}: with data.sampling=uniform all views are the same"
        )
    if config.tracking.uri is not None:
        check_uri(config.tracking.uri, "tracking.uri")


def _check_head(config: Config) -> None:
    """Refuse settings of the text tower where there is none, or none is used."""
    model = config.model
    family, colon, _ = model.backbone.partition(":")
    without_text = bool(colon) and f"{family}:" in WITHOUT_TEXT
    if without_text and (model.head is Head.text or model.head_init is HeadInit.text):
        key = "head" if model.head is Head.text else "head_init"
        raise UserError(
            f"model.backbone={model.backbone} has no text tower, which model.{key}=text needs: "
            "set model.head=linear, and model.head_init=zeros or normal"
        )
    needs_text = {
        "model.text_polarity": model.text_polarity is TextPolarity.both,
        "model.text_tower": model.text_tower is not TextTuning.frozen,
        "train.objective": config.train.objective is not Supervision.labels,
    }
    settings = flatten(config)
    for key, is_used in needs_text.items():
        if is_used and model.head is Head.linear:
            raise UserError(
                f"{key}={settings[key]} needs the text tower, which model.head=linear does not "
                "use: set model.head=text"
            )
    if model.temperature is None and config.train.objective is not Supervision.labels:
        raise UserError(
            f"model.temperature=null with train.objective={config.train.objective.name}: give the "
            "temperature of its loss, such as 0.01"
        )


def _check_sets(data: DataConfig) -> None:
    locations = data.locations
    if not isinstance(locations, list) or not locations or not all(map(_is_text, locations)):
        raise UserError(
            f"data.shards={data.shards}: give a folder or URL, or a list of them as in "
            "'data.shards=[data/dfew,data/mafw]'"
        )
    for name, weight in (data.mixture or {}).items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"data.mixture.{name}={weight}: must be greater than 0")
    if data.balanced and set((data.mixture or {}).values()) - {1}:
        raise UserError(
            f"data.balanced=true shows each class equally often, and data.mixture={data.mixture} "
            "sets with other weights: leave one of them out"
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _check_sentences(model: ModelConfig) -> None:
    for key in ("sentences", "negative_sentences"):
        for name, sentences in (getattr(model, key) or {}).items():
            if not sentences or not all(sentence.strip() for sentence in sentences):
                raise UserError(f"model.{key}.{name}={sentences}: give sentences, none empty")


def _check_modalities(model: ModelConfig) -> None:
    chosen = model.modalities
    if not {"parsing", "landmarks"}.issuperset(chosen) or len(set(chosen)) < len(chosen):
        raise UserError(f"model.modalities={chosen}: give parsing and landmarks once at most")
    if chosen and model.image is not ImageTuning.adapters:
        raise UserError(f"model.modalities={chosen} need adapters: set model.image=adapters")
    if chosen and model.backbone.startswith(VIDEO):
        raise UserError(
            f"model.modalities={chosen}: {model.backbone} is a video tower, which sees frames "
            "alone: leave them out"
        )
    if model.video_weight is not None and not chosen:
        raise UserError(f"model.video_weight={model.video_weight} needs model.modalities")


def _check_augmentation(config: Config) -> None:
    augment, objective = config.data.augment, config.train.objective
    if augment.rand_augment and config.model.modalities:
        raise UserError(
            f"data.augment.rand_augment={augment.rand_augment} moves the pixels of frames, and "
            "parsing maps and landmarks would not follow: set it to 0, or leave model.modalities "
            "out"
        )
    if augment.mixes_clips and objective is not Supervision.labels:
        used = [k for k in ("mixup", "cutmix") if getattr(augment, k)]
        given = " and ".join(f"data.augment.{k}={getattr(augment, k):g}" for k in used)
        raise UserError(
            f"{given}: labels are mixed, but descriptions (train.objective={objective.name}) "
            f"cannot be: leave {' and '.join(used)} out"
        )


def _check_supervision(config: Config) -> None:
    """Refuse settings that need labels when training uses none."""
    train, model = config.train, config.model
    if train.objective is Supervision.descriptions:
        settings = flatten(config)
        for key, without in _WITHOUT_LABELS.items():
            if settings[key] != without:
                raise UserError(
                    f"train.objective=descriptions uses no label, and {key} needs them: "
                    f"set {key}={str(without).lower()}"
                )
    if train.target is TargetKind.votes and model.output is Output.sigmoid:
        raise UserError(
            "train.target=votes gives each clip one distribution over the classes, and "
            "model.output=sigmoid each class a probability of its own: set model.output=softmax"
        )
    if config.data.ambiguous is Ambiguous.train and train.target is TargetKind.majority:
        raise UserError(
            "data.ambiguous=train: clips without a majority have votes and no label: set "
            "train.target=votes"
        )
    has_adapters = train.objective is Supervision.both and model.text_tower is TextTuning.adapters
    if model.description_ratio and not has_adapters:
        raise UserError(
            f"model.description_ratio={model.description_ratio}: adapters of descriptions' "
            "own need train.objective=both and model.text_tower=adapters"
        )


def _check_optimizer(config: Config) -> None:
    """Refuse betas that are not two decay rates, and a smallest rate above a largest one."""
    betas, lowest = config.optim.betas, config.optim.min_lr
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas}: give two numbers, each at least 0 and below 1")
    settings = applicable_settings(config)
    for key, rate in settings.items():
        if key.startswith("optim.lr_") and "optim.min_lr" in settings and rate < lowest:
            raise UserError(
                f"optim.min_lr={lowest:g} is above {key}={rate:g}: set {rate:g} at most"
            )


def check_uri(uri: str, name: str) -> None:
    """Refuse a tracking URI that is not supported; ``name`` is the setting or variable it is from.

    Raises
    ------
    UserError
        If it has a password or is of another kind of store.
    """
    parts = urlsplit(uri)
    if parts.password or parts.username:
        # The URL is not repeated: the error goes into logs.
        raise UserError(
            f"{name}: give a URL without user and password; they belong in the variables "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    is_server = parts.scheme in ("http", "https") and parts.netloc
    is_file = uri.startswith("sqlite:///") and uri != "sqlite:///"
    if not (is_server or is_file):
        raise UserError(
            f"{name}={uri}: give http://… or https://… of an mlflow server, which may keep "
            "its runs in PostgreSQL (docs/guides/mlflow.md), or sqlite:///FILE"
        )
