"""A fold trained on tiny data, exported: what the tests of exporting and predicting start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.shards.index import Index
from dfer_dist.inference.export import export
from dfer_dist.runs.layout import FoldDir, RunDir
from tests.helpers.training.commands import dfer

SMALL = [
    "data.num_frames=4",
    "data.image_size=32",
    "data.workers=0",
    "train.epochs=1",
    "train.global_batch=8",
    "eval.batch=5",
]
SMALL += ["train.precision=fp32", "eval.shuffle_frames=false", "tracking.enabled=false"]


@dataclass(frozen=True)
class Case:
    """Fold 2 of a run, and the folder that its last checkpoint was exported to; read only."""

    fold: FoldDir
    out: Path


def train_and_export(index: Index, folder: Path) -> Case:
    args = [
        "--fold",
        "2",
        "--name",
        "small",
        "--runs",
        str(folder),
        f"data.shards={index.root}",
        *SMALL,
    ]
    dfer("train", "demo", *args)
    fold = RunDir(folder / "small").fold(2)
    export(fold.checkpoints / "LATEST", folder / "model", [])
    return Case(fold, folder / "model")
