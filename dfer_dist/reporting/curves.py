"""Learning curves of one fold as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dfer_dist.reporting.figures import save
from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import atomic_path

_SCORES = (
    ("val_war", "validation WAR", "C1"),
    ("test_war", "test WAR", "C2"),
    ("test_uar", "test UAR", "C3"),
)


def curves_png(fold: FoldDir, title: str) -> None:
    """Draw loss, scores and learning rates over steps from a fold's figures to ``curves.png``."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in fold.metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, scores, rates = figure.subplots(1, 3)
    steps, values = _column(lines, "loss")
    loss.plot(steps, values, linewidth=0.6, alpha=0.4, color="C0")
    loss.plot(steps, _running_mean(values), linewidth=1.5, color="C0", label="mean of 20 lines")
    loss.set_ylabel("loss")
    for name, label, colour in _SCORES:
        steps, values = _column(lines, name)
        if steps:
            scores.plot(steps, values, marker="o", markersize=4, label=label, color=colour)
    scores.set_ylabel("%")
    scores.set_ylim(0, 100)
    for name in sorted({k for line in lines for k in line if k.startswith("lr_")}):
        steps, values = _column(lines, name)
        rates.plot(steps, values, label=name.removeprefix("lr_"))
    rates.set_ylabel("learning rate")
    rates.set_yscale("symlog", linthresh=1e-8)
    for ax in (loss, scores, rates):
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize="small")
    with atomic_path(fold.curves) as temporary:
        save(figure, temporary)


def _column(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    rows = [(line["step"], line[name]) for line in lines if name in line]
    return [s for s, _ in rows], [v for _, v in rows]


def _running_mean(values: list[float], width: int = 20) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [
        (sums[i + 1] - sums[max(0, i + 1 - width)]) / min(width, i + 1) for i in range(len(values))
    ]
