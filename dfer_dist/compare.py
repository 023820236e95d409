"""Several runs side by side: what differs between them, and the mean over folds of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.config import NEUTRAL, flatten
from dfer_dist.configfile import read_config
from dfer_dist.report import markdown_table, mean_words
from dfer_dist.rundir import RunDir, read_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = ["Run", "What differs", "Folds", "UAR %", "WAR %"]


def comparison_rows(runs: Sequence[RunDir]) -> list[list[str]]:
    """A row a run, from its ``summary.json``: mean and deviation over the folds that are done, and how many those are."""
    settings = [flatten(read_config(run.config)) for run in runs]
    differ = [k for k in settings[0] if not k.startswith(NEUTRAL) and len({repr(s[k]) for s in settings}) > 1]
    rows = []
    for run, config in zip(runs, settings, strict=True):
        what, figures, done = ", ".join(f"{k}={config[k]}" for k in differ), ["missing", "missing"], 0
        if run.summary.exists():
            summary = read_json(run.summary)
            figures, done = [mean_words(summary, "uar"), mean_words(summary, "war")], len(summary["folds"])
        rows.append([run.root.name, what, f"{done} of {len(run.describe()['folds'])}", *figures])
    return rows


def comparison_table(runs: Sequence[RunDir]) -> Table:
    """The rows as a table for the terminal."""
    from rich.table import Table

    table = Table()
    for i, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if i < 2 else "right")
    for row in comparison_rows(runs):
        table.add_row(*row)
    return table


def write_comparison(runs: Sequence[RunDir], path: Path) -> Table:
    """Write the rows to ``path`` as Markdown, and return them as a table for the terminal."""
    write_text(path, "\n".join(markdown_table(_HEADER, comparison_rows(runs))) + "\n")
    return comparison_table(runs)
