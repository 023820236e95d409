"""The pictures of a page: plots with captions, by the section they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from dfer_dist.reporting.class_scores import class_recalls
from dfer_dist.reporting.comparison.paired import Comparison, Paired, joint_classes
from dfer_dist.reporting.extra_tables import read_features
from dfer_dist.reporting.history import Curve, read_lines, training_curves
from dfer_dist.reporting.plots import compared
from dfer_dist.reporting.plots import features as feature_plots
from dfer_dist.reporting.plots.calibration import calibration_figure
from dfer_dist.reporting.plots.page import curves_figure, recall_figure
from dfer_dist.reporting.plots.scores import confusion_figure, data_uri, scores_figure
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Picture
from dfer_dist.reporting.wording import warnings

_PIXELS = 96  # of an inch, in CSS
_TSNE = (
    "t-SNE (van der Maaten & Hinton, JMLR 2008), a point for each clip: points next to "
    "each other have similar features; sizes of groups and distances between them mean little."
)
_CENTERED = (
    "Clips and class texts are drawn less the mean of their kind, since in CLIP the features of "
    "texts can be a group far from those of all clips (modality gap): a star among clips says that "
    "directions agree, not that features are close."
)
_BY_FOLD = (
    "All folds in one t-SNE. Each fold was embedded by a model of its own, so groups by fold say "
    "how far the models have moved apart in training, not that the clips of folds differ."
)
_LOSS = (
    "Training loss: mean over an epoch, or over a quarter of one where epochs are fewer than 20."
)


def run_pictures(loaded: LoadedRun) -> dict[str, list[Picture]]:
    """Return the pictures of a run; ``curves`` are none without metrics of its training."""
    summary, pooled = loaded.summary, loaded.summary.pooled
    count = f"{len(summary.folds)} of {len(loaded.all_folds)} folds pooled, {pooled.n} clips"
    recalls = recall_figure(class_recalls(summary))
    circles = "Bar and line: all folds with their 95 % interval."
    if len(summary.folds) > 1:
        circles += " Circles: single folds."
    matrix = confusion_figure(pooled.confusion, pooled.classes, count)
    lost = warnings(summary)
    pictures = {
        "scores": [_picture(scores_figure(summary), "Bars of UAR and WAR by fold", "", lost)],
        "recall": [_picture(recalls, "Bars of the recall of each class", circles, lost)],
        "confusion": [_picture(matrix, f"Confusion matrix, {count}", "", lost)],
        "curves": [],
    }
    if summary.calibration:
        figure = calibration_figure({k: fold.table.outputs for k, fold in loaded.folds.items()})
        alt = "Reliability diagram of all folds pooled, and risk-coverage curves"
        pictures["calibration"] = [_picture(figure, alt, "", lost)]
    if len(summary.folds) > 1:
        for r in summary.folds:
            title = f"Fold {r.fold}: UAR {r.uar:.2f} %, WAR {r.war:.2f} %"
            picture = _picture(confusion_figure(r.confusion, r.classes, title), title)
            pictures["confusion"].append(replace(picture, small=True))
    pictures["features"] = _feature_pictures(loaded)
    curves = _curves(loaded)
    if any(fold["loss"].x for fold in curves.values()):
        figure = curves_figure(curves, {r.fold: r.epoch for r in summary.folds})
        alt = "Curves of the training loss of each fold"
        pictures["curves"].append(_picture(figure, alt, _LOSS, lost))
    return pictures


def comparison_pictures(comparisons: Sequence[Comparison]) -> dict[str, list[Picture]]:
    """Return the pictures of a comparison; ``curves`` are none without metrics of training."""
    pictures: dict[str, list[Picture]] = {"differences": [], "classes": [], "curves": []}
    for c in comparisons:
        if c.paired:
            pictures["differences"].append(_differences(c, c.paired))
            pictures["classes"] += [_recalls(c, c.paired), _confusion_change(c, c.paired)]
    runs = [comparisons[0].first, *(c.second for c in comparisons)]
    curves = {run.name: list(_curves(run).values()) for run in runs}
    folds = [fold for several in curves.values() for fold in several]
    if any(fold["loss"].x for fold in folds):
        measured = {name for fold in folds for name in fold if name.endswith("war")}
        # Not val_war of one run and test_war of another.
        metric = measured.pop() if len(measured) == 1 else None
        figure = compared.curves_figure(curves, metric)
        caption = f"Thin: single folds. Wide: their mean. {_LOSS}"
        pictures["curves"].append(_picture(figure, "Curves of all runs", caption))
    return pictures


def _feature_pictures(loaded: LoadedRun) -> list[Picture]:
    """Return t-SNE of each fold by class, and of all folds by fold; none without features."""
    stored = read_features(loaded)
    folds = {k: f for k, f in stored.items() if len(f.keys) >= feature_plots.MIN_CLIPS}
    if not folds:
        return []
    lost = warnings(loaded.summary)
    caption = f"{_TSNE} Each fold has a plane of its own: its model is another one."
    if all(len(f.texts) for f in folds.values()):
        caption += f" {_CENTERED}"
    count = sum(len(f.keys) for f in folds.values())
    if count > feature_plots.MAX_CLIPS:
        caption += f" A plane has at most {feature_plots.MAX_CLIPS} clips, chosen at random."
    figure = feature_plots.class_figure(folds)
    pictures = [_picture(figure, "t-SNE of the features of clips, by class", caption, lost)]
    if len(folds) > 1:
        figure = feature_plots.fold_figure(folds)
        pictures.append(_picture(figure, "t-SNE of the features of clips, by fold", _BY_FOLD, lost))
    return pictures


def _picture(figure: Figure, alt: str, caption: str = "", lost: Sequence[str] = ()) -> Picture:
    return Picture(data_uri(figure), alt, caption, lost, round(figure.get_figwidth() * _PIXELS))


def _differences(c: Comparison, paired: Paired) -> Picture:
    rows = [(metric.upper(), d) for metric, d in paired.difference.items()]
    rows += [(f"{x.name} ({x.clips})", x.difference) for x in paired.classes]
    caption = (
        f"{c.second.name} minus {c.first.name}: mean over folds of UAR and WAR, then recall of "
        "each class, folds pooled."
    )
    figure = compared.differences_figure(rows, 2)
    return _picture(figure, "Differences with 95 % intervals", caption, c.warnings)


def _recalls(c: Comparison, paired: Paired) -> Picture:
    figure = compared.recalls_figure(c.first.name, c.second.name, paired.classes)
    return _picture(figure, "Recall of each class by both runs", "", c.warnings)


def _confusion_change(c: Comparison, paired: Paired) -> Picture:
    title = f"{c.second.name} minus {c.first.name}, {paired.clips} clips"
    support = {x.name: x.clips for x in paired.classes}
    classes = joint_classes(c.first.result.classes, c.second.result.classes)
    figure = compared.confusion_change_figure(paired.changes, classes, support, title)
    caption = (
        f"Difference of the confusion matrices. {c.second.name} is better where the diagonal has "
        "more clips and the rest fewer."
    )
    return _picture(figure, "Difference of the confusion matrices", caption, c.warnings)


def _curves(loaded: LoadedRun) -> dict[int, dict[str, Curve]]:
    """Return the curves of each fold that has metrics of its training."""
    found = {
        r.fold: training_curves(read_lines(loaded.run.fold(r.fold)), r)
        for r in loaded.summary.folds
    }
    return {fold: curves for fold, curves in found.items() if curves}
