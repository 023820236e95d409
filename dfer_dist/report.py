"""Fold results to tables, intervals and figures: what stands in ``fold-K/`` becomes ``summary.json``, ``.md`` and ``.png``.

A result is never believed: its figures are computed again from the table of predictions beside it. Folds of different runs
are never mixed into one mean, and a mean over fewer folds than the data set has says so wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist import UserError
from dfer_dist.metrics import Ints, Scores, bootstrap_ci, score, top_class
from dfer_dist.rundir import VERSION, FoldDir, RunDir, atomic_path, read_json, write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

PROTOCOLS = {
    "last": "last: weights after the last epoch, the test fold read once",
    "best_val": "best_val: epoch chosen on a held-out part of the training folds",
    "best_test": "best_test: epoch chosen on the test fold, optimistic",
}
_SAME = ("dataset", "selection", "classes", "config_hash", "index_hash")  # folds that differ here are of different runs
_REQUIRED = (*_SAME, "fold", "n", "uar", "war", "support", "confusion", "absent", "epoch")
_HEADER = ["Fold", "Clips", "UAR %", "WAR %", "Epoch"]


@dataclass(frozen=True)
class _Predictions:
    labels: Ints  # [N]
    predicted: Ints  # [N]
    scores: Scores


@dataclass(frozen=True)
class _Fold:
    result: dict[str, Any]
    table: _Predictions
    shuffled: _Predictions | None


def read_fold(fold_dir: Path) -> dict[str, Any]:
    """The ``result.json`` of a fold, checked against the predictions beside it.

    Raises
    ------
    UserError
        A file that is missing or damaged, or figures that the predictions do not give; the text names the file.
    """
    return _load_fold(fold_dir).result


def summarize(run_dir: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Mean, deviation and interval over the folds that are done, and the scores of all their clips pooled.

    Parameters
    ----------
    folds : sequence of int
        All folds of the data set; one without a ``result.json`` is listed under ``missing``.

    Returns
    -------
    dict
        The content of ``summary.json``. UAR, WAR and recalls in percent; ``std`` is the sample deviation over folds (None
        for one fold); ``ci95`` is :func:`~dfer_dist.metrics.bootstrap_ci` of the mean; ``shuffled`` is None unless all
        folds that are done have it.

    Raises
    ------
    UserError
        No fold is done, a fold is damaged, or two folds are of different runs.
    """
    run = RunDir(run_dir)
    there = [k for k in folds if run.fold(k).result.is_file()]
    if not there:
        raise UserError(f"{run_dir} has no finished fold: no fold-K/result.json for K in {_join(folds)}")
    loaded = [_load_fold(run.fold(k).root) for k in there]
    for k, fold in zip(there, loaded, strict=True):
        _check_same_run(run, k, fold.result, there[0], loaded[0].result)
    first = loaded[0].result
    tables = [f.table for f in loaded]
    pooled = score(np.concatenate([t.labels for t in tables]), np.concatenate([t.predicted for t in tables]), first["classes"])
    most = max(pooled.support, key=pooled.support.__getitem__)
    shuffled = [f.shuffled for f in loaded if f.shuffled is not None]
    return {
        "version": VERSION,
        "dataset": first["dataset"],
        "selection": first["selection"],
        "folds": [f.result for f in loaded],
        "missing": [k for k in folds if k not in there],
        **_over_folds(tables),
        "pooled": asdict(pooled),
        "majority": {"class": most, "war": 100.0 * pooled.support[most] / pooled.n},
        "shuffled": _over_folds(shuffled) if len(shuffled) == len(loaded) else None,
    }


def write_summary(run_dir: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Write ``summary.json``, ``summary.md`` and ``summary.png`` into the run folder, each by rename; return the summary.

    Raises
    ------
    UserError
        As :func:`summarize`; nothing is written then.
    """
    from dfer_dist.figures import save, summary_figure

    run, summary = RunDir(run_dir), summarize(run_dir, folds)
    with atomic_path(run.picture) as path:
        save(summary_figure(summary, heading(summary), missing_words(summary)), path)
    write_text(run.report, markdown(summary))
    write_json(run.summary, summary)
    return summary


def confusion_png(result: Mapping[str, Any] | Scores, path: Path) -> None:
    """Draw the confusion matrix of one fold, by rename; ``result`` is a ``result.json`` or its :class:`Scores`."""
    from dfer_dist.figures import confusion_figure, save

    table = asdict(result) if isinstance(result, Scores) else result
    title = f"UAR {table['uar']:.2f} %, WAR {table['war']:.2f} %, {table['n']} clips"
    if "selection" in table:
        title = f"{table['dataset']}, fold {table['fold']}: {title}\n{PROTOCOLS[table['selection']]}"
    with atomic_path(path) as temporary:
        save(confusion_figure(table["confusion"], table["classes"], title), temporary)


def heading(summary: Mapping[str, Any]) -> str:
    """The data set, and what must be said beside every number: how the epoch was picked."""
    return f"{summary['dataset']} ({PROTOCOLS[summary['selection']]})"


def missing_words(summary: Mapping[str, Any]) -> str:
    """One sentence on the folds that are not there; empty if all are."""
    if not summary["missing"]:
        return ""
    missing, count = summary["missing"], len(summary["folds"]) + len(summary["missing"])
    return f"{len(missing)} of {count} folds missing ({_join(missing)}): all figures are over {_folds(_done(summary))} only."


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The folds and their mean as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    caption = "\n".join(filter(None, [missing_words(summary), *_notes(summary)]))
    table = Table(title=Text(heading(summary)), caption=Text(caption), caption_justify="left")
    for i, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if i == 0 else "right")
    fold_rows = _fold_rows(summary)
    for i, row in enumerate(fold_rows):
        table.add_row(*row, style="yellow" if row[1] == "missing" else None, end_section=i == len(fold_rows) - 1)
    for row in _mean_rows(summary):
        table.add_row(*row)
    return table


def markdown(summary: Mapping[str, Any]) -> str:
    """The text of ``summary.md``."""
    pooled = summary["pooled"]
    lines = [f"# {summary['dataset']}: {len(summary['folds'])} of {len(summary['folds']) + len(summary['missing'])} folds", ""]
    if summary["missing"]:
        lines += [f"**{missing_words(summary)}**", ""]
    lines += [
        f"Protocol: {PROTOCOLS[summary['selection']]}.{_frames_words(summary['folds'][0])}",
        "",
        *markdown_table(_HEADER, _fold_rows(summary) + _mean_rows(summary)),
    ]
    lines += [text for note in _notes(summary) for text in ("", note)]
    lines += ["", "## Recall of each class", ""]
    scores = f"UAR {pooled['uar']:.2f} %, WAR {pooled['war']:.2f} %"
    lines += [f"All {pooled['n']} test clips of {_folds(_done(summary))} pooled: {scores}."]
    rows = [[c, str(pooled["support"][c]), "absent" if r is None else f"{r:.2f}"] for c, r in pooled["recall"].items()]
    if summary["missing"]:
        rows.append([_folds(summary["missing"]), "missing", "missing"])
    lines += ["", *markdown_table(["Class", "Clips", "Recall %"], rows)]
    lines += ["", "![Scores of each fold and the pooled confusion matrix](summary.png)", ""]
    return "\n".join(lines)


def _frames_words(result: Mapping[str, Any]) -> str:
    """What a test clip's prediction rests on; empty for a result that does not say."""
    if "views" not in result:
        return ""
    views = "once" if result["views"] == 1 else f"in {result['views']} views, their probabilities averaged"
    return f" Each clip was seen {views}, {result['num_frames']} frames a view ({result['sampling']})."


def _load_fold(fold_dir: Path) -> _Fold:
    files = FoldDir(fold_dir)
    result = read_json(files.result)
    lacking = [k for k in _REQUIRED if k not in result]
    if lacking:
        raise UserError(f"{files.result} lacks {', '.join(lacking)}: evaluate this fold again")
    if result["selection"] not in PROTOCOLS:
        raise UserError(f"{files.result}: selection '{result['selection']}' is none of {', '.join(PROTOCOLS)}")
    table = _read_predictions(files.predictions, result["classes"])
    _check_figures(files.result, result, table.scores, ("n", "support", "confusion", "uar", "war"))
    shuffled = None
    if result.get("shuffled") is not None:
        shuffled = _read_predictions(files.shuffled_predictions, result["classes"])
        _check_figures(files.result, result["shuffled"], shuffled.scores, ("uar", "war"))
        if shuffled.scores.support != table.scores.support:
            raise UserError(
                f"{files.shuffled_predictions} has other clips than {files.predictions.name}: evaluate this fold again"
            )
    return _Fold(result, table, shuffled)


def _read_predictions(path: Path, classes: list[str]) -> _Predictions:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        data = pq.read_table(path, columns=["key", "label", "logits"])
        logits = data["logits"].combine_chunks()
        widths = pc.value_counts(pc.list_value_length(logits)).field(0).to_pylist()
        if widths != [len(classes)] or data["label"].null_count:
            raise ValueError(f"not every clip has {len(classes)} logits and a label")
        if pc.count_distinct(data["key"]).as_py() != data.num_rows:
            raise ValueError("a key occurs twice")
        labels = data["label"].to_numpy()
        predicted = top_class(logits.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(classes)))
        return _Predictions(labels, predicted, score(labels, predicted, classes))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as e:
        reason = str(e).partition("\n")[0]
        raise UserError(f"{path} is missing or damaged ({reason}): evaluate this fold again") from e


def _check_figures(path: Path, written: Any, scores: Scores, names: tuple[str, ...]) -> None:
    for name in names:
        said, counted = written.get(name), getattr(scores, name)
        # a hundredth leaves room for rounded figures; a clip more or less is seen in the confusion matrix
        same = isinstance(said, int | float) and abs(said - counted) <= 0.01 if name in ("uar", "war") else said == counted
        if not same:
            detail = f" (it says {said}, they give {counted})" if name in ("n", "uar", "war") else ""
            raise UserError(f"{path}: its {name} is not that of the predictions beside it{detail}: evaluate this fold again")


def _check_same_run(run: RunDir, k: int, result: dict[str, Any], first: int, reference: dict[str, Any]) -> None:
    if result["fold"] != k:
        raise UserError(f"{run.fold(k).result} is of fold {result['fold']}: fold folders must not be renamed")
    for name in _SAME:
        if result[name] != reference[name]:
            what = f"folds {first} and {k} differ in {name} ({reference[name]}, {result[name]})"
            raise UserError(f"{run.root}: {what}: they are of different runs; train or evaluate one of them again")


def _over_folds(tables: list[_Predictions]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for metric in ("uar", "war"):
        values = [getattr(t.scores, metric) for t in tables]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        ci = bootstrap_ci([(t.labels, t.predicted) for t in tables], len(tables[0].scores.classes), metric)
        out[metric] = {"mean": float(np.mean(values)), "std": std, "ci95": list(ci)}
    return out


def _fold_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    done = {r["fold"]: [str(r["n"]), f"{r['uar']:.2f}", f"{r['war']:.2f}", str(r["epoch"])] for r in summary["folds"]}
    return [[str(k), *done.get(k, ["missing"] * 4)] for k in sorted([*done, *summary["missing"]])]


def _mean_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    over = f" of {_folds(_done(summary))}" if summary["missing"] else ""
    deviation = " ± deviation" if len(summary["folds"]) > 1 else ""
    interval = ["{:.2f} to {:.2f}".format(*summary[m]["ci95"]) for m in ("uar", "war")]
    rows = [[f"mean{deviation}{over}", str(summary["pooled"]["n"]), mean_words(summary, "uar"), mean_words(summary, "war"), ""]]
    rows += [["95 % interval", "", *interval, ""]]
    if summary["shuffled"]:
        rows.append(["frames shuffled", "", mean_words(summary["shuffled"], "uar"), mean_words(summary["shuffled"], "war"), ""])
    return [*rows, [f"always {summary['majority']['class']}", "", "", f"{summary['majority']['war']:.2f}", ""]]


def mean_words(part: Mapping[str, Any], metric: str) -> str:
    """Mean over folds of ``uar`` or ``war`` of a summary, with its deviation where there are two folds or more."""
    m = part[metric]
    return f"{m['mean']:.2f}" + (f" ± {m['std']:.2f}" if m["std"] is not None else "")


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know and its cells do not say."""
    absent = "Fold {} has no clip of {}: its UAR is the mean over the other classes."
    notes = [absent.format(r["fold"], ", ".join(r["absent"])) for r in summary["folds"] if r["absent"]]
    changed = "Fold {} went on in the middle of its training with another {}."
    notes += [changed.format(r["fold"], ", ".join(r["drift"])) for r in summary["folds"] if r.get("drift")]
    skipped = "Fold {} skipped {} steps, whose loss or gradient was not finite."
    notes += [skipped.format(r["fold"], r["skipped_steps"]) for r in summary["folds"] if r.get("skipped_steps")]
    shuffled = [r["fold"] for r in summary["folds"] if r.get("shuffled") is not None]
    if shuffled and not summary["shuffled"]:
        notes.append(f"Scores with shuffled frames exist for {_folds(shuffled)} only and are left out.")
    return notes


def _done(summary: Mapping[str, Any]) -> list[int]:
    return [r["fold"] for r in summary["folds"]]


def _folds(numbers: Sequence[int]) -> str:
    return f"fold{'s' if len(numbers) > 1 else ''} {_join(numbers)}"


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first column to the left, the others to the right."""
    rules = [":---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in [header, rules, *rows]]
