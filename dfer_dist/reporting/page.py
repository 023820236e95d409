"""A report as one HTML page without network or scripts; plots are embedded."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from dfer_dist.reporting.history import Curve, read_lines, training_curves
from dfer_dist.reporting.paired import Comparison, Paired
from dfer_dist.reporting.plots.page import curves_figure, differences_figure, recall_figure
from dfer_dist.reporting.plots.scores import confusion_figure, data_uri, scores_figure
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.sections import class_recalls, hours_text, hours_unit
from dfer_dist.reporting.tables import Picture, Section, render_template
from dfer_dist.reporting.verdict import Card, Verdict
from dfer_dist.reporting.wording import PROTOCOLS, frames_text, interval_text, mean_text, warnings
from dfer_dist.utils.version import package_version


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


def render(title: str, chapters: Sequence[Chapter]) -> str:
    """Return the text of a page; cells and titles are escaped."""
    return render_template("page.html", title=title, chapters=chapters, version=package_version())


def run_chapter(
    key: str,
    loaded: LoadedRun,
    sections: Sequence[Section],
    verdict: Verdict,
    frames: Path | None = None,
) -> Chapter:
    """Return the chapter of a run; ``frames`` is a sheet of errors, with faces, to show."""
    summary = loaded.summary

    def picture(figure: Figure, alt: str, caption: str = "") -> Picture:
        return Picture(data_uri(figure), alt, caption, warnings(summary))

    scores, recall, *others = sections
    bars = picture(scores_figure(summary), "Bars of UAR and WAR of each fold and their mean")
    recalls = picture(recall_figure(class_recalls(summary)), "Bars of the recall of each class")
    shown = [replace(scores, pictures=[bars]), replace(recall, pictures=[recalls])]
    pooled, num_folds = summary.pooled, len(summary.folds)
    of_all = f"{num_folds} of {len(loaded.all_folds)}"
    count = f"{of_all} folds pooled, {pooled.n} clips"
    large = confusion_figure(pooled.confusion, pooled.classes, count)
    matrices = [picture(large, f"Confusion matrix, {count}")]
    if num_folds > 1:
        for r in summary.folds:
            title = f"Fold {r.fold}: UAR {r.uar:.2f} %, WAR {r.war:.2f} %"
            figure = confusion_figure(r.confusion, r.classes, title)
            matrices.append(Picture(data_uri(figure), title, small=True))
    shown.append(Section("confusion", "Confusion matrices", pictures=matrices))
    if curves := _curves(loaded):
        caption = (
            "Training loss, mean over an epoch (over a quarter of one where epochs are fewer than "
            "20)."
        )
        drawn = picture(curves, "Curves of the training loss of each fold", caption)
        shown.append(Section("curves", "Learning curves", pictures=[drawn]))
    shown += others
    if frames:
        uri = f"data:image/png;base64,{base64.b64encode(frames.read_bytes()).decode()}"
        caption = "The errors with the highest probability."
        sheet = Picture(uri, "Frames of misclassified clips", caption, warnings(summary))
        shown.append(Section("mistakes", "Most confident errors", pictures=[sheet]))
    protocol = PROTOCOLS[summary.selection]
    subtitle = f"{summary.dataset} · {protocol}. {frames_text(loaded.result)}"
    cards, sentences = _cards(loaded, of_all), verdict.sentences
    return Chapter(key, loaded.name, subtitle, warnings(summary), shown, cards, sentences)


def comparison_chapter(
    title: str, sections: Sequence[Section], comparisons: Sequence[Comparison], verdict: Verdict
) -> Chapter:
    """Return the chapter that compares each run with the first."""
    first = comparisons[0].first
    pictures = [_difference_picture(c, c.paired) for c in comparisons if c.paired]
    runs, differences, *others = sections
    shown = [runs, replace(differences, pictures=pictures), *others]
    distinct = dict.fromkeys(f"{c.title}: {text}" for c in comparisons for text in c.warnings)
    subtitle = f"{first.result.dataset} · paired on the same clips"
    cards, sentences = verdict.cards, verdict.sentences
    return Chapter("comparison", title, subtitle, list(distinct), shown, cards, sentences)


def _difference_picture(c: Comparison, paired: Paired) -> Picture:
    rows = [(metric.upper(), d) for metric, d in paired.difference.items()]
    rows += [(f"{x.name} ({x.clips})", x.difference) for x in paired.classes]
    caption = (
        f"{c.second.name} minus {c.first.name}: mean over folds of UAR and WAR, then recall of "
        "each class, folds pooled."
    )
    uri = data_uri(differences_figure(rows, 2))
    return Picture(uri, "Differences with 95 % intervals", caption, c.warnings)


def _cards(loaded: LoadedRun, of_all: str) -> list[Card]:
    summary, costs = loaded.summary, loaded.costs
    cards = []
    for metric, spread in (("uar", summary.uar), ("war", summary.war)):
        interval = f"95 %: {interval_text(*spread.ci95)}"
        cards.append(Card(f"{metric.upper()} %", mean_text(spread), interval, metric))
    cards.append(Card("Test folds", of_all, f"{summary.pooled.n} clips"))
    hours = [c.device_hours for c in costs if c.device_hours is not None]
    if len(hours) == len(costs):
        speeds = sorted({round(c.clips_per_second) for c in costs if c.clips_per_second})
        # The slowest and the fastest fold, once if they are equal.
        ends = " to ".join(map(str, speeds[:1] + speeds[1:][-1:]))
        speed = f"{ends} clips / s" * bool(ends)
        cards.append(Card(hours_unit(costs), hours_text(sum(hours)), speed))
    return cards


def _curves(loaded: LoadedRun) -> Figure | None:
    """Draw the learning curves; return None if no fold has metrics of its training."""
    folds: dict[int, dict[str, Curve]] = {}
    for r in loaded.summary.folds:
        curves = training_curves(read_lines(loaded.run.fold(r.fold)), r)
        if curves:
            folds[r.fold] = curves
    if not any(curves["loss"].x for curves in folds.values()):
        return None
    return curves_figure(folds, {r.fold: r.epoch for r in loaded.summary.folds})
