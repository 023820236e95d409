"""The most confident errors as a contact sheet.

It shows frames of people, which stay on this machine unless the user decides otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax

from dfer_dist.config.load import read_config
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.loading.frame_sampling import sample_evenly
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import open_sets, sets_of
from dfer_dist.data.shards.reader import Clip, ClipReader, DamagedClip
from dfer_dist.reporting.plots.explained import ExplainedRow, explained_figure
from dfer_dist.reporting.plots.scores import ALERT, FAINT, INK, new_figure, save
from dfer_dist.reporting.results import LoadedRun, load_run
from dfer_dist.reporting.wording import folds_text
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from dfer_dist.evaluation.explain import ExplainedClip

NUM_FRAMES = 6  # of a clip, evenly spaced
_SIZE = 112  # pixels of a frame on the sheet
_WARNING = "Frames of people: keep this picture where the data set may be."


@dataclass(frozen=True)
class ConfidentError:
    """A misclassified clip, with the model's probabilities of the predicted and the true class."""

    fold: int
    key: str
    truth: str
    predicted: str
    probability: float
    truth_probability: float


def find_confident_errors(loaded: LoadedRun, count: int) -> list[ConfidentError]:
    """Return the ``count`` errors with the highest probability over all folds, highest first.

    Equal ones are ordered by fold and key.
    """
    found = []
    for k, fold in loaded.folds.items():
        t = fold.table
        assert t.logits is not None
        probabilities = softmax(t.logits.astype(np.float64), axis=1)
        for i in np.flatnonzero(t.predicted != t.labels):
            truth, predicted = int(t.labels[i]), int(t.predicted[i])
            found.append(
                ConfidentError(
                    fold=k,
                    key=t.keys[i],
                    truth=t.scores.classes[truth],
                    predicted=t.scores.classes[predicted],
                    probability=float(probabilities[i, predicted]),
                    truth_probability=float(probabilities[i, truth]),
                )
            )
    return sorted(found, key=lambda e: (-e.probability, e.fold, e.key))[:count]


class ErrorsSheet(NamedTuple):
    """A picture and what it shows; ``fault`` says why heat maps are missing that were asked for."""

    path: Path
    errors: list[ConfidentError]
    fault: str = ""


def draw_confident_errors(run: RunDir, count: int, explain: bool = False) -> ErrorsSheet:
    """Write ``mistakes.png`` into the run folder.

    With ``explain`` it has a heat map over each frame that the model read, and the weights of
    frames. This reads the models of the folds, and takes a forward and a backward pass a clip.

    Raises
    ------
    UserError
        No fold is finished, no clip is misclassified, the run has no probabilities, the shards are
        missing or of other data than the run's, or a clip is damaged.
    """
    loaded = load_run(run)
    if loaded.result.endpoint:
        raise UserError(
            f"{run.root}: a model at an endpoint gives no probabilities, so no error is the most "
            "confident one: leave --errors out"
        )
    errors = find_confident_errors(loaded, count)
    if not errors:
        raise UserError(f"{run.root}: no clip is misclassified in the finished folds")
    data = read_config(run.config).data
    sets = open_sets(data, data.loss_budget)
    index = sets_of(sets)[0]
    if sets.hash != loaded.result.index_hash:
        raise UserError(
            f"{', '.join(data.locations)} holds other data than {run.root} was tested on: frames "
            "of its clips cannot be shown"
        )
    figure, fault = None, ""
    if explain:
        try:
            figure = explained_figure("", _explain(run, loaded, errors), _WARNING)
        except UserError as e:
            fault = str(e)
    if figure is None:
        figure = _draw_sheet(errors, _read(index, errors, open_folds(data, index)))
    title = f"{index.name}, {run.root.name}: the {len(errors)} most confident errors"
    color, missing = INK, loaded.summary.missing
    if missing:
        color, title = ALERT, f"{title} (without {folds_text(missing)}, not finished)"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=color)
    save(figure, run.mistakes)
    return ErrorsSheet(run.mistakes, errors, fault)


def _explain(
    run: RunDir, loaded: LoadedRun, errors: Sequence[ConfidentError]
) -> list[ExplainedRow]:
    """Explain the predicted class of each error by the weights that its fold was tested with."""
    from dfer_dist.evaluation.explain import explain_test_clips

    found: dict[tuple[int, str], ExplainedClip] = {}
    for fold in {e.fold for e in errors}:
        predicted = {e.key: e.predicted for e in errors if e.fold == fold}
        weights = run.fold(fold).root / loaded.folds[fold].result.checkpoint
        clips = explain_test_clips(weights, predicted)
        found |= {(fold, key): clip for key, clip in clips.items()}
    rows = []
    for e in errors:
        frames, explanation = found[e.fold, e.key]
        title = (
            f"{e.truth} taken for {e.predicted}, {e.probability:.3f} "
            f"(fold {e.fold}, {e.key}, {e.truth} {e.truth_probability:.3f})"
        )
        rows.append(ExplainedRow(title, frames, explanation.weights, explanation.heat))
    return rows


def _read(index: Index, errors: Sequence[ConfidentError], folds: FoldOverlay | None) -> list[Clip]:
    """Read the frames of each error's clip."""
    reader = ClipReader(index)
    places: dict[tuple[int, str], tuple[int, int]] = {}
    for fold in sorted({e.fold for e in errors}):
        for shard in fold_clips(index, fold, folds).test.shards:
            keys = index.sidecar(shard)["key"].to_pylist()
            places |= {(fold, key): (shard, row) for row, key in enumerate(keys)}
    try:
        return [
            reader.read(*places[e.fold, e.key], lambda _, n: sample_evenly(n, NUM_FRAMES))
            for e in errors
        ]
    except DamagedClip as e:
        raise UserError(f"{e}: copy the shard again") from e


def _draw_sheet(errors: Sequence[ConfidentError], clips: Sequence[Clip]) -> Figure:
    """Draw a row of frames for each error, in two columns if there are many."""
    columns = 2 if len(errors) > 5 else 1
    rows = -(-len(errors) // columns)
    figure = new_figure(columns * 6.6, rows * 1.36 + 0.9, dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).T.ravel()
    for ax in axes:
        ax.axis("off")
    for ax, e, clip in zip(axes, errors, clips, strict=False):
        ax.imshow(_frame_strip(clip))
        above: dict[str, Any] = {"transform": ax.transAxes, "parse_math": False}
        left = f"{e.truth} taken for {e.predicted}, {e.probability:.3f}"
        ax.text(0, 1.06, left, fontsize=10, fontweight="bold", color=INK, **above)
        right = f"fold {e.fold}, {e.key}, {e.truth} {e.truth_probability:.3f}"
        ax.text(1, 1.06, right, fontsize=8.5, ha="right", color=FAINT, **above)
    figure.supxlabel(_WARNING, fontsize=9, color=FAINT)
    return figure


def _frame_strip(clip: Clip) -> np.ndarray:
    """Return the frames side by side, uint8 [S, F S, 3]."""
    size = (_SIZE, _SIZE)
    frames = (Image.fromarray(f).resize(size, Image.Resampling.LANCZOS) for f in clip.frames)
    return np.hstack([np.asarray(frame) for frame in frames])
