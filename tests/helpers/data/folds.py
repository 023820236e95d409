"""Overlays of folds for tests."""

from __future__ import annotations

from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import read_packed
from dfer_dist.data.shards.index import Index


def fold_overlay(index: Index, folds: int, *, shift: int = 0) -> FoldOverlay:
    """Return folds that take turns over the clips of a set."""
    keys = read_packed(index).keys
    fold_of = {key: (i + shift) % folds + 1 for i, key in enumerate(keys)}
    return FoldOverlay("turns", index.name, index.hash, "file", folds, fold_of).signed()
