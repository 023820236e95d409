"""``dfer eval``: test a checkpoint on a fold, or zero-shot on other data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from launch.console import ProgressBar, new_console, print_line
from launch.options import Checkpoint, Overrides


def evaluate(
    checkpoint: Checkpoint,
    fold: Annotated[
        int | None, typer.Option(help="Fold to test on. Default: the checkpoint's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the predictions to this parquet file.")
    ] = None,
    zero_shot: Annotated[
        bool,
        typer.Option(
            "--zero-shot",
            help="Test on data with other classes, by their texts; "
            "CHECKPOINT may also be an experiment that was not trained.",
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Test a checkpoint on a fold.

    Every clip is predicted exactly once.

    Example: [bold]dfer eval runs/demo/fold-1/checkpoints/LATEST[/bold], or, trained on DFEW and
    tested on all of MAFW,
    [bold]dfer eval runs/dfew/fold-1/checkpoints/LATEST --zero-shot data.shards=data/mafw[/bold]
    """
    from dfer_dist.evaluation.evaluate import evaluate_checkpoint

    console = new_console()
    if zero_shot:
        _evaluate_zero_shot(console, checkpoint, fold, overrides or [], out)
        return
    with ProgressBar(console, "test clips") as progress:
        scores = evaluate_checkpoint(checkpoint, fold, overrides or [], out, progress)
    console.print(f"{scores.n} clips: UAR {scores.uar:.2f}  WAR {scores.war:.2f}")
    _print_recall(console, scores.recall, scores.support)


def _evaluate_zero_shot(
    console: Console, what: Path, fold: int | None, overrides: list[str], out: Path | None
) -> None:
    """Test a checkpoint, or the CLIP of an experiment, by the texts of the classes."""
    from dfer_dist.evaluation.zero_shot import zero_shot
    from dfer_dist.reporting.wording import p_text, trained_text

    with ProgressBar(console, "test clips") as progress:
        result = zero_shot(what, fold, overrides, out, progress)
    chance = result["chance"]
    where = f"fold {result['fold']}" if result["fold"] else "all folds"
    print_line(
        console,
        f"zero-shot on {result['dataset']}, {where}, {result['n']} clips; "
        f"{trained_text(result['trained_on'])}",
    )
    if result["context"] == "left out":
        print_line(
            console,
            "the learned context belongs to the classes of the training and was left out: "
            "only the sentences were encoded",
        )
    guess = {"uar": "the same predictions in random orders", "war": f"always {chance['class']}"}
    for metric, description in guess.items():
        low, high = result["ci95"][metric]
        print_line(
            console,
            f"{metric.upper()} {result[metric]:.2f} (95 % {low:.2f} to {high:.2f}); "
            f"chance {chance[metric]:.2f} ({description}), p {p_text(chance[f'{metric}_p'])}",
        )
    _print_recall(console, result["recall"], result["support"])


def _print_recall(
    console: Console, recall: Mapping[str, float | None], support: Mapping[str, int]
) -> None:
    """Print a line per class."""
    for label, value in recall.items():
        text = "no clip" if value is None else f"{value:6.2f}"
        console.print(f"  {label:15s} {text}  of {support[label]}")
