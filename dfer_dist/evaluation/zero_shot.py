"""Zero-shot tests: a model, or CLIP untrained, on any set, by what the text tower makes of that set's classes.

Of a checkpoint everything that was trained is kept, but for a learned context that is specific to classes, where these are other ones or have other
texts: it stands for what those sentences lack, and means nothing beside another class's. A context that all classes share is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfer_dist.config.load import load_config, read_config
from dfer_dist.config.schema import Config, Device, ImageTuning, TemporalKind, TextTuning
from dfer_dist.data.loading.sampler import ClipSet, all_clips
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.distributed.process_group import choose_device
from dfer_dist.evaluation.evaluate import load_model, predict_here, unseen_fold
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
    """Test on every clip of a set, or of one of its folds, by the texts of its classes, in this process.

    Parameters
    ----------
    what : Path
        A checkpoint's folder, or LATEST or BEST beside it; or the name or file of an experiment, of which the pretrained CLIP is tested as it is.
    fold : int, optional
        By default all clips of the set; of the set that a checkpoint was trained on, the fold that it was to be tested on.
    overrides : list of str
        ``key=value`` words on top of the settings, such as ``data.shards=…`` and ``model.sentences={…}``.
    out : Path, optional
        Where to write the table of predictions (parquet), and beside it the result (``.json``).

    Returns
    -------
    dict
        What stands in the result: scores with intervals, chance, what it was trained on, the texts.

    Raises
    ------
    UserError
        If there is no such checkpoint or experiment, a class has no text, or the fold is one that it was trained on.
    """
    if out and out.suffix != ".parquet":
        raise UserError(
            f"--out {out}: give a name that ends with .parquet; the result goes beside it, as .json"
        )
    choose_device(Device.auto)  # before the next line, which imports DeepSpeed
    from dfer_dist.checkpoints import portable as checkpoint

    saved: Checkpoint | None = None
    if what.suffix in (".yaml", ".yml") or (len(what.parts) == 1 and not what.exists()):
        config = _as_pretrained(load_config(str(what), overrides))
        index = open_index(config.data)
        model, number = (
            _untrained(config, index.classes),
            fold and parse_folds(str(fold), index.folds)[0],
        )
    else:
        saved = checkpoint.read(what, weights_only=True)
        config = read_config(saved.path / checkpoint.CONFIG, overrides)
        index = open_index(config.data)
        number = _fold(saved, index, fold)
        describe_modalities(
            index, config.model.modalities
        )  # one that is missing is told before the model is built
        fitted, config = for_classes(saved, config, index.classes)
        model = load_model(fitted, config, index.classes)
    table = predict_here(model, config, index, _clips(index, number), progress)
    result = {
        "zero_shot": True,
        "dataset": index.name,
        "fold": number,
        **asdict(table.score(index.classes)),
    }
    result |= _sure(table.labels, top_class(table.logits), index.classes)
    result |= {
        "trained_on": saved and _origin(saved),
        "context": _context(saved, config),
        "texts": _texts(config, index.classes),
    }
    result |= {
        "backbone": Path(config.model.backbone).name,
        "pretrained_sha256": model.pretrained_sha256,
    }
    result |= {
        "index_hash": index.hash,
        "num_frames": config.data.num_frames,
        "sampling": config.data.sampling.name,
    }
    result |= {"views": config.eval.views}
    if out:
        table.write(out)
        write_json(out.with_suffix(".json"), result)
    return result


def for_classes(
    saved: Checkpoint, config: Config, classes: Sequence[str]
) -> tuple[Checkpoint, Config]:
    """A checkpoint and its settings, with words of the person's on top, as they fit other classes: see the top of this module.

    Sentences of its own that a checkpoint has for its classes are left out where they do not name all of these; those that the person gave stay.

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
    if own and set(own) > set(classes):  # a word on the command line adds to those that are there
        return {name: own[name] for name in classes}
    return None if own == had and own is not None and set(own) != set(classes) else own


def _as_pretrained(config: Config) -> Config:
    """Settings under which nothing stands between CLIP's towers that training would have to make."""
    if config.model.pretrained == "none":
        raise UserError(
            f"{config.model.backbone} has random weights, which tell nothing apart: set model.pretrained, or give a checkpoint"
        )
    plain: dict[str, Any] = {
        "image": ImageTuning.none,
        "text_tower": TextTuning.frozen,
        "temporal": TemporalKind.mean,
    }
    plain |= {
        "context_tokens": 0,
        "description_ratio": 0.0,
        "normalize": True,
        "levels": [],
        "video_weight": None,
    }
    return replace(config, model=replace(config.model, **plain))


def _untrained(config: Config, classes: Sequence[str]) -> DFERCLIP:
    from dfer_dist.models.build import build_model, resolve_image_size

    torch.manual_seed(config.train.seed)
    return build_model(
        config.model, classes, config.data.num_frames, resolve_image_size(config)
    ).eval()


def _fold(saved: Checkpoint, index: Index, fold: int | None) -> int | None:
    """The fold to test on; None for all clips of another set than the one that the checkpoint is of."""
    if fold is None and saved.state.get("dataset") == index.name:
        fold = saved.state.get("fold")
    return None if fold is None else unseen_fold(saved, index, fold)


def _clips(index: Index, fold: int | None) -> ClipSet:
    """Those of a fold, or of all of them; FERV39k has one test fold, and its training clips are left alone."""
    folds = index.folds if fold is None else [fold]
    return all_clips(index, sorted({shard for k in folds for shard in index.test_shards(k)}))


def _sure(labels: Any, predicted: Any, classes: Sequence[str]) -> dict[str, Any]:
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
    """What a checkpoint was trained on, as far as it says so."""
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
    had = saved is not None and saved.config.model.context_tokens > 0
    return "kept" if config.model.context_tokens else "left out" if had else "none"


def _texts(config: Config, classes: Sequence[str]) -> dict[str, Mapping[str, Sequence[str]]]:
    from dfer_dist.models.class_texts import polarity_texts

    return {
        side: dict(zip(classes, own, strict=True))
        for side, own in polarity_texts(classes, config.model).items()
    }
