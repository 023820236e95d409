"""Open the runs of a sweep that this machine trains."""

from __future__ import annotations

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir
from launch.console import announced
from launch.progress import is_done
from launch.runs import load_experiment
from launch.sweeps.variants import JobRequest, open_variant


def open_sweep(request: JobRequest, ranks: int) -> tuple[SweepDir, list[tuple[RunDir, list[int]]]]:
    """Create the runs of a sweep, or resume them; return its folder, and each run with its folds.

    Raises
    ------
    UserError
        As :func:`~launch.sweeps.variants.make_variants` and :func:`~launch.runs.open_run`. All
        settings are checked before the first run is created.
    """
    sweep = request.folder
    assert sweep is not None
    variants = request.variants(request.overrides)
    for variant in variants:
        load_experiment(request.experiment, variant.settings, ranks)
    opened: list[tuple[RunDir, list[int]]] = []
    with announced(f"opening {len(variants)} runs of {sweep.name}"):
        for variant in variants:
            opened.append(open_variant(request, variant, ranks))
    return sweep, opened


def is_reported(run: RunDir, folds: list[int]) -> bool:
    """Return whether folds of a run are done, and its summary has them."""
    if not run.summary.is_file() or not all(is_done(run.fold(k)) for k in folds):
        return False
    written = run.summary.stat().st_mtime
    return all(run.fold(k).result.stat().st_mtime <= written for k in folds)
