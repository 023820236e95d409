"""``dfer eval --zero-shot``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from launch.console import Bar


def show_zero_shot(
    console: Console, what: Path, fold: int | None, overrides: list[str], out: Path | None
) -> None:
    """Test a checkpoint, or the CLIP of an experiment, on any set by the texts of its classes, and print what came of it."""
    from dfer_dist.evaluation.zero_shot import zero_shot
    from dfer_dist.reporting.wording import p_text, trained_text

    with Bar(console, "test clips") as advance:
        result = zero_shot(what, fold, overrides, out, advance)
    chance = result["chance"]
    where = f"fold {result['fold']}" if result["fold"] else "all folds"
    console.print(
        f"zero-shot on {result['dataset']}, {where}, {result['n']} clips; {trained_text(result['trained_on'])}",
        soft_wrap=True,
    )
    if result["context"] == "left out":
        console.print(
            "the learned context belongs to the classes of the training and was left out: sentences alone were read",
            soft_wrap=True,
        )
    guess = {"uar": "the same predictions in random orders", "war": f"always {chance['class']}"}
    for metric in ("uar", "war"):
        low, high = result["ci95"][metric]
        against = (
            f"chance {chance[metric]:.2f} ({guess[metric]}), p {p_text(chance[f'{metric}_p'])}"
        )
        console.print(
            f"{metric.upper()} {result[metric]:.2f} (95 % {low:.2f} to {high:.2f}); {against}",
            soft_wrap=True,
        )
    for label, recall in result["recall"].items():
        console.print(
            f"  {label:15s} {'no clip' if recall is None else f'{recall:6.2f}'}  of {result['support'][label]}"
        )
