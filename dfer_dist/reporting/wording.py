"""Sentences that accompany the numbers of a run, the same in every output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dfer_dist.evaluation.metrics import left_out_text
from dfer_dist.runs.endpoint import own_classes
from dfer_dist.runs.records import FoldResult
from dfer_dist.runs.summary import Spread, Summary
from dfer_dist.utils.errors import first_of

PROTOCOLS = {
    "last": "last: weights after the last epoch, the test fold read once",
    "best_val": "best_val: epoch chosen on a held-out part of the training folds",
    "best_test": "best_test: epoch chosen on the test fold, optimistic",
    "none": "none: a model at an endpoint, as it is",
}
NOT_RECORDED = "not recorded"
UNKNOWN = "–"  # in a table of scores
MAX_NAMES = 5  # of clips or runs in a sentence


def heading(name: str, summary: Summary) -> str:
    """Return the title of a run, and how the epoch was chosen."""
    return f"{run_title(name, summary)} ({protocol_text(summary)})"


def protocol_text(summary: Summary) -> str:
    """Return how the epoch was chosen, and on what the scores are."""
    return PROTOCOLS[summary.selection].replace("test fold", tested_text(summary.validation))


def tested_text(validation: str | None) -> str:
    """Return what the scores are of, to follow "the" or "each"."""
    if validation:
        return "validation part"
    return "test fold"


def validation_text(summary: Summary) -> str:
    """Return that the scores are not of a test fold; empty if they are."""
    if not summary.validation:
        return ""
    return f"Scores are of a part of the training clips, not of a test fold: {summary.validation}."


def run_title(name: str, summary: Summary) -> str:
    """Return text such as ``lora on demo, 5 folds``, or ``3 of 5 folds`` if some are missing."""
    if summary.validation:
        return f"{name} on {summary.dataset}, {summary.validation}"
    finished, missing = len(summary.folds), len(summary.missing)
    total = finished + missing
    count = f"{finished} of " * bool(missing)
    return f"{name} on {summary.dataset}, {count}{total} fold{'s' * (total > 1)}"


def warnings(summary: Summary) -> list[str]:
    """Return sentences on a validation part, missing folds and test clips that were left out."""
    missing, finished = summary.missing, done(summary)
    texts = [validation_text(summary)] * bool(summary.validation)
    if missing:
        texts.append(
            f"{len(missing)} of {len(finished) + len(missing)} folds missing ({join(missing)}): "
            f"all scores are over {folds_text(finished)} only."
        )
    lost = {f"fold {r.fold}": r.left_out for r in summary.folds if r.left_out}
    if lost:
        names = "; ".join(f"{fold}: {first_of(clips, MAX_NAMES)}" for fold, clips in lost.items())
        count = left_out_text(sum(map(len, lost.values())), summary.pooled.n)
        texts.append(f"{count} ({names}): all scores are over the others.")
    return texts


def notes(summary: Summary) -> list[str]:
    """Return what a reader of the scores must know and the cells do not say."""
    lines = []
    if text := without_class_text(summary.folds):
        lines.append(f"The model {text}")
    for r in summary.folds:
        absent = join(own_classes(r.absent))
        texts = {
            "has no clip of {}: its UAR is the mean over the other classes": absent,
            "resumed in the middle of its training with another {}": join(r.drift),
            "skipped {} steps, whose loss or gradient was not finite": r.skipped_steps,
            "was trained without {} clips, which are damaged": r.lost_clips,
        }
        lines += [f"Fold {r.fold} {text.format(value)}." for text, value in texts.items() if value]
    shuffled = [r.fold for r in summary.folds if r.shuffled]
    if shuffled and not summary.shuffled:
        lines.append(
            f"Scores with shuffled frames exist for {folds_text(shuffled)} only and are left out."
        )
    return lines


def without_class_text(folds: Sequence[FoldResult]) -> str:
    """Return how many answers of a model at an endpoint name no class, and that they are wrong."""
    counts: Counter[str] = sum((Counter(r.without_class) for r in folds), Counter())
    if not counts:
        return ""
    kinds = join(f"{count} {name.strip('()')}" for name, count in counts.items())
    clips = f"{counts.total()} of {sum(r.n for r in folds)} clips"
    return f"has no class for {clips} ({kinds}): they count as wrong in UAR and WAR."


def applicable(texts: Mapping[str, object]) -> list[str]:
    """Return the texts whose value is true."""
    return [text for text, holds in texts.items() if holds]


def frames_text(result: FoldResult) -> str:
    """Return which frames a prediction is based on; empty for a result without that record."""
    if result.views is None:
        return ""
    seen = views_text(result.views, result.crops, result.mirror)
    return f"Each clip was seen {seen}, {result.num_frames} frames a view ({result.sampling})."


def views_text(views: int, crops: int, mirror: bool) -> str:
    """Return how often a clip is seen, by the settings ``eval.*``."""
    total = views * crops * (1 + mirror)
    if total == 1:
        return "once"
    spatial = join(applicable({f"{crops} crops": crops > 1, "mirrored too": mirror}))
    of = f" ({spatial})" if spatial else ""
    return f"in {total} views{of}, their probabilities averaged"


def mean_text(spread: Spread, decimals: int = 2) -> str:
    """Return the mean over folds, with its deviation if there is one."""
    text = f"{spread.mean:.{decimals}f}"
    if spread.std is not None:
        text += f" ± {spread.std:.{decimals}f}"
    return text


def interval_text(low: float, high: float, *, decimals: int = 2) -> str:
    """Return an interval, in percent by default."""
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def done(summary: Summary) -> list[int]:
    """Return the finished folds."""
    return [r.fold for r in summary.folds]


def folds_text(numbers: Sequence[int]) -> str:
    """Return text such as ``folds 1, 2``."""
    return f"fold{'s' * (len(numbers) > 1)} {join(numbers)}"


def join(items: Iterable[object]) -> str:
    """Return text such as ``1, 2``."""
    return ", ".join(map(str, items))


def signed(value: float, decimals: int = 2) -> str:
    """Return a difference or a cosine with its sign."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def optional(value: float | None, decimals: int, unit: float = 1.0) -> str:
    """Return a value in units of ``unit``, or that it was not recorded."""
    return NOT_RECORDED if value is None else f"{value / unit:.{decimals}f}"


def p_text(p: float | None) -> str:
    """Return a p-value with its significant digits."""
    if p is None:
        return "not defined"
    if p < 1e-4:
        return "< 0.0001"
    if p < 0.01:
        return f"{p:.4f}"
    return f"{p:.3f}"


def p_equals(p: float | None) -> str:
    """Return text such as ``p = 0.031`` or ``p < 0.0001``, or that there is no test."""
    if p is None or math.isnan(p):
        return "no test"
    return f"p = {p_text(p)}".replace("= <", "<")


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that people would use: ``27 s``, ``4.5 min``, ``6.5 h``."""
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    if seconds < 5397:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def trained_text(origin: Mapping[str, Any] | None) -> str:
    """Return what a model tested zero-shot was trained on; None is the pretrained backbone."""
    if origin is None:
        return "the backbone as it was pretrained, not trained on any faces here"
    supervision = {
        "labels": "on labels",
        "descriptions": "on descriptions without labels",
        "both": "on labels and descriptions",
    }[origin["objective"]]
    data = origin["dataset"] or "an unnamed data set"
    if origin["fold"] is not None:
        data += f" without fold {origin['fold']}"
    return f"trained on {data}, {supervision}"
