"""A report as one HTML page without network or scripts; plots are embedded."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.reporting.comparison import Comparison, comparison_title
from dfer_dist.reporting.history import (
    Curve,
    cost,
    loss_curve,
    read_lines,
    score_curve,
    steps_of_epoch,
)
from dfer_dist.reporting.page_plots import (
    ClassRecall,
    curves_figure,
    data_uri,
    differences_figure,
    recall_figure,
    scores_figure,
)
from dfer_dist.reporting.plots import confusion_figure
from dfer_dist.reporting.sections import Section, hours_text, hours_unit, wilson
from dfer_dist.reporting.tables import render_template
from dfer_dist.reporting.wording import (
    PROTOCOLS,
    frames_text,
    interval_text,
    mean_text,
    warnings,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.version import package_version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOOTER = (
    "UAR: mean recall of the classes that a fold has. WAR: share of clips that are right. Both are "
    "means over test folds; ± is the sample deviation over folds. 95 % intervals of them: "
    "percentile bootstrap of the mean over folds, clips drawn within fold and class; of a class's "
    "recall: Wilson's. They speak of the choice of test clips, not of what another seed of the "
    "training would change.",
)
PAIRED_FOOTER = (
    "Differences: paired bootstrap over clips within fold and class, a clip with both its "
    "predictions. Corrected t: t-test over folds with the variance of the mean taken as (1 / J + "
    "n_test / n_train) s², since training sets overlap (Nadeau & Bengio, 2003). McNemar: exact "
    "binomial test of the clips that only one run has right. McNemar and the intervals speak of "
    "the models that were trained, on these clips; the t-test of the choice of training clips too.",
)
_SCORE_CURVES = ("val_war", "val_uar", "test_war", "test_uar")


@dataclass(frozen=True)
class Picture:
    """A figure of a page; several ``small`` ones share a row if they fit."""

    uri: str
    alt: str
    caption: str = ""
    warnings: Sequence[str] = ()
    small: bool = False


@dataclass(frozen=True)
class Card:
    """A number at the top of a chapter; ``kind`` names its color."""

    name: str
    value: str
    more: str
    kind: str = ""


@dataclass(frozen=True)
class PageSection:
    """A section with its pictures; ``titles``: show the title of its only table too."""

    section: Section
    pictures: Sequence[Picture] = ()
    titles: bool = False


@dataclass(frozen=True)
class Chapter:
    """A part of a page with a title of its own: a run, or a comparison."""

    key: str
    title: str
    subtitle: str
    warnings: Sequence[str]
    cards: Sequence[Card]
    sections: Sequence[PageSection] = field(default_factory=list)


def render(title: str, chapters: Sequence[Chapter], footer: Sequence[str] = FOOTER) -> str:
    """Return the text of a page; cells and titles are escaped."""
    made_by = f"Made by dfer_dist {package_version()}."
    return render_template("page.html", title=title, chapters=chapters, footer=[*footer, made_by])


def run_chapter(
    key: str,
    run: RunDir,
    summary: Mapping[str, Any],
    sections: Sequence[Section],
    frames: Path | None,
) -> Chapter:
    """Return the chapter of a run.

    Parameters
    ----------
    key : str
        Prefix of the chapter's anchors.
    run : RunDir
    summary : mapping
    sections : sequence of Section
    frames : Path, optional
        A sheet of errors, with faces, that may be shown to others.
    """
    scores_alt = "Bars of UAR and WAR of each fold and their mean"
    pictures = {
        "scores": [_picture(scores_figure(summary), scores_alt, summary)],
        "recall": [_recall_picture(summary)],
    }
    shown = [PageSection(s, pictures.get(s.key, ())) for s in sections]
    extra = [_pictures("confusion", "Confusion matrices", _confusion_pictures(summary))]
    curves = _curve_pictures(run, summary)
    if curves:
        extra.append(_pictures("curves", "Learning curves", curves))
    after_recall = 1 + [s.key for s in sections].index("recall")
    shown[after_recall:after_recall] = extra
    if frames:
        sheet = Picture(
            f"data:image/png;base64,{base64.b64encode(frames.read_bytes()).decode()}",
            "Frames of misclassified clips",
            "The errors with the highest probability.",
            warnings(summary),
        )
        shown.append(_pictures("mistakes", "Most confident errors", [sheet]))
    protocol = PROTOCOLS[summary["selection"]]
    subtitle = f"{summary['dataset']} · {protocol}. {frames_text(summary['folds'][0])}"
    return Chapter(key, run.root.name, subtitle, warnings(summary), _cards(run, summary), shown)


def comparison_chapter(sections: Sequence[Section], comparisons: Sequence[Comparison]) -> Chapter:
    """Return the chapter that compares each run with the first."""
    first = comparisons[0].first
    pictures = {"differences": [_difference_picture(c) for c in comparisons if c.paired]}
    shown = [PageSection(s, pictures.get(s.key, ()), titles=s.key != "runs") for s in sections]
    distinct = dict.fromkeys(
        f"{c.second.name} against {first.name}: {text}" for c in comparisons for text in c.warnings
    )
    subtitle = f"{first.result['dataset']} · paired on the same clips"
    title = comparison_title(comparisons)
    return Chapter("comparison", title, subtitle, list(distinct), [], shown)


def _difference_picture(c: Comparison) -> Picture:
    assert c.paired is not None
    rows = [(m.upper(), c.paired.difference[m]) for m in ("uar", "war")]
    rows += [(f"{x.name} ({x.clips})", x.difference) for x in c.paired.classes]
    caption = (
        f"{c.second.name} minus {c.first.name}: mean over folds of UAR and WAR, then recall of "
        "each class, folds pooled."
    )
    uri = data_uri(differences_figure(rows, 2))
    return Picture(uri, "Differences with 95 % intervals", caption, c.warnings)


def _pictures(key: str, title: str, pictures: Sequence[Picture]) -> PageSection:
    return PageSection(Section(key, title, [], []), pictures)


def _picture(figure: Figure, alt: str, summary: Mapping[str, Any], caption: str = "") -> Picture:
    return Picture(data_uri(figure), alt, caption, warnings(summary))


def _cards(run: RunDir, summary: Mapping[str, Any]) -> list[Card]:
    cards = [
        Card(f"{m.upper()} %", mean_text(summary, m), f"95 %: {interval_text(summary, m)}", m)
        for m in ("uar", "war")
    ]
    count = len(summary["folds"])
    of_all = f"{count} of {count + len(summary['missing'])}"
    cards.append(Card("Test folds", of_all, f"{summary['pooled']['n']} clips"))
    costs = [cost(run.fold(r["fold"]), r) for r in summary["folds"]]
    hours = [c.device_hours for c in costs if c.device_hours is not None]
    if hours and len(hours) == count:
        speeds = [c.clips_per_second for c in costs if c.clips_per_second]
        speed = ""
        if speeds:
            speed = f"{min(speeds):.0f} to {max(speeds):.0f} clips / s"
        cards.append(Card(hours_unit(costs), hours_text(sum(hours)), speed))
    return cards


def _recall_picture(summary: Mapping[str, Any]) -> Picture:
    pooled = summary["pooled"]
    folds = [r for r in summary["folds"] if "recall" in r]
    if len(summary["folds"]) == 1:
        folds = []
    rows = []
    for i, (name, recall) in enumerate(pooled["recall"].items()):
        n = pooled["support"][name]
        low = high = 0.0
        if n:
            low, high = wilson(pooled["confusion"][i][i], n)
        by_fold = [r["recall"].get(name) for r in folds]
        rows.append(ClassRecall(name, n, recall, low, high, by_fold))
    return _picture(recall_figure(rows), "Bars of the recall of each class", summary)


def _confusion_pictures(summary: Mapping[str, Any]) -> list[Picture]:
    pooled, folds = summary["pooled"], summary["folds"]
    of_all = f"{len(folds)} of {len(folds) + len(summary['missing'])}"
    count = f"{of_all} folds pooled, {pooled['n']} clips"
    large = confusion_figure(pooled["confusion"], pooled["classes"], count)
    pictures = [_picture(large, f"Confusion matrix, {count}", summary)]
    if len(folds) == 1:
        return pictures
    for r in folds:
        title = f"Fold {r['fold']}: UAR {r['uar']:.2f} %, WAR {r['war']:.2f} %"
        figure = confusion_figure(r["confusion"], r["classes"], title)
        pictures.append(Picture(data_uri(figure), title, small=True))
    return pictures


def _curve_pictures(run: RunDir, summary: Mapping[str, Any]) -> list[Picture]:
    """Return nothing if no fold has metrics of its training."""
    losses: dict[int, Curve] = {}
    scores: dict[str, dict[int, Curve]] = {}
    for r in summary["folds"]:
        lines = read_lines(run.fold(r["fold"]))
        steps = steps_of_epoch(lines, r)
        if not steps:
            continue
        losses[r["fold"]] = loss_curve(lines, steps)
        for name in _SCORE_CURVES:
            curve = score_curve(lines, name, steps)
            # A single point is the result itself.
            if len(curve.epochs) > 1:
                scores.setdefault(name, {})[r["fold"]] = curve
    if not any(c.epochs for c in losses.values()):
        return []
    chosen = {r["fold"]: r["epoch"] for r in summary["folds"]}
    caption = (
        "Training loss, mean over an epoch (over a quarter of one where epochs are fewer than 20)."
    )
    alt = "Curves of the training loss of each fold"
    return [_picture(curves_figure(losses, scores, chosen), alt, summary, caption)]
