"""Write the files of a report: those of a run, and those of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfer_dist.reporting.extra_tables import Published, published_table
from dfer_dist.reporting.sections import Section, run_latex, run_markdown, run_sections
from dfer_dist.reporting.summary import summarize, summarize_folds
from dfer_dist.reporting.wording import heading, missing_text
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import atomic_path, write_json, write_text


def write_summary(run_dir: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Write ``summary.json``, ``.md``, ``.tex`` and ``.png`` into the run folder.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.summary.summarize`; nothing is written then.
    """
    run, summary = RunDir(run_dir), summarize(run_dir, folds)
    _write(run, summary, run_sections(run, summary))
    return summary


def write_report(
    run: RunDir, published: Published | None = None, frames: Path | None = None
) -> tuple[dict[str, Any], list[Section]]:
    """Write what :func:`write_summary` writes, and ``report.html``.

    Parameters
    ----------
    run : RunDir
    published : Published, optional
        Scores of papers to show next to the run's own.
    frames : Path, optional
        A picture of errors for the page. It shows people's faces to everybody who gets the page.

    Returns
    -------
    summary : dict
    sections : list of Section

    Raises
    ------
    UserError
        As :func:`write_summary`, and if nothing is published for the data set.
    """
    from dfer_dist.reporting.page import render, run_chapter

    summary = summarize(run.root, run.info().folds)
    sections = run_sections(run, summary)
    if published:
        after_recall = 1 + [s.key for s in sections].index("recall")
        sections.insert(after_recall, _published_section(run, summary, published))
    _write(run, summary, sections)
    chapter = run_chapter("run", run, summary, sections, frames)
    write_text(run.page, render(f"{run.root.name}: {heading(summary)}", [chapter]))
    return summary, sections


def write_comparison(
    runs: Sequence[RunDir], folder: Path, published: Published | None = None
) -> list[Section]:
    """Compare every run with the first.

    Write ``comparison.json``, ``.md``, ``.tex``, ``.html`` and the changed clips into ``folder``.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.paired.load_runs`.
    """
    from dfer_dist.reporting import comparison as compared
    from dfer_dist.reporting.page import (
        FOOTER,
        PAIRED_FOOTER,
        comparison_chapter,
        render,
        run_chapter,
    )
    from dfer_dist.reporting.paired import compare, load_runs

    loaded = load_runs(runs)
    comparisons = [compare(loaded[0], other) for other in loaded[1:]]
    summaries = [summarize_folds(list(r.folds.values()), r.all_folds) for r in loaded]
    tables = [compared.overview_table(runs, summaries), compared.systems_table(runs, summaries)]
    sections = compared.comparison_sections(tables, comparisons)
    chapters = [comparison_chapter(sections, comparisons)]
    for i, (run, summary) in enumerate(zip(runs, summaries, strict=True)):
        own = run_sections(run, summary)
        if published:
            own.insert(1, _published_section(run, summary, published))
        chapters.append(run_chapter(f"run{i + 1}", run, summary, own, None))
    for c in comparisons:
        if c.paired:
            compared.write_clips(c, c.paired, folder / compared.clips_file(c))
    page = render(chapters[0].title, chapters, [*PAIRED_FOOTER, *FOOTER])
    write_text(folder / "comparison.html", page)
    write_text(folder / "comparison.tex", compared.comparison_latex(sections, comparisons))
    write_text(folder / "comparison.md", compared.comparison_markdown(sections, comparisons))
    write_json(folder / "comparison.json", compared.comparison_json(comparisons))
    return sections


def _published_section(run: RunDir, summary: Mapping[str, Any], published: Published) -> Section:
    table = published_table(run.root.name, summary, published)
    return Section("published", "Published scores", [], [table])


def _write(run: RunDir, summary: dict[str, Any], sections: Sequence[Section]) -> None:
    from dfer_dist.reporting.plots import save, summary_figure

    with atomic_path(run.picture) as path:
        save(summary_figure(summary, heading(summary), missing_text(summary)), path)
    write_text(run.latex, run_latex(run, summary, sections))
    write_text(run.report, run_markdown(summary, sections))
    write_json(run.summary, summary)
