"""What a report leaves behind: the files of a run, and those of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfer_dist.reporting.published import Published, published_table
from dfer_dist.reporting.sections import Section, run_latex, run_markdown, run_sections
from dfer_dist.reporting.summary import summarize, summarize_folds
from dfer_dist.reporting.wording import heading, missing_text
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import atomic_path, write_json, write_text


def write_summary(run_dir: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Write ``summary.json``, ``.md``, ``.tex`` and ``.png`` into the run folder, each by rename; return the summary.

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
    """The same, and ``report.html``; returns the summary and what is said of it.

    Parameters
    ----------
    published : Published, optional
        Figures of papers to show beside the run's own.
    frames : Path, optional
        A picture of mistakes for the page, which thereby shows people's faces to whoever gets it.

    Raises
    ------
    UserError
        As :func:`write_summary`, and if nothing is published for the data set.
    """
    from dfer_dist.reporting.page import render, run_chapter

    summary = summarize(run.root, run.describe()["folds"])
    sections = run_sections(run, summary)
    if published:
        beside = Section(
            "published",
            "Beside published figures",
            [],
            [published_table(run.root.name, summary, published)],
        )
        sections.insert(1 + next(i for i, s in enumerate(sections) if s.key == "recall"), beside)
    _write(run, summary, sections)
    write_text(
        run.page,
        render(
            f"{run.root.name}: {heading(summary)}",
            [run_chapter("run", run, summary, sections, frames)],
        ),
    )
    return summary, sections


def write_comparison(
    runs: Sequence[RunDir], folder: Path, published: Published | None = None
) -> list[Section]:
    """Hold every run against the first: ``comparison.json``, ``.md``, ``.tex``, ``.html`` and the clips that changed, into ``folder``.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.paired.load_runs`.
    """
    from dfer_dist.reporting.comparison import (
        clips_file,
        comparison_json,
        comparison_latex,
        comparison_markdown,
        comparison_sections,
        overview_table,
        systems_table,
        write_clips,
    )
    from dfer_dist.reporting.page import (
        FOOTER,
        PAIRED_FOOTER,
        comparison_chapter,
        render,
        run_chapter,
    )
    from dfer_dist.reporting.paired import compare, load_runs

    sides = load_runs(runs)
    comparisons = [compare(sides[0], other) for other in sides[1:]]
    summaries = [summarize_folds(list(side.folds.values()), side.all_folds) for side in sides]
    sections = comparison_sections(
        [overview_table(runs, summaries), systems_table(runs, summaries)], comparisons
    )
    chapters = [comparison_chapter(sections, comparisons)]
    for i, (run, summary) in enumerate(zip(runs, summaries, strict=True)):
        own = run_sections(run, summary)
        if published:
            own.insert(
                1,
                Section(
                    "published",
                    "Beside published figures",
                    [],
                    [published_table(run.root.name, summary, published)],
                ),
            )
        chapters.append(run_chapter(f"run{i + 1}", run, summary, own, None))
    for c in comparisons:
        if c.paired:
            write_clips(c, c.paired, folder / clips_file(c))
    write_text(
        folder / "comparison.html", render(chapters[0].title, chapters, [*PAIRED_FOOTER, *FOOTER])
    )
    write_text(folder / "comparison.tex", comparison_latex(sections, comparisons))
    write_text(folder / "comparison.md", comparison_markdown(sections, comparisons))
    write_json(folder / "comparison.json", comparison_json(comparisons))
    return sections


def _write(run: RunDir, summary: dict[str, Any], sections: Sequence[Section]) -> None:
    from dfer_dist.reporting.figures import save, summary_figure

    with atomic_path(run.picture) as path:
        save(summary_figure(summary, heading(summary), missing_text(summary)), path)
    write_text(run.latex, run_latex(run, summary, sections))
    write_text(run.report, run_markdown(summary, sections))
    write_json(run.summary, summary)
