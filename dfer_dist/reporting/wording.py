"""What must be said beside the numbers of a run, in the same words everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROTOCOLS = {
    "last": "last: weights after the last epoch, the test fold read once",
    "best_val": "best_val: epoch chosen on a held-out part of the training folds",
    "best_test": "best_test: epoch chosen on the test fold, optimistic",
}


def heading(summary: Mapping[str, Any]) -> str:
    """The data set, and what must be said beside every number: how the epoch was picked."""
    return f"{summary['dataset']} ({PROTOCOLS[summary['selection']]})"


def missing_text(summary: Mapping[str, Any]) -> str:
    """One sentence on the folds that are not there; empty if all are."""
    if not summary["missing"]:
        return ""
    missing, count = summary["missing"], len(summary["folds"]) + len(summary["missing"])
    return f"{len(missing)} of {count} folds missing ({join(missing)}): all figures are over {folds_text(done(summary))} only."


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What stands with every table of a run: the sentence on missing folds, if any are."""
    return [text for text in [missing_text(summary)] if text]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores must know and their cells do not say."""
    absent = "Fold {} has no clip of {}: its UAR is the mean over the other classes."
    lines = [
        absent.format(r["fold"], ", ".join(r["absent"])) for r in summary["folds"] if r["absent"]
    ]
    changed = "Fold {} went on in the middle of its training with another {}."
    lines += [
        changed.format(r["fold"], ", ".join(r["drift"])) for r in summary["folds"] if r.get("drift")
    ]
    skipped = "Fold {} skipped {} steps, whose loss or gradient was not finite."
    lines += [
        skipped.format(r["fold"], r["skipped_steps"])
        for r in summary["folds"]
        if r.get("skipped_steps")
    ]
    lost = "Fold {} was trained without {} clips, which are damaged."
    lines += [
        lost.format(r["fold"], r["lost_clips"]) for r in summary["folds"] if r.get("lost_clips")
    ]
    shuffled = [r["fold"] for r in summary["folds"] if r.get("shuffled") is not None]
    if shuffled and not summary["shuffled"]:
        lines.append(
            f"Scores with shuffled frames exist for {folds_text(shuffled)} only and are left out."
        )
    return lines


def frames_text(result: Mapping[str, Any]) -> str:
    """What a test clip's prediction rests on; empty for a result that does not say."""
    if "views" not in result:
        return ""
    views = (
        "once"
        if result["views"] == 1
        else f"in {result['views']} views, their probabilities averaged"
    )
    return (
        f"Each clip was seen {views}, {result['num_frames']} frames a view ({result['sampling']})."
    )


def mean_text(part: Mapping[str, Any], metric: str) -> str:
    """Mean over folds of ``uar`` or ``war`` of a summary, with its deviation where there are two folds or more."""
    m = part[metric]
    return f"{m['mean']:.2f}" + (f" ± {m['std']:.2f}" if m["std"] is not None else "")


def interval_text(part: Mapping[str, Any], metric: str) -> str:
    """The 95 % interval of ``uar`` or ``war`` of a summary."""
    return "{:.2f} to {:.2f}".format(*part[metric]["ci95"])


def done(summary: Mapping[str, Any]) -> list[int]:
    """Folds that the summary is over."""
    return [r["fold"] for r in summary["folds"]]


def folds_text(numbers: Sequence[int]) -> str:
    """Such as ``folds 1, 2``."""
    return f"fold{'s' if len(numbers) > 1 else ''} {join(numbers)}"


def join(numbers: Sequence[int]) -> str:
    """Such as ``1, 2``."""
    return ", ".join(map(str, numbers))


def signed(value: float) -> str:
    """A difference with its sign, two decimals."""
    return f"{value:+.2f}".replace("-", "−")


def p_text(p: float | None) -> str:
    """A p-value with what of it means something."""
    if p is None:
        return "not defined"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def trained_text(origin: Mapping[str, Any] | None) -> str:
    """What a model that is tested zero-shot was trained on; None is CLIP as it was pretrained."""
    if origin is None:
        return "CLIP as it was pretrained, not trained on any faces here"
    by = {
        "labels": "on labels",
        "descriptions": "on descriptions without labels",
        "both": "on labels and descriptions",
    }
    fold = f" without fold {origin['fold']}" if origin["fold"] is not None else ""
    return f"trained on {origin['dataset'] or 'a set that it does not name'}{fold}, {by[origin['objective']]}"
