"""Exact evaluation: every clip of a split is predicted once, whatever the number of ranks."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Output
from dfer_dist.data.folds.clips import FoldClips
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import ClipSet, evaluation_batches
from dfer_dist.data.loading.votes import read_votes
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.data.shards.joint import with_classes
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.distributed.process_group import Ranks, choose_device
from dfer_dist.evaluation.eval_clips import find_eval_clips, trained_hashes, unseen_ambiguous_clips
from dfer_dist.evaluation.feature_recorder import FeatureRecorder, describe_features
from dfer_dist.evaluation.metrics import left_out_text, other_classes_text
from dfer_dist.evaluation.multilabel import expand_logits, label_sets
from dfer_dist.evaluation.predictions import Evaluation, Predictions
from dfer_dist.models.build import build_model, inference_dtype, resolve_image_size
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_test_loader(
    config: Config, index: Index, clips: ClipSet, ranks: Ranks, shuffle_frames: bool = False
) -> Iterator[Batch]:
    """Return this rank's batches of a test, with the views that ``config.eval`` asks for."""
    return evaluation_loader(
        index,
        config.data,
        clips,
        batch=config.eval.batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.train.seed,
        views=config.eval.views,
        crops=config.eval.crops,
        mirror=config.eval.mirror,
        shuffle_frames=shuffle_frames,
        modalities=config.model.modalities,
    )


@torch.no_grad()
def predict(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    progress: Callable[[int], object] = lambda done: None,
    output: Output = Output.softmax,
) -> dict[str, tuple[int, np.ndarray]]:
    """Predict this rank's share; return label and logits (float32 [C]) by key.

    ``forward`` maps frames, uint8 [b, T, 3, S, S], to logits [b, C]. It is called once for each
    view of a batch; a clip may come in several batches, which are spatial views of it. All batches
    have the same shape, so that a clip's logits depend neither on the rank that computes them nor
    on the other clips of the batch. ``progress`` is called after each batch with the number of
    clips seen.

    Raises
    ------
    UserError
        If a clip is damaged: an evaluation may lose none.
    """
    labels, views = dict[str, int](), defaultdict[str, list[Tensor]](list)
    for batch in batches:
        if batch.lost:
            raise UserError(
                f"evaluation stopped, since a clip is damaged: {batch.lost[0]} (copy the shard "
                "again)"
            )
        logits = clip_logits(forward, batch.pixels(device), batch.views, output).cpu()
        for key, label, valid, row in zip(
            batch.keys, batch.labels.tolist(), batch.valid.tolist(), logits, strict=True
        ):
            if valid:
                labels[key] = label
                views[key].append(row)
        progress(len(labels))
    return {
        key: (labels[key], average_views(torch.stack(own), output).numpy())
        for key, own in views.items()
    }


def clip_logits(
    forward: Callable[[Tensor], Tensor],
    pixels: Tensor,
    views: int,
    output: Output = Output.softmax,
) -> Tensor:
    """Return logits of clips of several views, by a call of ``forward`` for each view.

    Parameters
    ----------
    forward : function
        As for :func:`predict`.
    pixels : uint8 [b, V T, 3, S, S]
    views : int
        V.

    Returns
    -------
    float32 [b, C]
    """
    parts = pixels.unflatten(1, (views, -1)).unbind(1)
    return average_views(torch.stack([forward(part).float() for part in parts]), output)


def average_views(logits: Tensor, output: Output = Output.softmax) -> Tensor:
    """Return logits whose softmax, or sigmoid, is the mean of V views' probabilities.

    Averaging probabilities follows Wang et al. ("Non-local Neural Networks", CVPR 2018, section 4)
    and Feichtenhofer et al. ("SlowFast Networks", ICCV 2019, section 4).

    Parameters
    ----------
    logits : float32 [V, …, C]

    Returns
    -------
    float32 […, C]
        A single view's as they are; of several the logarithm of the mean probability, or of its
        odds.
    """
    if len(logits) == 1:
        return logits[0]
    if output is Output.sigmoid:
        return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def collect(
    rows: dict[str, tuple[int, np.ndarray]],
    index: Index,
    clips: ClipSet,
    ranks: Ranks,
    output: Output = Output.softmax,
) -> Predictions | None:
    """Gather the shares of all ranks on rank 0 (None elsewhere) and check them against the index.

    Sigmoid outputs become logits of all classes (:func:`.expand_logits`).

    Raises
    ------
    RuntimeError
        If a clip is missing, duplicate or not of this split: an error of this program, not of the
        data.
    """
    shares = ranks.gather_objects(rows)
    if shares is None:
        return None
    merged = {key: row for share in shares for key, row in share.items()}
    reader = ClipReader(index)
    tested = [p for batch in evaluation_batches(clips, 1) for p in batch]
    labels = {reader.key(p.shard, p.row): reader.label(p.shard, p.row) for p in tested}
    count = sum(map(len, shares))
    if count != len(merged) or merged.keys() != labels.keys():
        raise RuntimeError(
            f"{count} predictions of {len(merged)} clips, but the index has {len(labels)}"
        )
    if any(merged[key][0] != label for key, label in labels.items()):
        raise RuntimeError("labels of the predictions differ from the index")
    logits = np.stack([merged[key][1] for key in labels]).astype(np.float32)
    sets, votes = None, None
    if output is Output.sigmoid:
        logits = expand_logits(logits, index.classes)
        sets = label_sets(index, tested)
    elif given := read_votes(index, clips):
        votes = given.counts
    truth = np.array(list(labels.values()), dtype=np.int32)
    return Predictions(list(labels), truth, logits, sets, votes)


def load_model(saved: Checkpoint | None, config: Config, classes: tuple[str, ...]) -> DFERCLIP:
    """Return the model of a checkpoint, in float32 on the default device, for evaluation.

    Parameters
    ----------
    saved : Checkpoint or None
        None for a model with pretrained weights alone.
    config : Config
        The checkpoint's own, possibly with overrides.
    classes : tuple of C str
        In label order.

    Raises
    ------
    UserError
        If the settings describe another model than the checkpoint's, or its pretrained weights are
        missing on this machine.
    """
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, classes, config.data.num_frames, resolve_image_size(config))
    if saved:
        trained = {name: p for group in param_groups(model).values() for name, p in group}
        checkpoint.load_weights(model, trained, saved)
    return model.eval()


def open_checkpoint(path: Path, overrides: list[str]) -> tuple[Checkpoint, Config, Index]:
    """Return a checkpoint without its optimizer's state, its settings and the data they name.

    Of several sets it is the first one.

    Raises
    ------
    UserError
        If the checkpoint is missing or damaged, or the data lacks a modality of the model.
    """
    saved = checkpoint.read(path, weights_only=True)
    return saved, *open_test_data(saved, overrides)


def open_test_data(saved: Checkpoint, overrides: list[str]) -> tuple[Config, Index]:
    """Return the settings of a checkpoint with overrides, and the data they name.

    Raises
    ------
    UserError
        If the data lacks a modality of the model.
    """
    config = read_config(saved.path / checkpoint.CONFIG, overrides)
    index = open_index(config.data)
    if len(config.data.locations) > 1:
        logger.warning(f"of the sets, the first one is tested, {index.name} (data.shards=FOLDER)")
    # the folds of the training are of its data alone
    is_own = config.data.folds == saved.config.data.folds
    if is_own and index.hash != trained_hashes(saved)[0]:
        config.data.folds = config.data.folds_hash = None
    describe_modalities(index, config.model.modalities)
    return config, index


def evaluate_checkpoint(
    path: Path,
    fold: int | None,
    overrides: list[str],
    out: Path | None,
    progress: Callable[[int, int], None] | None = None,
    *,
    ambiguous: bool = False,
    features: Path | None = None,
) -> Evaluation:
    """Test a checkpoint in this process, without DeepSpeed's engine.

    The scores are in the classes of the model. Clips of other classes are left out; a prediction of
    a class that the data lacks is an error.

    Parameters
    ----------
    path : Path
        A checkpoint's folder, or LATEST or BEST next to it.
    fold : int, optional
        The fold to test on; by default the one the checkpoint was trained for, and all folds of
        another data set.
    overrides : list of str
        ``key=value`` overrides of the checkpoint's settings, such as ``data.shards=…``.
    out : Path, optional
        Where to write the table of predictions.
    ambiguous : bool
        Test on the clips without a majority instead of a fold.
    features : Path, optional
        Where to write the features of the clips.

    Raises
    ------
    UserError
        If the checkpoint is of another model, the data has none of its classes, or the model was
        trained on the clips.
    """
    saved, config, index = open_checkpoint(path, overrides)
    index, clips, number = _choose_clips(saved, config, index, fold, ambiguous)
    model = load_model(saved, config, index.classes)
    recorder = FeatureRecorder(model) if features else None
    table = predict_here(model, config, index, clips, progress, recorder)
    if out:
        table.write(out)
    if recorder and features:
        info = describe_features(saved, config, recorder, index, number)
        recorder.features(info, table).write(features)
    return Evaluation(table, table.score(index.classes), table.score_votes())


def _choose_clips(
    saved: Checkpoint, config: Config, index: Index, fold: int | None, ambiguous: bool
) -> tuple[Index, ClipSet, int | None]:
    """Return the set with the classes of the model, the clips to test on, and their fold."""
    if ambiguous:
        classes = tuple(saved.state.get("classes") or index.classes)
        if index.classes != classes:
            index = with_classes(index, classes)
        return index, unseen_ambiguous_clips(config, index, trained_hashes(saved)), None
    chosen = find_eval_clips(saved, config, index, fold)
    list_lost_clips(chosen.part)
    if chosen.left_out:
        logger.warning("%s", other_classes_text(chosen.left_out))
    return chosen.index, chosen.part.test, chosen.fold


def list_lost_clips(clips: FoldClips) -> list[str]:
    """Return the test clips that were lost when the data was packed, and warn if there are any."""
    lost = list(clips.left_out)
    if lost:
        logger.warning("%s, such as %s", left_out_text(len(lost), len(clips.test)), lost[0])
    return lost


def predict_here(
    model: DFERCLIP,
    config: Config,
    index: Index,
    clips: ClipSet,
    progress: Callable[[int, int], None] | None = None,
    recorder: FeatureRecorder | None = None,
) -> Predictions:
    """Predict every clip once in this process.

    Parameters
    ----------
    model : DFERCLIP
        In float32; it is moved to the device and cast as ``config`` says.
    progress : function, optional
        Called with (clips done, clips in all).
    recorder : FeatureRecorder, optional
        Of this model; it records the features of the clips.
    """
    device = choose_device(config.train.device)
    model = model.to(device, inference_dtype(config.train.precision, device))
    with torch.no_grad():
        text = model.text_features()

    def report(done: int) -> None:
        if progress:
            progress(done, len(clips))

    ranks = Ranks(0, 1, 0, device)
    batches = build_test_loader(config, index, clips, ranks)
    forward: Callable[[Tensor], Tensor] = partial(model, text_features=text)
    if recorder:
        forward, batches = partial(recorder.forward, text_features=text), recorder.watch(batches)
    output = config.model.output
    rows = predict(forward, batches, device, report, output)
    table = collect(rows, index, clips, ranks, output)
    assert table is not None  # one rank is rank 0
    if recorder:
        recorder.gather(ranks)
    return table
