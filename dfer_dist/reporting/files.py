"""Write the files of a report: those of a run, and those of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfer_dist.reporting.class_scores import confusion_csv
from dfer_dist.reporting.comparison import sections as compared
from dfer_dist.reporting.comparison.crosseval import (
    CrossEval,
    crosseval_section,
    crosseval_title,
)
from dfer_dist.reporting.comparison.paired import Comparison, compare, load_runs
from dfer_dist.reporting.comparison.published import Published, published_sections
from dfer_dist.reporting.comparison.seed_sections import (
    analyse,
    analysis_json,
    seed_sections,
    seeds_verdict,
)
from dfer_dist.reporting.comparison.seeds import Setting, by_setting, has_seeds
from dfer_dist.reporting.comparison.verdict import Verdict, comparisons_verdict, run_verdict
from dfer_dist.reporting.paper_table import paper_table
from dfer_dist.reporting.results import LoadedRun, load_run
from dfer_dist.reporting.sections import run_sections
from dfer_dist.reporting.tables import (
    Section,
    Table,
    latex_document,
    render_template,
    slug,
)
from dfer_dist.reporting.wording import (
    frames_text,
    heading,
    join,
    protocol_text,
    run_title,
    warnings,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import VERSION, write_json, write_text

_LATEX_SECTIONS = (
    "scores",
    "f1",
    "votes",
    "sets",
    "multilabel",
    "recall",
    "calibration",
    "zero_shot",
    "cost",
    "published",
)


@dataclass(frozen=True)
class Report:
    """What a report says first, its sections, and the table for a paper."""

    verdict: Verdict
    sections: list[Section]
    paper: Table


def run_report(loaded: LoadedRun, published: Published | None = None) -> Report:
    """Return the report of a run."""
    sections = run_sections(loaded, published)
    return Report(run_verdict(loaded), sections, paper_table([loaded], published))


def comparison_report(
    runs: Sequence[LoadedRun],
    comparisons: Sequence[Comparison],
    published: Published | None = None,
) -> Report:
    """Return the report of a comparison of ``runs``."""
    sections = compared.comparison_sections(runs, comparisons)
    unfair = [f"{c.title}: {text}" for c in comparisons for text in c.warnings]
    paper = paper_table(runs, published, unfair)
    return Report(comparisons_verdict(comparisons), sections, paper)


def write_report(
    run: RunDir, published: Published | None = None, frames: Path | None = None
) -> Report:
    """Write what :func:`write_summary` writes, and ``report.html``.

    Parameters
    ----------
    run : RunDir
    published : Published, optional
        Scores of papers to show next to the run's own.
    frames : Path, optional
        A picture of errors for the page. It shows people's faces to everybody who gets the page.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.results.load_run`, and if nothing is published for the data
        set; nothing is written then.
    """
    from dfer_dist.reporting.page import render, run_chapter

    loaded = load_run(run)
    report = run_report(loaded, published)
    write_summary(loaded, report)
    title = heading(loaded.name, loaded.summary)
    chapter = run_chapter("run", loaded, report.sections, report.verdict, frames)
    write_text(run.page, render(title, [chapter]))
    return report


def run_latex(loaded: LoadedRun, report: Report) -> str:
    """Return the tables of a run as LaTeX."""
    summary = loaded.summary
    tables = [t for s in report.sections for t in s.tables if s.key in _LATEX_SECTIONS]
    comments = [heading(loaded.name, summary), *warnings(summary)]
    label = f"{slug(summary.dataset)}-{slug(loaded.run.root.name)}"
    return latex_document([report.paper, *tables], label, comments)


def comparison_latex(runs: Sequence[LoadedRun], report: Report) -> str:
    """Return the tables of a comparison as LaTeX, without the list of clips."""
    first, *others = runs
    tables = [t for s in report.sections for t in s.tables if s.key != "clips"]
    names = "-".join(slug(run.name) for run in others)
    label = f"{slug(first.result.dataset)}-{names}-against-{slug(first.name)}"
    title = f"{join(run.name for run in others)} against {first.name}"
    return latex_document([report.paper, *tables], label, [title])


def write_summary(loaded: LoadedRun, report: Report) -> None:
    """Write ``summary.json``, ``.md``, ``.tex``, ``.png`` and ``confusion.csv`` of a run."""
    from dfer_dist.reporting.plots.scores import save, summary_figure

    run, summary = loaded.run, loaded.summary
    save(summary_figure(loaded.name, summary), run.picture)
    write_text(run.latex, run_latex(loaded, report))
    write_text(run.confusion, confusion_csv(summary.pooled))
    text = render_template(
        "run.md",
        title=run_title(loaded.name, summary),
        protocol=protocol_text(summary),
        verdict=report.verdict.sentences,
        sections=report.sections,
        warnings=warnings(summary),
        frames=frames_text(loaded.result),
    )
    write_text(run.report, text)
    values = summary.to_json()
    # As in the files of the folds.
    values["folds"] = [{"version": VERSION, **fold} for fold in values["folds"]]
    write_json(run.summary, values)


def write_comparison(
    runs: Sequence[RunDir], folder: Path, published: Published | None = None
) -> Report:
    """Compare every run with the first; of runs that differ in their seeds, every setting.

    Write ``comparison.json``, ``.md``, ``.tex``, ``.html``, the changed clips and the confusion
    matrix of each run into ``folder``.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.comparison.paired.load_runs`.
    """
    return _write_compared(load_runs(runs), folder, published)


def _write_compared(
    loaded: Sequence[LoadedRun], folder: Path, published: Published | None = None
) -> Report:
    from dfer_dist.reporting.page import comparison_chapter, render, run_chapter

    settings = by_setting(loaded)
    if has_seeds(settings):
        return _write_seeds(loaded, settings, folder)
    comparisons = [compare(loaded[0], other) for other in loaded[1:]]
    report = comparison_report(loaded, comparisons, published)
    title = f"{join(r.name for r in loaded[1:])} against {loaded[0].name}"
    chapters = [comparison_chapter(title, report.sections, comparisons, report.verdict)]
    for i, one in enumerate(loaded, 1):
        own = run_report(one, published)
        matrix = f"confusion-{slug(one.name)}.csv"
        write_text(folder / matrix, confusion_csv(one.summary.pooled))
        sections = [replace(s, files=[matrix] * bool(s.files)) for s in own.sections]
        chapters.append(run_chapter(f"run{i}", one, sections, own.verdict))
    for c in comparisons:
        if c.paired:
            compared.write_clips(c, c.paired, folder / compared.clips_file(c))
    write_text(folder / "comparison.html", render(title, chapters))
    write_text(folder / "comparison.tex", comparison_latex(loaded, report))
    # the page has them in the chapters of the runs
    known = published_sections(loaded, published) if published else []
    _write_markdown(title, replace(report, sections=[*report.sections, *known]), folder)
    items = [compared.comparison_json(c) for c in comparisons]
    write_json(folder / "comparison.json", {"comparisons": items})
    return report


def write_crosseval(result: CrossEval, folder: Path) -> Section:
    """Write ``crosseval.json``, ``.md``, ``.tex`` and ``.png``; return the section they show."""
    from dfer_dist.reporting.plots.crosseval import crosseval_figure
    from dfer_dist.reporting.plots.scores import save

    section, title = crosseval_section(result), crosseval_title(result)
    save(crosseval_figure(result), folder / "crosseval.png")
    label = f"{'-'.join(map(slug, result.runs))}-on-{'-'.join(map(slug, result.sets))}"
    write_text(folder / "crosseval.tex", latex_document(section.tables, label, [title]))
    text = render_template("comparison.md", title=title, verdict=[], sections=[section])
    write_text(folder / "crosseval.md", text)
    result.write(folder / "crosseval.json")
    return section


def write_sweep(runs: Sequence[RunDir], folder: Path) -> Report:
    """Compare the runs of a sweep, also while some have no finished fold.

    Write what :func:`write_comparison` writes into ``folder``; with fewer than two runs to compare
    only ``comparison.md``.
    """
    finished = [run for run in runs if any(run.fold(k).result.is_file() for k in run.info().folds)]
    loaded = load_runs(finished)
    summaries = {one.run: one.summary for one in loaded}
    table = compared.overview_table(runs, [summaries.get(run) for run in runs])
    overview = Section("runs", "Runs side by side", [table])
    if len(loaded) > 1:
        report = _write_compared(loaded, folder)
        sections = [overview if s.key == "runs" else s for s in report.sections]
        report = replace(report, sections=sections)
    else:
        report = Report(Verdict([], []), [overview], table)
    _write_markdown(f"Sweep {folder.stem}", report, folder)
    return report


def _write_markdown(title: str, report: Report, folder: Path) -> None:
    text = render_template(
        "comparison.md", title=title, verdict=report.verdict.sentences, sections=report.sections
    )
    write_text(folder / "comparison.md", text)


def _write_seeds(loaded: Sequence[LoadedRun], settings: Sequence[Setting], folder: Path) -> Report:
    """Compare settings over seeds and folds, and write the files of a comparison."""
    from dfer_dist.reporting.page import Chapter, render

    analysis = analyse(settings)
    runs = [run.run for run in loaded]
    overview = compared.overview_table(runs, [run.summary for run in loaded])
    sections = [*seed_sections(analysis), Section("runs", "Runs side by side", [overview])]
    report = Report(seeds_verdict(analysis), sections, sections[0].tables[0])
    title = f"{join(s.name for s in settings)}: seeds and folds on {analysis.dataset}"
    subtitle = f"{protocol_text(loaded[0].summary)}. {frames_text(loaded[0].result)}"
    chapter = Chapter("seeds", title, subtitle, [], sections, [], report.verdict.sentences)
    write_text(folder / "comparison.html", render(title, [chapter]))
    tables = [table for section in sections for table in section.tables]
    write_text(folder / "comparison.tex", latex_document(tables, slug(folder.stem), [title]))
    _write_markdown(title, report, folder)
    write_json(folder / "comparison.json", analysis_json(analysis))
    return report
