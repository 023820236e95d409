"""Zero-shot tests: classify any data set by the text features of its classes.

The model is a checkpoint, or a pretrained backbone. Of a checkpoint everything trained is kept,
except a learned context that is specific to classes if the classes or their texts differ: it
complements those texts and means nothing for another class. A context that all classes share is
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, Head, ImageTuning, TemporalKind, TextTuning
from dfer_dist.data.folds.clips import FoldClips, fold_numbers
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.evaluation.eval_clips import clips_to_test, fold_to_test
from dfer_dist.evaluation.evaluate import (
    list_lost_clips,
    load_model,
    open_checkpoint,
    predict_here,
)
from dfer_dist.evaluation.metrics import Ints, bootstrap_ci, top_class
from dfer_dist.evaluation.significance import against_chance
from dfer_dist.models.class_texts import output_classes, polarity_texts
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.runs.layout import parse_folds
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json

Sentences = dict[str, list[str]]
# What the result tells of a checkpoint, as far as it is recorded.
_ORIGIN = ("dataset", "fold", "epoch", "step", "index_hash", "config_hash", "converted_from")


def zero_shot(
    what: Path,
    fold: int | None,
    overrides: list[str],
    out: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Test on all clips of a data set, or of one fold, by the texts of its classes.

    Return scores with intervals, the chance level, the model's origin and the texts.

    Parameters
    ----------
    what : Path
        A checkpoint's folder, or LATEST or BEST next to it; or the name or file of an experiment,
        whose pretrained backbone is tested as it is.
    fold : int, optional
        By default all clips of the set; on the set of a checkpoint's training, its test fold.
    overrides : list of str
        ``key=value`` overrides, such as ``data.shards=…`` and ``model.sentences={…}``.
    out : Path, optional
        Where to write the table of predictions (parquet), and next to it the result (``.json``).
    progress : function, optional
        Called with (clips done, clips in all).

    Raises
    ------
    UserError
        If ``what`` is missing or reads no texts, a class has none, or the fold was trained on.
    """
    if out and out.suffix != ".parquet":
        raise UserError(
            f"--out {out}: give a name that ends with .parquet (the result is next to it, as .json)"
        )
    saved, config, index, fold = _load(what, fold, overrides)
    model, clips = load_model(saved, config, index.classes), _clips(config, index, fold)
    table = predict_here(model, config, index, clips.test, progress)
    result = {
        "zero_shot": True,
        "dataset": index.name,
        "fold": fold,
        **asdict(table.score(index.classes)),
        **_significance(table.labels, top_class(table.logits), index.classes),
        **_protocol(saved, config, index, model),
        "left_out": list_lost_clips(clips),
    }
    if out:
        table.write(out)
        write_json(out.with_suffix(".json"), result)
    return result


def _load(
    what: Path, fold: int | None, overrides: list[str]
) -> tuple[Checkpoint | None, Config, Index, int | None]:
    """Return the checkpoint, fitted to the classes of the data, its settings, data and fold."""
    if what.suffix in (".yaml", ".yml") or (len(what.parts) == 1 and not what.exists()):
        config = load_config(str(what), overrides)
        _check_text(config, "set model.head=text and a backbone with a text tower")
        config = _as_pretrained(config)
        index = open_index(config.data)
        if fold is not None:
            parse_folds(str(fold), fold_numbers(index, open_folds(config.data, index)))
        return None, config, index, fold
    saved, config, index = open_checkpoint(what, overrides)
    _check_text(config, "test it without --zero-shot on data with the classes of its training")
    fold = _fold(saved, config, index, fold)
    return *for_classes(saved, config, index.classes), index, fold


def _check_text(config: Config, advice: str) -> None:
    """Refuse a model that does not read texts."""
    if config.model.head is Head.linear:
        raise UserError(
            "--zero-shot compares clips with texts of the classes, and model.head=linear of "
            f"{config.model.backbone} reads none: {advice}"
        )


def _protocol(
    saved: Checkpoint | None, config: Config, index: Index, model: DFERCLIP
) -> dict[str, Any]:
    texts, context = polarity_texts(index.classes, config.model), "none"
    if config.model.context_tokens:
        context = "kept"
    elif saved and saved.config.model.context_tokens > 0:
        context = "left out"
    return {
        "trained_on": saved and _origin(saved),
        "context": context,
        "texts": {
            polarity: dict(
                zip(output_classes(index.classes, config.model), of_classes, strict=True)
            )
            for polarity, of_classes in texts.items()
        },
        "backbone": Path(config.model.backbone).name,
        "pretrained_sha256": model.pretrained_sha256,
        "index_hash": index.hash,
        "num_frames": config.data.num_frames,
        "sampling": config.data.sampling.name,
        "views": config.eval.views,
        "crops": config.eval.crops,
        "mirror": config.eval.mirror,
    }


def for_classes(
    saved: Checkpoint, config: Config, classes: Sequence[str]
) -> tuple[Checkpoint, Config]:
    """Return a checkpoint and its settings, with overrides, for other classes.

    See the top of this module. A checkpoint's own sentences are dropped if they do not name all of
    the classes; sentences from overrides are kept.

    Raises
    ------
    UserError
        For a class without a text.
    """
    had, model = saved.config.model, config.model
    model = replace(
        model,
        sentences=_fitting(model.sentences, had.sentences, classes),
        negative_sentences=_fitting(model.negative_sentences, had.negative_sentences, classes),
    )
    trained = tuple(saved.state.get("classes", classes))
    same = trained == tuple(classes) and polarity_texts(classes, model) == polarity_texts(
        trained, had
    )
    weights = saved.model
    if model.context_tokens and model.class_specific and not same:
        model = replace(model, context_tokens=0)
        weights = {name: w for name, w in weights.items() if name != "prompt.context"}
    return replace(saved, model=weights), replace(config, model=model)


def _fitting(
    own: Sentences | None, had: Sentences | None, classes: Sequence[str]
) -> Sentences | None:
    # An override adds to the sentences of the checkpoint.
    if own and set(own) > set(classes):
        return {name: own[name] for name in classes}
    if own is not None and own == had and set(own) != set(classes):
        return None
    return own


def _as_pretrained(config: Config) -> Config:
    """Return settings of a model without parts that only training could make."""
    if config.model.pretrained == "none":
        raise UserError(
            f"{config.model.backbone} has random weights, which cannot classify: set "
            "model.pretrained, or give a checkpoint"
        )
    model = replace(
        config.model,
        image=ImageTuning.none,
        text_tower=TextTuning.frozen,
        temporal=TemporalKind.mean,
        context_tokens=0,
        description_ratio=0.0,
        normalize=True,
        modalities=[],
        video_weight=None,
    )
    return replace(config, model=model)


def _fold(saved: Checkpoint, config: Config, index: Index, fold: int | None) -> int | None:
    """Return the fold to test on; None for all clips of another data set."""
    folds = open_folds(config.data, index)
    # a checkpoint that knows neither set nor fold
    if fold is None and saved.state.get("fold") is None:
        return None
    return fold_to_test(saved, index, fold, folds)


def _clips(config: Config, index: Index, fold: int | None) -> FoldClips:
    folds = None if fold is None else open_folds(config.data, index)
    return clips_to_test(index, fold, folds)


def _significance(labels: Ints, predicted: Ints, classes: Sequence[str]) -> dict[str, Any]:
    tables, count = [(labels, predicted)], len(classes)
    commonest = classes[int(np.bincount(labels, minlength=count).argmax())]
    return {
        "ci95": {metric: list(bootstrap_ci(tables, count, metric)) for metric in ("uar", "war")},
        "chance": {**asdict(against_chance(labels, predicted, count)), "class": commonest},
    }


def _origin(saved: Checkpoint) -> dict[str, Any]:
    about = {key: saved.state.get(key) for key in _ORIGIN}
    return {
        **about,
        "classes": saved.state.get("classes"),
        "objective": saved.config.train.objective.name,
    }
