"""A comparison of runs as sections of a report and as files: each run against the first."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import NEUTRAL, flatten
from dfer_dist.reporting.history import run_cost
from dfer_dist.reporting.paired import Comparison, Paired
from dfer_dist.reporting.sections import Section, latex_document
from dfer_dist.reporting.tables import Table, markdown, slug, terminal
from dfer_dist.reporting.wording import folds_text, mean_text, missing_text, p_text, signed
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, read_json, write_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

SHOWN = 20  # changed clips in a report; the CSV file has all
_METRICS = (("uar", "UAR"), ("war", "WAR"))


def overview_table(runs: Sequence[RunDir], summaries: Sequence[Mapping[str, Any] | None]) -> Table:
    """A row a run: mean and deviation over the folds that are done, and how many those are; None: no fold is."""
    settings = [_settings(run) for run in runs]
    known = [s for s in settings if s is not None]
    differ = (
        [k for k in known[0] if not k.startswith(NEUTRAL) and len({repr(s[k]) for s in known}) > 1]
        if known
        else []
    )
    rows, warnings = [], []
    for run, config, summary in zip(runs, settings, summaries, strict=True):
        what = (
            "settings of another version"
            if config is None
            else ", ".join(f"{k}={config[k]}" for k in differ)
        )
        figures, finished = ["missing", "missing"], 0
        if summary:
            figures, finished = (
                [mean_text(summary, "uar"), mean_text(summary, "war")],
                len(summary["folds"]),
            )
            warnings += [f"{run.root.name}: {text}" for text in [missing_text(summary)] if text]
        rows.append(
            [run.root.name, what, f"{finished} of {len(run.describe()['folds'])}", *figures]
        )
    return Table(
        "runs",
        "Runs side by side",
        ["Run", "What differs", "Folds", "UAR %", "WAR %"],
        rows,
        warnings,
        left=2,
    )


def systems_table(runs: Sequence[RunDir], summaries: Sequence[Mapping[str, Any] | None]) -> Table:
    """A row a run: what is trained, how well it does, how fast it was and how much memory it took."""
    rows = []
    for run, summary in zip(runs, summaries, strict=True):
        scores = (
            [mean_text(summary, m) for m in ("uar", "war")] if summary else ["missing", "missing"]
        )
        c = run_cost(run, summary["folds"] if summary else [])
        trained = (
            "not recorded" if c.trained_parameters is None else f"{c.trained_parameters / 1e6:.3f}"
        )
        speed = "not recorded" if c.clips_per_second is None else f"{c.clips_per_second:.1f}"
        memory = "not recorded" if c.peak_bytes is None else f"{c.peak_bytes / 2**30:.2f}"
        rows.append([run.root.name, trained, *scores, speed, memory])
    header = ["Run", "Trained, million", "UAR %", "WAR %", "Clips / s", "Memory, GiB"]
    notes = [
        "Parameters that are trained; clips a second in training, over all ranks, median over steps and folds; the largest peak of a rank: its GPU's, or main memory with all imports."
    ]
    return Table("systems", "Size, speed and memory", header, rows, [], notes)


def _settings(run: RunDir) -> dict[str, Any] | None:
    """By dotted key; None for those that this version cannot read."""
    try:
        return flatten(read_config(run.config))
    except UserError:
        return None


def write_overview(runs: Sequence[RunDir], path: Path) -> RichTable:
    """Write the overview to ``path`` as Markdown, from each ``summary.json``, and return it as a table for the terminal."""
    table = overview_table(
        runs, [read_json(run.summary) if run.summary.exists() else None for run in runs]
    )
    write_text(path, "\n".join(markdown(table)) + "\n")
    return terminal(table)


def comparison_sections(
    tables: Sequence[Table], comparisons: Sequence[Comparison]
) -> list[Section]:
    """What a report says of several runs, in its order; ``tables`` have a row for each."""
    sections = [Section("runs", "Runs side by side", [], list(tables))]
    first = comparisons[0].first.name
    text = [
        f"All differences are against {first}, on the same clips; positive: the other run is better."
    ]
    sections.append(
        Section("differences", "Differences", text, [_difference_table(c) for c in comparisons])
    )
    done = [(c, c.paired) for c in comparisons if c.paired]
    if done:
        sections += [
            Section("folds", "Fold by fold", [], [_fold_table(c, p) for c, p in done]),
            Section(
                "classes", "Classes that gained and lost", [], [_class_table(c, p) for c, p in done]
            ),
            Section("clips", "Clips that changed", [], [_clip_table(c, p) for c, p in done]),
        ]
    return sections


def _title(c: Comparison) -> str:
    return f"{c.second.name} against {c.first.name}"


def _difference_table(c: Comparison) -> Table:
    header = ["Measure", "Difference", "95 % interval", "Test", "Statistic", "p"]
    if c.paired is None:
        return Table(
            f"differences-{slug(c.second.name)}",
            _title(c),
            header,
            [["not compared", *[""] * 5]],
            c.warnings,
        )
    p, rows = c.paired, []
    for name, word in _METRICS:
        d, t = p.difference[name], p.t_test[name]
        row = [f"{word}, mean over folds", signed(d.value), f"{signed(d.low)} to {signed(d.high)}"]
        rows.append([*row, *_t_cells(t)])
    m = p.mcnemar
    share = 100.0 * (m.gained - m.lost) / p.clips
    rows.append(
        [
            "clips right, pooled",
            signed(share),
            "",
            "McNemar, exact",
            f"{m.gained} gained, {m.lost} lost",
            p_text(m.p),
        ]
    )
    notes = [
        f"{p.clips} clips of {folds_text([f.fold for f in p.folds])}; in percent points; paired bootstrap over clips within folds."
    ]
    if len(p.folds) > 1:
        notes.append(
            f"Corrected t-test: n_train / n_test = {p.n_train:.0f} / {p.n_test:.0f} clips."
        )
    else:
        notes.append("A t-test over folds needs two folds or more.")
    return Table(f"differences-{slug(c.second.name)}", _title(c), header, rows, c.warnings, notes)


def _t_cells(t: Any) -> list[str]:
    if t is None:
        return ["", "", ""]
    return ["corrected t", f"t({t.df}) = {signed(t.t)}" if t.t is not None else "", p_text(t.p)]


def _fold_table(c: Comparison, p: Paired) -> Table:
    a, b = c.first.name, c.second.name
    header = [
        "Fold",
        "Clips",
        f"UAR % {a}",
        f"UAR % {b}",
        "difference",
        f"WAR % {a}",
        f"WAR % {b}",
        "difference",
    ]
    rows = []
    for f in p.folds:
        scores = [
            cell for x, y in (f.uar, f.war) for cell in (f"{x:.2f}", f"{y:.2f}", signed(y - x))
        ]
        rows.append([str(f.fold), str(f.clips), *scores])
    return Table(f"folds-{slug(b)}", _title(c), header, rows, c.warnings)


def _class_table(c: Comparison, p: Paired) -> Table:
    header = [
        "Class",
        "Clips",
        f"Recall % {c.first.name}",
        f"Recall % {c.second.name}",
        "Difference",
        "95 % interval",
    ]
    header += ["Gained", "Lost", "p", "Verdict"]
    rows = []
    for x in p.classes:
        d = x.difference
        recalls = [
            f"{x.first:.2f}",
            f"{x.second:.2f}",
            signed(d.value),
            f"{signed(d.low)} to {signed(d.high)}",
        ]
        rows.append(
            [x.name, str(x.clips), *recalls, str(x.gained), str(x.lost), p_text(x.p), x.verdict]
        )
    note = "Folds pooled. Gained, lost: clips. p: McNemar's test, Holm's correction for all classes; a verdict where it is below 0.05."
    return Table(f"classes-{slug(c.second.name)}", _title(c), header, rows, c.warnings, [note])


def _clip_table(c: Comparison, p: Paired) -> Table:
    a, b = c.first.name, c.second.name
    surest = sorted(p.changes, key=lambda x: -(x.first_probability + x.second_probability))[:SHOWN]
    rows = [
        [
            x.key,
            str(x.fold),
            x.truth,
            f"{x.first} ({x.first_probability:.2f})",
            f"{x.second} ({x.second_probability:.2f})",
            x.kind,
        ]
        for x in surest
    ]
    counts = [
        f"{sum(x.kind == k for x in p.changes)} {k}" for k in ("gained", "lost", "other mistake")
    ]
    notes = [
        f"{len(p.changes)} of {p.clips} clips were said to be different things: {', '.join(counts)}; probabilities in brackets."
    ]
    notes += (
        [f"Shown are the {SHOWN} of which both are surest; all are in {clips_file(c)}."]
        if len(p.changes) > SHOWN
        else []
    )
    return Table(
        f"clips-{slug(b)}",
        _title(c),
        ["Clip", "Fold", "Truth", a, b, "Change"],
        rows,
        c.warnings,
        notes,
        left=6,
    )


def clips_file(c: Comparison) -> str:
    """Name of the file that lists the clips that changed."""
    return f"clips-{slug(c.second.name)}.csv"


def write_clips(c: Comparison, p: Paired, path: Path) -> None:
    """All clips that changed, a line each, as CSV."""
    a, b = c.first.name, c.second.name
    header = ["fold", "key", "truth", a, f"{a}_probability", b, f"{b}_probability", "change"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        lines = csv.writer(f)
        lines.writerow(header)
        for x in p.changes:
            probabilities = f"{x.first_probability:.6f}", f"{x.second_probability:.6f}"
            lines.writerow(
                [
                    x.fold,
                    x.key,
                    x.truth,
                    x.first,
                    probabilities[0],
                    x.second,
                    probabilities[1],
                    x.kind,
                ]
            )


def comparison_markdown(sections: Sequence[Section], comparisons: Sequence[Comparison]) -> str:
    """The text of ``comparison.md``."""
    lines = [
        f"# {', '.join(c.second.name for c in comparisons)} against {comparisons[0].first.name}"
    ]
    for section in sections:
        lines += [
            "",
            f"## {section.title}",
            *(part for text in section.text for part in ("", text)),
        ]
        for table in section.tables:
            lines += ["", f"**{table.title}**", "", *markdown(table)]
    return "\n".join(lines) + "\n"


def comparison_latex(sections: Sequence[Section], comparisons: Sequence[Comparison]) -> str:
    """The text of ``comparison.tex``: all tables but the one of single clips."""
    tables = [t for s in sections for t in s.tables if s.key != "clips"]
    names = [c.second.name for c in comparisons]
    return latex_document(
        tables, "compare", f"{', '.join(names)} against {comparisons[0].first.name}", []
    )


def comparison_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The content of ``comparison.json``."""
    return {"comparisons": [_plain(c) for c in comparisons]}


def _plain(c: Comparison) -> dict[str, Any]:
    """A comparison as JSON; clips are in files of their own."""
    out: dict[str, Any] = {
        "first": c.first.name,
        "second": c.second.name,
        "warnings": c.warnings,
        "paired": None,
    }
    if c.paired:
        paired: Mapping[str, Any] = asdict(c.paired)
        out["paired"] = {k: v for k, v in paired.items() if k != "changes"} | {
            "changed_clips": len(c.paired.changes)
        }
    return out
