"""The most confident mistakes as a contact sheet: frames of people, which stay on this machine unless someone says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from dfer_dist.config.load import read_config
from dfer_dist.data.loading.frame_sampling import sample_evenly
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.data.shards.reader import Clip, ClipReader, DamagedClip
from dfer_dist.reporting.results import FoldResult, load_folds
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path

FRAMES = 6  # of a clip, evenly spread
_SIDE = 112  # pixels, of a frame on the sheet
_DPI = 110


@dataclass(frozen=True)
class ConfidentError:
    """A clip that was taken for another class; probabilities are the model's."""

    fold: int
    key: str
    truth: str
    predicted: str
    probability: float  # of what was predicted
    of_truth: float


def find_confident_errors(folds: Sequence[FoldResult], count: int) -> list[ConfidentError]:
    """The ``count`` mistakes with the highest probability, of all folds, the surest first; equal ones by fold and key."""
    found = []
    for fold in folds:
        t = fold.table
        probabilities = softmax(t.logits.astype(np.float64), axis=1)
        for i in np.flatnonzero(t.predicted != t.labels):
            truth, said = int(t.labels[i]), int(t.predicted[i])
            p = probabilities[i]
            names = t.scores.classes[truth], t.scores.classes[said]
            found.append(
                ConfidentError(
                    fold.result["fold"], t.keys[i], *names, float(p[said]), float(p[truth])
                )
            )
    return sorted(found, key=lambda m: (-m.probability, m.fold, m.key))[:count]


def draw_confident_errors(run: RunDir, count: int) -> tuple[Path, list[ConfidentError]]:
    """Write ``mistakes.png`` into the run folder, by rename; returns its path and what it shows.

    Raises
    ------
    UserError
        No fold is done, there is no mistake, the shards are gone or of other data than the run's, or a clip is damaged.
    """
    folds = load_folds(run, run.describe()["folds"])
    mistakes = find_confident_errors(folds, count)
    if not mistakes:
        raise UserError(f"{run.root}: no clip was mistaken in the folds that are done")
    data = read_config(run.config).data
    index = open_index(data, data.loss_budget)
    if index.hash != folds[0].result["index_hash"]:
        raise UserError(
            f"{data.shards} holds other data than {run.root} was tested on: frames of its clips cannot be shown"
        )
    clips = _read(index, mistakes)
    missing = [k for k in run.describe()["folds"] if k not in {f.result["fold"] for f in folds}]
    note = (
        f"without fold{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}, not done"
        if missing
        else ""
    )
    with atomic_path(run.mistakes) as path:
        _sheet(
            mistakes,
            clips,
            f"{index.name}, {run.root.name}: the {len(mistakes)} most confident mistakes",
            note,
            path,
        )
    return run.mistakes, mistakes


def _read(index: Index, mistakes: Sequence[ConfidentError]) -> list[Clip]:
    """Frames of each mistake's clip, in their order."""
    reader, places = ClipReader(index), {}
    for fold in sorted({m.fold for m in mistakes}):
        for shard in index.test_shards(fold):
            keys = index.sidecar(shard)["key"].to_pylist()
            places.update({(fold, key): (shard, row) for row, key in enumerate(keys)})
    try:
        return [
            reader.read(*places[m.fold, m.key], lambda _, n: sample_evenly(n, FRAMES))
            for m in mistakes
        ]
    except DamagedClip as e:
        raise UserError(f"{e}: copy the shard again") from e


def _sheet(
    mistakes: Sequence[ConfidentError], clips: Sequence[Clip], title: str, note: str, path: Path
) -> None:
    """A mistake a row: its words above its frames; two columns where they are many."""
    from matplotlib.figure import Figure
    from PIL import Image

    from dfer_dist.reporting.figures import ALERT, FAINT, INK

    columns = 2 if len(mistakes) > 5 else 1
    rows = -(-len(mistakes) // columns)
    figure = Figure(figsize=(columns * 6.6, rows * 1.36 + 0.9), dpi=_DPI, layout="constrained")
    figure.suptitle(
        f"{title}{f' ({note})' if note else ''}",
        fontsize=12,
        fontweight="bold",
        color=ALERT if note else INK,
    )
    axes = figure.subplots(rows, columns, squeeze=False).T.ravel()
    for ax in axes:
        ax.axis("off")
    for ax, m, clip in zip(axes, mistakes, clips, strict=False):
        small = [
            np.asarray(Image.fromarray(f).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
            for f in clip.frames
        ]
        ax.imshow(np.concatenate(small, axis=1))
        words = f"{m.truth} taken for {m.predicted}, {m.probability:.3f}"
        ax.text(
            0,
            1.06,
            words,
            fontsize=10,
            fontweight="bold",
            color=INK,
            transform=ax.transAxes,
            parse_math=False,
        )
        more = f"fold {m.fold}, {m.key}, {m.truth} {m.of_truth:.3f}"
        ax.text(
            1,
            1.06,
            more,
            fontsize=8.5,
            ha="right",
            color=FAINT,
            transform=ax.transAxes,
            parse_math=False,
        )
    figure.supxlabel(
        "Frames of people: keep this picture where the data set may be.", fontsize=9, color=FAINT
    )
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
