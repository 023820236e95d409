"""Scores of clips with several labels, and of rankings by probability.

A clip of the compound class ``anger+disgust`` has the labels ``anger`` and ``disgust``. A model
with sigmoid outputs has a logit z for each single class. If classes are independent, the
probability of exactly the labels S is the product of p over S and of 1 - p over all others. Its
logarithm is the sum of z over S, plus a term that all sets share. So the sum of the logits of its
components is the logit of a compound class among all classes, and the same UAR, WAR and confusion
are computed as for a model with softmax outputs over all classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfer_dist.config.schema import Output
from dfer_dist.data.sources.compound import membership
from dfer_dist.evaluation.metrics import Floats, f1_of_classes, score, top_class
from dfer_dist.runs.records import MultiLabelScores, Scores
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from dfer_dist.data.loading.sampler import SampleRef
    from dfer_dist.data.shards.index import Index

Flags = NDArray[np.bool_]
THRESHOLD = 0.5


def expand_logits(logits: NDArray[np.float32], classes: Sequence[str]) -> NDArray[np.float32]:
    """Return logits of all classes from those of single classes.

    Parameters
    ----------
    logits : float32 [N, S] or [N, C]
        Those of all classes are returned as they are.
    classes : sequence of C str
        S of which are single.

    Returns
    -------
    float32 [N, C]
        That of a compound class is the sum over its components.
    """
    if logits.shape[1] == len(classes):
        return logits
    return logits @ membership(classes).T.astype(logits.dtype)


def check_labels(index: Index, output: Output) -> None:
    """Check that all labels of a clip are known from its class, where they are trained on.

    Raises
    ------
    UserError
        For sigmoid outputs and a set that stores labels without having compound classes.
    """
    is_compound = len(set(map(len, map(np.flatnonzero, membership(index.classes))))) > 1
    if output is Output.sigmoid and "labels" in index.extras and not is_compound:
        raise UserError(
            f"model.output=sigmoid: clips of {index.name} have several labels, which are trained "
            "on only as compound classes: pack them as classes such as anger+disgust"
        )


def label_sets(index: Index, clips: Iterable[SampleRef]) -> list[tuple[int, ...]]:
    """Return all labels of each clip, ascending, as positions in ``index.classes``.

    They are those that are stored, or the components of its class.
    """
    parts = [tuple(np.flatnonzero(row).tolist()) for row in membership(index.classes)]
    singles = [own[0] for own in parts if len(own) == 1]

    @cache
    def of_shard(shard: int) -> list[tuple[int, ...]]:
        table = index.sidecar(shard)
        if "labels" in index.extras:
            return list(map(tuple, table["labels"].to_pylist()))
        return [tuple(singles[i] for i in parts[label]) for label in table["label"].to_pylist()]

    return [of_shard(clip.shard)[clip.row] for clip in clips]


def indicator(sets: Iterable[Sequence[int]], classes: Sequence[str]) -> Flags:
    """Return which single classes the labels of each clip are, bool [N, S].

    Raises
    ------
    ValueError
        For a clip without a label, or a label that is no class.
    """
    members, rows = membership(classes), []
    for labels in sets:
        if not labels or min(labels) < 0 or max(labels) >= len(classes):
            raise ValueError(f"labels {list(labels)} of a clip: one or more of {len(classes)}")
        rows.append(members[list(labels)].any(axis=0))
    return np.array(rows)


def label_probabilities(logits: ArrayLike, classes: Sequence[str], sigmoid: bool) -> Floats:
    """Return the probability of each single class.

    Parameters
    ----------
    logits : float [N, C]
    classes : sequence of C str
    sigmoid : bool
        Whether classes are independent. Otherwise the probability of a single class is the sum over
        the classes that have it as a component.

    Returns
    -------
    float64 [N, S]
    """
    from scipy.special import expit, softmax

    values, members = np.asarray(logits, dtype=np.float64), membership(classes)
    if sigmoid:
        return np.asarray(expit(values[:, members.sum(axis=1) == 1]))
    return np.asarray(softmax(values, axis=1) @ members)


def choose_labels(probabilities: ArrayLike) -> Flags:
    """Return the classes of at least :data:`THRESHOLD`, or the top one of a clip without any.

    Parameters
    ----------
    probabilities : float [N, S]
        Of independent classes.

    Returns
    -------
    bool [N, S]
    """
    p = np.asarray(probabilities)
    chosen: Flags = p >= THRESHOLD
    (none,) = np.nonzero(~chosen.any(axis=1))
    chosen[none, p[none].argmax(axis=1)] = True
    return chosen


def ranking_scores(truth: Flags, probabilities: Floats) -> tuple[float, float | None]:
    """Return mAP and AUC in percent, each class against the rest.

    mAP is the mean average precision over the classes that occur, AUC the mean area under the ROC
    curve over those that not every clip has. It is None if there is none.

    Parameters
    ----------
    truth : bool [N, S]
    probabilities : float64 [N, S]
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    pairs = [(t, p) for t, p in zip(truth.T, probabilities.T, strict=True) if t.any()]
    precision = [average_precision_score(t, p) for t, p in pairs]
    area = [roc_auc_score(t, p) for t, p in pairs if not t.all()]
    return 100.0 * float(np.mean(precision)), 100.0 * float(np.mean(area)) if area else None


def multilabel_scores(
    truth: Flags, logits: ArrayLike, classes: Sequence[str], sigmoid: bool
) -> MultiLabelScores:
    """Return the scores of sets of labels.

    Parameters
    ----------
    truth : bool [N, S]
        The labels of each clip among the single classes.
    logits : float [N, C]
    classes : sequence of C str
    sigmoid : bool
        Whether labels are those of :func:`choose_labels`, else the components of the top class.
    """
    probabilities, members = label_probabilities(logits, classes, sigmoid), membership(classes)
    predicted = choose_labels(probabilities) if sigmoid else members[top_class(logits)]
    support = truth.sum(axis=0)
    f1 = f1_of_classes((truth & predicted).sum(axis=0), predicted.sum(axis=0), support)
    mean_ap, auc = ranking_scores(truth, probabilities)
    return MultiLabelScores(
        exact_match=100.0 * float((truth == predicted).all(axis=1).mean()),
        mean_ap=mean_ap,
        auc=auc,
        macro_f1=100.0 * float(f1[support > 0].mean()),
        weighted_f1=100.0 * float(np.average(f1, weights=support)),
    )


def score_table(
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    sets: Iterable[Sequence[int]] | None = None,
) -> Scores:
    """Return :func:`~dfer_dist.evaluation.metrics.score`, and the scores of sets of labels.

    Those are left out for softmax outputs without compound classes.

    Parameters
    ----------
    labels : int [N]
    logits : float [N, C]
    classes : sequence of C str
    sets : N sequences of int, optional
        All labels of each clip, for sigmoid outputs.
    """
    from scipy.special import softmax

    scores, members = score(labels, logits, classes), membership(classes)
    is_compound, truth = members.shape[1] < len(classes), members[np.asarray(labels)]
    if sets is None and not is_compound:
        return scores
    if sets is not None:
        truth = indicator(sets, classes)
    multilabel = multilabel_scores(truth, logits, classes, sigmoid=sets is not None)
    if not is_compound:
        return replace(scores, multilabel=multilabel)
    one_hot = np.eye(len(classes), dtype=bool)[np.asarray(labels)]
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    mean_ap, auc = ranking_scores(one_hot, probabilities)
    return replace(scores, mean_ap=mean_ap, auc=auc, multilabel=multilabel)
