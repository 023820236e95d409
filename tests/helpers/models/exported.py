"""A fold trained on tiny data, exported: what the tests of exporting and predicting start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfer_dist.inference.export import export
from dfer_dist.runs.layout import FoldDir


@dataclass(frozen=True)
class Case:
    """Fold 2 of a run, and the folder that its last checkpoint was exported to; read only."""

    fold: FoldDir
    out: Path


def export_fold(fold: FoldDir, out: Path) -> Case:
    """Export the last checkpoint of a fold."""
    export(fold.checkpoints / "LATEST", out, [])
    return Case(fold, out)
