"""Predictions against the votes of annotators, where a label keeps only the most voted class.

The divergence of a clip is KL(p || q) = sum over classes of p log(p / q) in nats, with p the shares
of the votes and q the softmax of the logits, neither of them smoothed; a class without a vote adds
nothing. It is never negative, and zero only where q equals p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfer_dist.evaluation.significance import Difference, Floats
from dfer_dist.runs.records import VoteScores


def kl_divergence(votes: ArrayLike, logits: ArrayLike) -> Floats:
    """Return KL(votes || model) of each clip, float64 [N], nats.

    Parameters
    ----------
    votes : float [N, C]
        Of annotators for each class, some for each clip.
    logits : float [N, C]
    """
    counts, values = (np.array(x, dtype=np.float64) for x in (votes, logits))
    shares = counts / counts.sum(1, keepdims=True)
    values -= values.max(1, keepdims=True)
    log_model = values - np.log(np.exp(values).sum(1, keepdims=True))
    log_shares = np.log(np.where(shares > 0, shares, 1.0))
    return np.asarray((shares * (log_shares - log_model)).sum(1), dtype=np.float64)


def any_annotator(votes: ArrayLike, predicted: ArrayLike) -> Floats:
    """Return 100 for each clip whose predicted class has a vote, 0 for the others, float64 [N]."""
    chosen = np.take_along_axis(np.asarray(votes), np.asarray(predicted)[:, None], axis=1)[:, 0]
    return np.asarray(100.0 * (chosen > 0), dtype=np.float64)


def score_votes(votes: NDArray[np.float32], logits: NDArray[np.float32]) -> VoteScores | None:
    """Return the means over the clips that have votes; None if no clip has.

    Parameters
    ----------
    votes, logits : float32 [N, C]
    """
    known = votes.any(1)
    if not known.any():
        return None
    votes, logits = votes[known], logits[known]
    return VoteScores(
        n=len(votes),
        kl=float(kl_divergence(votes, logits).mean()),
        any_annotator=float(any_annotator(votes, logits.argmax(1)).mean()),
    )


def mean_over_folds(
    values: Sequence[ArrayLike], labels: Sequence[ArrayLike], resamples: int = 2000, seed: int = 0
) -> list[Difference]:
    """Return means over folds of the folds' mean values, with 95 % bootstrap intervals.

    Clips are drawn within fold and class. A class's deviations are multiplied by sqrt(n / (n - 1)),
    as in :func:`dfer_dist.evaluation.significance.differences`. Values that are differences between
    two models on the same clips give the intervals of a paired comparison.

    Parameters
    ----------
    values : sequence of float [M, N]
        M values of each clip of a fold.
    labels : sequence of int [N]
        The clips' classes.

    Returns
    -------
    list of M Difference
    """
    rng = np.random.default_rng(seed)
    means, deviations = [], []
    for own, classes in zip(values, labels, strict=True):
        order = np.argsort(classes, kind="stable")
        ordered = np.asarray(own, dtype=np.float64)[:, order]
        _, first, stratum, sizes = np.unique(
            np.asarray(classes)[order], return_index=True, return_inverse=True, return_counts=True
        )
        centre = (np.add.reduceat(ordered, first, axis=1) / sizes)[:, stratum]
        scaled = (ordered - centre) * np.sqrt(sizes / np.maximum(sizes - 1, 1))[stratum]
        starts, spans = first[stratum], sizes[stratum]
        samples = [starts + (rng.random(len(order)) * spans).astype(int) for _ in range(resamples)]
        deviations.append([scaled[:, drawn].mean(1) for drawn in samples])
        means.append(ordered.mean(1))
    low, high = np.percentile(np.mean(deviations, axis=0), [2.5, 97.5], axis=0)
    mean = np.mean(means, axis=0)
    return [Difference(*map(float, x)) for x in zip(mean, mean + low, mean + high, strict=True)]
