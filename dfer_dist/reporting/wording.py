"""Sentences that accompany the numbers of a run, the same in every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROTOCOLS = {
    "last": "last: weights after the last epoch, the test fold read once",
    "best_val": "best_val: epoch chosen on a held-out part of the training folds",
    "best_test": "best_test: epoch chosen on the test fold, optimistic",
}
NOT_RECORDED = "not recorded"


def heading(summary: Mapping[str, Any]) -> str:
    """Return the data set and how the epoch was chosen."""
    return f"{summary['dataset']} ({PROTOCOLS[summary['selection']]})"


def missing_text(summary: Mapping[str, Any]) -> str:
    """Return a sentence on the missing folds, or an empty text."""
    missing = summary["missing"]
    if not missing:
        return ""
    finished = done(summary)
    return (
        f"{len(missing)} of {len(finished) + len(missing)} folds missing ({join(missing)}): "
        f"all scores are over {folds_text(finished)} only."
    )


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return the sentence on missing folds, if a fold is missing."""
    return list(filter(None, [missing_text(summary)]))


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the scores must know and the cells do not say."""
    folds = summary["folds"]
    lines = [
        f"Fold {r['fold']} has no clip of {', '.join(r['absent'])}: its UAR is the mean over the "
        "other classes."
        for r in folds
        if r["absent"]
    ]
    lines += [
        f"Fold {r['fold']} resumed in the middle of its training with another "
        f"{', '.join(r['drift'])}."
        for r in folds
        if r.get("drift")
    ]
    lines += [
        f"Fold {r['fold']} skipped {r['skipped_steps']} steps, whose loss or gradient was not "
        "finite."
        for r in folds
        if r.get("skipped_steps")
    ]
    lines += [
        f"Fold {r['fold']} was trained without {r['lost_clips']} clips, which are damaged."
        for r in folds
        if r.get("lost_clips")
    ]
    shuffled = [r["fold"] for r in folds if r.get("shuffled") is not None]
    if shuffled and not summary["shuffled"]:
        lines.append(
            f"Scores with shuffled frames exist for {folds_text(shuffled)} only and are left out."
        )
    return lines


def frames_text(result: Mapping[str, Any]) -> str:
    """Return which frames a prediction is based on; empty for a result without that record."""
    if "views" not in result:
        return ""
    views = "once"
    if result["views"] != 1:
        views = f"in {result['views']} views, their probabilities averaged"
    return (
        f"Each clip was seen {views}, {result['num_frames']} frames a view ({result['sampling']})."
    )


def mean_text(part: Mapping[str, Any], metric: str) -> str:
    """Return the mean over folds of ``uar`` or ``war``, with its deviation if there is one."""
    value = part[metric]
    text = f"{value['mean']:.2f}"
    if value["std"] is not None:
        text += f" ± {value['std']:.2f}"
    return text


def interval_text(part: Mapping[str, Any], metric: str) -> str:
    """Return the 95 % interval of ``uar`` or ``war``."""
    low, high = part[metric]["ci95"]
    return f"{low:.2f} to {high:.2f}"


def done(summary: Mapping[str, Any]) -> list[int]:
    """Return the finished folds."""
    return [r["fold"] for r in summary["folds"]]


def folds_text(numbers: Sequence[int]) -> str:
    """Return text such as ``folds 1, 2``."""
    return f"fold{'s' * (len(numbers) > 1)} {join(numbers)}"


def join(numbers: Sequence[int]) -> str:
    """Return text such as ``1, 2``."""
    return ", ".join(map(str, numbers))


def signed(value: float) -> str:
    """Return a difference with its sign and two decimals."""
    return f"{value:+.2f}".replace("-", "−")


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


def trained_text(origin: Mapping[str, Any] | None) -> str:
    """Return what a model tested zero-shot was trained on; None is the pretrained CLIP."""
    if origin is None:
        return "CLIP as it was pretrained, not trained on any faces here"
    supervision = {
        "labels": "on labels",
        "descriptions": "on descriptions without labels",
        "both": "on labels and descriptions",
    }[origin["objective"]]
    data = origin["dataset"] or "an unnamed data set"
    if origin["fold"] is not None:
        data += f" without fold {origin['fold']}"
    return f"trained on {data}, {supervision}"
