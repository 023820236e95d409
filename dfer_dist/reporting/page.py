"""A report as one HTML page that needs nothing else: no network, no script; figures stand in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfer_dist.reporting.comparison import Comparison
from dfer_dist.reporting.history import cost, loss_curve, read_lines, score_curve, steps_of_epoch
from dfer_dist.reporting.page_figures import (
    confusion_matrix_figure,
    curves_figure,
    data_uri,
    differences_figure,
    recall_figure,
    scores_figure,
)
from dfer_dist.reporting.sections import Section, hours_text, wilson
from dfer_dist.reporting.wording import (
    PROTOCOLS,
    frames_text,
    interval_text,
    mean_text,
    warnings,
)
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.version import package_version

FOOTER = (
    "UAR: mean recall of the classes that a fold has. WAR: share of clips that are right. Both are means over test folds; ± is the sample "
    "deviation over folds. 95 % intervals of them: percentile bootstrap of the mean over folds, clips drawn within fold and class; of a "
    "class's recall: Wilson's. They speak of the choice of test clips, not of what another seed of the training would change.",
)
PAIRED_FOOTER = (
    "Differences: paired bootstrap over clips within fold and class, a clip with both its predictions. Corrected t: t-test over folds with the "
    "variance of the mean taken as (1 / J + n_test / n_train) s², since training sets overlap (Nadeau & Bengio, 2003). McNemar: exact binomial "
    "test of the clips that only one run has right. McNemar and the intervals speak of the models that were trained, on these clips; the t-test "
    "of the choice of training clips too.",
)


@dataclass(frozen=True)
class Picture:
    """A figure of a page; several ``small`` ones stand side by side where there is room."""

    uri: str
    alt: str
    caption: str
    warnings: Sequence[str] = ()
    small: bool = False


@dataclass(frozen=True)
class Card:
    """A number that is seen first."""

    name: str
    value: str
    more: str
    kind: str = ""


@dataclass(frozen=True)
class Shown:
    """A section with its pictures; ``titles``: its only table has its title above it all the same."""

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
    sections: Sequence[Shown] = field(default_factory=list)


def render(title: str, chapters: Sequence[Chapter], footer: Sequence[str] = FOOTER) -> str:
    """The page's text. Whatever stands in cells and titles is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    made = f"Made by dfer_dist {package_version()}."
    return environment.get_template("page.html").render(
        title=title, chapters=chapters, footer=[*footer, made]
    )


def run_chapter(
    key: str,
    run: RunDir,
    summary: Mapping[str, Any],
    sections: Sequence[Section],
    frames: Path | None,
) -> Chapter:
    """A run. ``frames`` is a sheet of mistakes that may be shown to others, with the faces on it."""
    pictures = {
        "scores": [
            _picture(
                scores_figure(summary), "Bars of UAR and WAR of each fold and their mean", summary
            )
        ],
        "recall": _recall_pictures(summary),
        "curves": _curve_pictures(run, summary),
    }
    shown = [Shown(s, pictures.get(s.key, ())) for s in sections]
    at = 1 + next(i for i, s in enumerate(sections) if s.key == "recall")
    if pictures["curves"]:
        shown.insert(at, Shown(Section("curves", "Learning curves", [], []), pictures["curves"]))
    shown.insert(
        at, Shown(Section("confusion", "Confusion matrices", [], []), _confusion_pictures(summary))
    )
    if frames:
        uri = f"data:image/png;base64,{base64.b64encode(frames.read_bytes()).decode()}"
        sheet = Picture(
            uri,
            "Frames of clips that were mistaken",
            "The mistakes with the highest probability.",
            warnings(summary),
        )
        shown.append(Shown(Section("mistakes", "Most confident mistakes", [], []), [sheet]))
    subtitle = f"{summary['dataset']} · {PROTOCOLS[summary['selection']]}. {frames_text(summary['folds'][0])}"
    return Chapter(key, run.root.name, subtitle, warnings(summary), _cards(run, summary), shown)


def comparison_chapter(sections: Sequence[Section], comparisons: Sequence[Comparison]) -> Chapter:
    """Each run against the first."""
    first = comparisons[0].first.name
    pictures = []
    for c in comparisons:
        if c.paired:
            rows = [(m.upper(), c.paired.difference[m]) for m in ("uar", "war")]
            rows += [(f"{x.name} ({x.clips})", x.difference) for x in c.paired.classes]
            title = f"{c.second.name} minus {first}: mean over folds of UAR and WAR, then recall of each class, folds pooled."
            pictures.append(
                Picture(
                    data_uri(differences_figure(rows, 2)),
                    "Differences with 95 % intervals",
                    title,
                    c.warnings,
                )
            )
    shown = [
        Shown(s, pictures if s.key == "differences" else (), s.key != "runs") for s in sections
    ]
    told = list(
        dict.fromkeys(
            f"{c.second.name} against {first}: {text}" for c in comparisons for text in c.warnings
        )
    )
    title = f"{', '.join(c.second.name for c in comparisons)} against {first}"
    dataset = comparisons[0].first.result["dataset"]
    return Chapter("comparison", title, f"{dataset} · paired on the same clips", told, [], shown)


def _picture(
    figure: Any, alt: str, summary: Mapping[str, Any], caption: str = "", small: bool = False
) -> Picture:
    return Picture(data_uri(figure), alt, caption, warnings(summary), small)


def _cards(run: RunDir, summary: Mapping[str, Any]) -> list[Card]:
    cards = [
        Card(f"{m.upper()} %", mean_text(summary, m), f"95 %: {interval_text(summary, m)}", m)
        for m in ("uar", "war")
    ]
    count = len(summary["folds"])
    cards.append(
        Card(
            "Test folds",
            f"{count} of {count + len(summary['missing'])}",
            f"{summary['pooled']['n']} clips",
        )
    )
    costs = [cost(run.fold(r["fold"]), r) for r in summary["folds"]]
    hours = [c.device_hours for c in costs if c.device_hours is not None]
    if hours and len(hours) == count:
        unit = "GPU hours" if all(c.device == "cuda" for c in costs) else "Rank hours"
        speeds = [c.clips_per_second for c in costs if c.clips_per_second]
        cards.append(
            Card(
                unit,
                hours_text(sum(hours)),
                f"{min(speeds):.0f} to {max(speeds):.0f} clips / s" if speeds else "",
            )
        )
    return cards


def _recall_pictures(summary: Mapping[str, Any]) -> list[Picture]:
    pooled, rows, by_fold = summary["pooled"], [], []
    for i, (name, recall) in enumerate(pooled["recall"].items()):
        n, right = pooled["support"][name], pooled["confusion"][i][i]
        rows.append((name, n, recall, *(wilson(right, n) if n else (0.0, 0.0))))
        by_fold.append(
            [
                r["recall"].get(name)
                for r in summary["folds"]
                if len(summary["folds"]) > 1 and "recall" in r
            ]
        )
    return [_picture(recall_figure(rows, by_fold), "Bars of the recall of each class", summary)]


def _confusion_pictures(summary: Mapping[str, Any]) -> list[Picture]:
    pooled, folds = summary["pooled"], summary["folds"]
    count = (
        f"{len(folds)} of {len(folds) + len(summary['missing'])} folds pooled, {pooled['n']} clips"
    )
    large = confusion_matrix_figure(pooled["confusion"], pooled["classes"], count)
    pictures = [_picture(large, f"Confusion matrix, {count}", summary)]
    for r in folds if len(folds) > 1 else ():
        title = f"Fold {r['fold']}: UAR {r['uar']:.2f} %, WAR {r['war']:.2f} %"
        pictures.append(
            Picture(
                data_uri(confusion_matrix_figure(r["confusion"], r["classes"], title)),
                title,
                "",
                (),
                True,
            )
        )
    return pictures


def _curve_pictures(run: RunDir, summary: Mapping[str, Any]) -> list[Picture]:
    """None where no fold has figures of its training."""
    losses, scores = {}, dict[str, dict[int, Any]]()
    for r in summary["folds"]:
        lines = read_lines(run.fold(r["fold"]))
        per_epoch = steps_of_epoch(lines, r)
        if not per_epoch:
            continue
        losses[r["fold"]] = loss_curve(lines, per_epoch)
        for name in ("val_war", "val_uar", "test_war", "test_uar"):
            curve = score_curve(lines, name, per_epoch)
            if len(curve.epochs) > 1:  # the last line has the result itself
                scores.setdefault(name, {})[r["fold"]] = curve
    if not any(c.epochs for c in losses.values()):
        return []
    chosen = {r["fold"]: r["epoch"] for r in summary["folds"]}
    caption = (
        "Training loss, mean over an epoch (over a quarter of one where epochs are fewer than 20)."
    )
    return [
        _picture(
            curves_figure(losses, scores, chosen),
            "Curves of the training loss of each fold",
            summary,
            caption,
        )
    ]
