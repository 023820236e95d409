"""Zero-shot tests: classify any data set by the text features of its classes.

The model is a checkpoint, or the pretrained CLIP. Of a checkpoint everything trained is kept,
except a learned context that is specific to classes if the classes or their texts differ: it
complements those texts and means nothing for another class. A context that all classes share is
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfer_dist.config.load import load_config, read_config
from dfer_dist.config.schema import Config, Device, ImageTuning, TemporalKind, TextTuning
from dfer_dist.data.loading.sampler import ClipSet, all_clips
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.distributed.process_group import choose_device
from dfer_dist.evaluation.evaluate import Predictions, load_model, predict_here, unseen_fold
from dfer_dist.evaluation.metrics import bootstrap_ci, top_class
from dfer_dist.evaluation.significance import against_chance
from dfer_dist.runs.layout import parse_folds
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json

if TYPE_CHECKING:
    from dfer_dist.checkpoints.portable import Checkpoint
    from dfer_dist.models.dferclip import DFERCLIP

Sentences = dict[str, list[str]]


def zero_shot(
    what: Path,
    fold: int | None,
    overrides: list[str],
    out: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Test on all clips of a data set, or of one fold, by the texts of its classes.

    Parameters
    ----------
    what : Path
        A checkpoint's folder, or LATEST or BEST next to it; or the name or file of an experiment,
        whose pretrained CLIP is tested as it is.
    fold : int, optional
        By default all clips of the set; on the set of a checkpoint's training, its test fold.
    overrides : list of str
        ``key=value`` overrides, such as ``data.shards=…`` and ``model.sentences={…}``.
    out : Path, optional
        Where to write the table of predictions (parquet), and next to it the result (``.json``).
    progress : function, optional
        Called with (clips done, clips in all).

    Returns
    -------
    dict
        The result: scores with intervals, chance level, origin of the model, texts.

    Raises
    ------
    UserError
        If the checkpoint or experiment does not exist, a class has no text, or the model was
        trained on the fold.
    """
    if out and out.suffix != ".parquet":
        raise UserError(
            f"--out {out}: give a name that ends with .parquet; the result is written next to it, "
            "as .json"
        )
    # The device must be chosen before DeepSpeed is imported.
    choose_device(Device.auto)
    test = _load_test(what, fold, overrides)
    clips = _clips(test.index, test.fold)
    table = predict_here(test.model, test.config, test.index, clips, progress)
    result = _result(test, table)
    if out:
        table.write(out)
        write_json(out.with_suffix(".json"), result)
    return result


@dataclass(frozen=True)
class _Test:
    """A model and the data it is tested on.

    ``fold`` is None for all clips of the data set, ``saved`` for a pretrained CLIP.
    """

    model: DFERCLIP
    config: Config
    index: Index
    fold: int | None
    saved: Checkpoint | None = None


def _load_test(what: Path, fold: int | None, overrides: list[str]) -> _Test:
    if what.suffix in (".yaml", ".yml") or (len(what.parts) == 1 and not what.exists()):
        return _test_pretrained(str(what), fold, overrides)
    return _test_checkpoint(what, fold, overrides)


def _test_pretrained(experiment: str, fold: int | None, overrides: list[str]) -> _Test:
    from dfer_dist.models.build import build_model, resolve_image_size

    config = _as_pretrained(load_config(experiment, overrides))
    index = open_index(config.data)
    torch.manual_seed(config.train.seed)
    image_size = resolve_image_size(config)
    model = build_model(config.model, index.classes, config.data.num_frames, image_size)
    return _Test(model.eval(), config, index, fold and parse_folds(str(fold), index.folds)[0])


def _test_checkpoint(path: Path, fold: int | None, overrides: list[str]) -> _Test:
    from dfer_dist.checkpoints import portable as checkpoint

    saved = checkpoint.read(path, weights_only=True)
    config = read_config(saved.path / checkpoint.CONFIG, overrides)
    index = open_index(config.data)
    fold = _fold(saved, index, fold)
    # Fails for a missing modality before the model is built.
    describe_modalities(index, config.model.modalities)
    fitted, config = for_classes(saved, config, index.classes)
    return _Test(load_model(fitted, config, index.classes), config, index, fold, saved)


def _result(test: _Test, table: Predictions) -> dict[str, Any]:
    config, index = test.config, test.index
    return {
        "zero_shot": True,
        "dataset": index.name,
        "fold": test.fold,
        **asdict(table.score(index.classes)),
        **_significance(table.labels, top_class(table.logits), index.classes),
        "trained_on": test.saved and _origin(test.saved),
        "context": _context(test.saved, config),
        "texts": _texts(config, index.classes),
        "backbone": Path(config.model.backbone).name,
        "pretrained_sha256": test.model.pretrained_sha256,
        "index_hash": index.hash,
        "num_frames": config.data.num_frames,
        "sampling": config.data.sampling.name,
        "views": config.eval.views,
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
    from dfer_dist.models.class_texts import polarity_texts

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
    plain: dict[str, Any] = {
        "image": ImageTuning.none,
        "text_tower": TextTuning.frozen,
        "temporal": TemporalKind.mean,
        "context_tokens": 0,
        "description_ratio": 0.0,
        "normalize": True,
        "modalities": [],
        "video_weight": None,
    }
    return replace(config, model=replace(config.model, **plain))


def _fold(saved: Checkpoint, index: Index, fold: int | None) -> int | None:
    """Return the fold to test on; None for all clips of another data set."""
    if fold is None and saved.state.get("dataset") == index.name:
        fold = saved.state.get("fold")
    if fold is None:
        return None
    return unseen_fold(saved, index, fold)


def _clips(index: Index, fold: int | None) -> ClipSet:
    """Return the test clips of a fold or of all folds, never clips of a split ``train``."""
    folds = index.folds if fold is None else [fold]
    return all_clips(index, sorted({shard for k in folds for shard in index.test_shards(k)}))


def _significance(labels: Any, predicted: Any, classes: Sequence[str]) -> dict[str, Any]:
    tables = [(labels, predicted)]
    intervals = {
        metric: list(bootstrap_ci(tables, len(classes), metric)) for metric in ("uar", "war")
    }
    counts = [int((labels == c).sum()) for c in range(len(classes))]
    commonest = classes[counts.index(max(counts))]
    return {
        "ci95": intervals,
        "chance": {**asdict(against_chance(labels, predicted, len(classes))), "class": commonest},
    }


def _origin(saved: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint was trained on, as far as it is recorded."""
    state = saved.state
    about = {
        key: state.get(key)
        for key in (
            "dataset",
            "fold",
            "epoch",
            "step",
            "index_hash",
            "config_hash",
            "converted_from",
        )
    }
    return {
        **about,
        "classes": state.get("classes"),
        "objective": saved.config.train.objective.name,
    }


def _context(saved: Checkpoint | None, config: Config) -> str:
    if config.model.context_tokens:
        return "kept"
    if saved is not None and saved.config.model.context_tokens > 0:
        return "left out"
    return "none"


def _texts(config: Config, classes: Sequence[str]) -> dict[str, Mapping[str, Sequence[str]]]:
    from dfer_dist.models.class_texts import polarity_texts

    return {
        polarity: dict(zip(classes, texts, strict=True))
        for polarity, texts in polarity_texts(classes, config.model).items()
    }
