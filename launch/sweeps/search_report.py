"""What a search ends with: a table of its trials, and the best one as an experiment."""

from __future__ import annotations

import shlex
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from rich.table import Table

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, flatten
from dfer_dist.utils.files import csv_text, write_text
from launch.console import number_columns, print_line, print_table
from launch.report import update_mlflow_sweep
from launch.sweeps.search import Search

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_WIDTH = 98  # characters of the comment
_MIN_FOR_IMPORTANCE = 10  # trials with a score


def report_search(search: Search, options: Sequence[str] = ()) -> bool:
    """Print and write the trials and the best one; return whether there is one.

    ``options`` are further ones of the command that trains the best one.
    """
    metric, root = search.options.metric.upper(), search.folder.root
    # pruned ones have the score of their last epoch
    trials = sorted(search.trials, key=lambda t: (t.state.name != "COMPLETE", -(t.value or 0.0)))
    settings = list(search.space.values)
    head, rows = ["Trial", "State", metric, *settings], []
    for t in trials:
        chosen = {k: v for k, _, v in (text.partition("=") for text in search.chosen(t.params))}
        values = [chosen.get(key, "") for key in settings]
        score = "" if t.value is None else f"{t.value:.2f}"
        rows.append(
            [str(t.number), t.state.name.lower().replace("running", "stopped"), score, *values]
        )
    write_text(root / "trials.csv", csv_text([head, *rows]))
    columns = number_columns(metric, *(key.rpartition(".")[2] for key in settings))
    table = Table(*head[:2], *columns, title=f"{search.folder.name}: trials")
    for row in rows:
        table.add_row(*row)
    print_table(table, "trials.csv")
    scored = [t for t in trials if t.state.name == "COMPLETE"]
    if scored:
        write_text(root / "best.yaml", _best_experiment(search, scored[0]))
    if search.folder.file.is_file():
        update_mlflow_sweep(search.folder)
    if not scored:
        return False
    if len(settings) > 1 and len(scored) >= _MIN_FOR_IMPORTANCE:
        _print_importance(search)
    print_line(f"best: trial {scored[0].number}, validation {metric} {scored[0].value:.2f}")
    print_line(f"train it: {_best_command(search, options)}")
    return True


def _best_command(search: Search, options: Sequence[str]) -> str:
    """Return the command that trains the best one, as a run with a name of its own."""
    command = ["dfer", "crossval", str(search.folder.root / "best.yaml")]
    command += ["--name", f"{search.folder.name}-best", "--folds", search.info.fold_list]
    if search.request.runs != Path("runs"):
        command += ["--runs", str(search.request.runs)]
    return shlex.join([*command, *options])


def _print_importance(search: Search) -> None:
    """Print which settings matter (PED-ANOVA: Watanabe et al., IJCAI 2023)."""
    from optuna.importance import get_param_importances

    with warnings.catch_warnings():
        # of equal scores
        warnings.simplefilter("ignore")
        found = get_param_importances(search.study)
    shares = ", ".join(f"{key} {share:.2f}" for key, share in found.items())
    print_line(f"importance among the best trials: {shares}")


def _best_experiment(search: Search, best: FrozenTrial) -> str:
    """Return the settings of a trial that are not at their defaults, without the search's own."""
    info, chosen = search.info, search.chosen(best.params)
    request = search.request
    config = flatten(load_config(request.experiment, [*request.overrides, *chosen]))
    tree, defaults = OmegaConf.create({}), flatten(Config())
    for key in (key for key, value in config.items() if value != defaults[key]):
        OmegaConf.update(tree, key, config[key])
    text = (
        f"The best of {len(search.trials)} trials of dfer tune {request.experiment}: trial "
        f"{best.number} of {search.folder.root.name} with {', '.join(chosen)}, and a "
        f"{info.options.metric.upper()} of {best.value:.2f} on a part of the training clips of "
        f"fold {info.fold_list} (seed {info.options.val_seed}). No test clip of fold "
        f"{info.fold_list} was read; clips of other folds were trained or validated on."
    )
    return f"{textwrap.indent(textwrap.fill(text, _WIDTH), '# ')}\n{OmegaConf.to_yaml(tree)}"
