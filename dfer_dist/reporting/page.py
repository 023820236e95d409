"""A report as one HTML page without network or scripts; plots are embedded."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup, escape

from dfer_dist.reporting.comparison.fairness import same_clips
from dfer_dist.reporting.comparison.paired import Comparison
from dfer_dist.reporting.comparison.verdict import Card, Verdict
from dfer_dist.reporting.history import time_text
from dfer_dist.reporting.plots.pictures import comparison_pictures, run_pictures
from dfer_dist.reporting.protocol import Rows, head_rows
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Picture, Section, Table, render_template
from dfer_dist.reporting.wording import (
    folds_text,
    frames_text,
    interval_text,
    mean_text,
    protocol_text,
    warnings,
)
from dfer_dist.utils.version import package_version

# What the page explains where a term is first used.
_TERMS = {
    "UAR": "unweighted average recall: the mean of the recalls of all classes",
    "WAR": "weighted average recall: the share of clips that are right",
    "±": "sample standard deviation over test folds",
}
_PHONE = 46  # characters of a table's row on a phone
_WRAPPED = 40  # a cell with more characters is wrapped


@dataclass(frozen=True)
class Chapter:
    """A part of a page with a title of its own: a run, or a comparison.

    ``key`` is the prefix of its anchors; that of a comparison is ``comparison``. ``verdict`` are
    sentences on what the numbers say.
    """

    key: str
    title: str
    subtitle: str
    warnings: Sequence[str]
    sections: Sequence[Section]
    cards: Sequence[Card]
    verdict: Sequence[str]
    facts: Rows = field(default_factory=list)


def render(title: str, chapters: Sequence[Chapter]) -> str:
    """Return the text of a page; cells and titles are escaped."""
    return render_template(
        "page.html",
        title=title,
        chapters=chapters,
        terms=_TERMS,
        explain=explain,
        is_wide=is_wide,
        scrolls=scrolls_on_phone,
        version=package_version(),
    )


def explain(text: str) -> Markup:
    """Return escaped text whose terms, such as UAR, say what they mean under the mouse."""

    def abbreviation(found: re.Match[str]) -> str:
        return f'<abbr title="{escape(_TERMS[found[0]])}">{found[0]}</abbr>'

    return Markup(re.sub(r"\b(?:UAR|WAR)\b|±", abbreviation, str(escape(text))))


def is_wide(table: Table, column: int) -> bool:
    """Return whether a column has texts that must be wrapped."""
    return any(len(row[column]) > _WRAPPED for row in table.rows)


def scrolls_on_phone(table: Table) -> bool:
    """Return whether a table is too wide for a phone, as far as its characters tell."""
    width = 0
    for i, name in enumerate(table.header):
        longest = max([len(row[i]) for row in table.rows], default=0)
        if is_wide(table, i):
            longest = _WRAPPED // 2
        width += 2 + max(longest, *map(len, name.split()))
    return width > _PHONE


def run_chapter(
    key: str,
    loaded: LoadedRun,
    sections: Sequence[Section],
    verdict: Verdict,
    frames: Path | None = None,
) -> Chapter:
    """Return the chapter of a run; ``frames`` is a sheet of errors, with faces, to show."""
    summary, pictures = loaded.summary, run_pictures(loaded)
    shown = [
        replace(s, tables=_short_titles(s.tables), pictures=pictures.get(s.key, ()))
        for s in sections
    ]
    if pictures["curves"]:
        place = [s.key for s in shown].index("confusion") + 1
        shown.insert(place, Section("curves", "Learning curves", pictures=pictures["curves"]))
    if frames:
        uri = f"data:image/png;base64,{base64.b64encode(frames.read_bytes()).decode()}"
        about = "Frames of misclassified clips", "The errors with the highest probability."
        sheet = Picture(uri, *about, warnings=warnings(summary))
        shown.append(Section("mistakes", "Most confident errors", pictures=[sheet]))
    protocol = protocol_text(summary)
    return Chapter(
        key=key,
        title=loaded.name,
        subtitle=f"{summary.dataset} · {protocol}. {frames_text(loaded.result)}",
        warnings=warnings(summary),
        sections=shown,
        cards=_cards(loaded),
        verdict=verdict.sentences,
        facts=head_rows(loaded),
    )


def _short_titles(tables: Sequence[Table]) -> list[Table]:
    """Return tables without the name in their titles, which the chapter has."""
    short = [t.title.rpartition(": ")[2] for t in tables]
    return [
        replace(t, title=name[:1].upper() + name[1:]) for t, name in zip(tables, short, strict=True)
    ]


def _cards(loaded: LoadedRun) -> list[Card]:
    summary, costs = loaded.summary, loaded.costs
    cards = []
    for metric, spread in (("uar", summary.uar), ("war", summary.war)):
        interval = f"95 %: {interval_text(*spread.ci95)}"
        cards.append(Card(f"{metric.upper()} %", mean_text(spread), interval, metric))
    of_all = f"{len(summary.folds)} of {len(loaded.all_folds)}"
    cards.append(Card("Test folds", of_all, f"{summary.pooled.n} clips"))
    if loaded.result.endpoint:
        return cards
    speeds = sorted({round(c.clips_per_second) for c in costs if c.clips_per_second})
    # The slowest and the fastest fold, once if they are equal.
    ends = " to ".join(map(str, speeds[:1] + speeds[1:][-1:]))
    time, on, ranks = time_text(costs).partition(" on ")
    more = ", ".join([f"on {ranks}"] * bool(on) + [f"{ends} clips / s"] * bool(ends))
    return [*cards, Card("Time, all folds", time, more)]


def comparison_chapter(
    title: str, sections: Sequence[Section], comparisons: Sequence[Comparison], verdict: Verdict
) -> Chapter:
    """Return the chapter that compares each run with the first."""
    first, pictures = comparisons[0].first, comparison_pictures(comparisons)
    shown = []
    for s in sections:
        tables = s.tables
        if len(comparisons) == 1 or s.key == "runs":
            tables = _short_titles(tables)
        shown.append(replace(s, tables=tables, pictures=pictures.get(s.key, ())))
    if pictures["curves"]:
        shown.append(Section("curves", "Learning curves", pictures=pictures["curves"]))
    distinct = dict.fromkeys(f"{c.title}: {text}" for c in comparisons for text in c.warnings)
    subtitle = f"{first.result.dataset} · compared clip by clip"
    if all(same_clips(c.first, c.second) for c in comparisons):
        folds = folds_text(list(first.folds))
        subtitle += f" · all were trained and tested on the same clips, of {folds}"
    return Chapter(
        key="comparison",
        title=title,
        subtitle=subtitle,
        warnings=list(distinct),
        sections=shown,
        cards=verdict.cards,
        verdict=verdict.sentences,
    )
