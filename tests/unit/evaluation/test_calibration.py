"""Calibration against scikit-learn, definitions written out, and simulated models."""

from __future__ import annotations

import itertools
from dataclasses import asdict, astuple

import numpy as np
import pytest
from sklearn.metrics import log_loss

from dfer_dist.evaluation.calibration import (
    BINS,
    Outputs,
    fit_temperature,
    log_softmax,
    reliability,
    risk_coverage,
    score_calibration,
    summarize_calibration,
)

CLASSES = 7


def draw(clips: int, rng: np.random.Generator, temperature: float = 1.0) -> Outputs:
    """Clips of a model whose logits are those of the truth, divided by a temperature."""
    logits = 2 * rng.normal(size=(clips, CLASSES))
    below = np.exp(log_softmax(logits)).cumsum(1) < rng.random((clips, 1))
    return Outputs.of(np.minimum(below.sum(1), CLASSES - 1), logits / temperature)


def reference_ece(outputs: Outputs, edges: np.ndarray) -> float:
    """The sum over bins (low, high] as Guo et al. write it."""
    probabilities = np.exp(log_softmax(outputs.logits))
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            accuracy = (predicted == outputs.labels)[inside].mean()
            total += inside.sum() * abs(accuracy - confidence[inside].mean())
    return float(total / len(confidence))


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_definitions(seed: int) -> None:
    outputs = draw(353, np.random.default_rng(seed), 0.7)
    scores, probabilities = score_calibration(outputs), np.exp(log_softmax(outputs.logits))
    assert scores.nll == pytest.approx(
        log_loss(outputs.labels, probabilities, labels=range(CLASSES)), rel=1e-9
    )
    truth = np.eye(CLASSES)[outputs.labels]
    assert scores.brier == pytest.approx(((probabilities - truth) ** 2).sum(1).mean(), rel=1e-9)
    assert scores.ece == pytest.approx(
        reference_ece(outputs, np.linspace(0, 1, BINS + 1)), rel=1e-9
    )
    confidence = np.sort(probabilities.max(1))
    ends = np.arange(1, BINS) * len(confidence) / BINS
    edges = [0, *confidence[np.ceil(ends).astype(int) - 1], 1]
    assert scores.ece_equal_mass == pytest.approx(reference_ece(outputs, np.array(edges)), rel=1e-9)


def test_selective_scores_of_a_case_by_hand() -> None:
    """Ten clips by falling confidence, of which the fourth and the last two are wrong."""
    wrong = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1, 1])
    logits = np.stack([np.linspace(5, 1, 10), np.zeros(10)], axis=1)
    shuffled = np.random.default_rng(0).permutation(10)
    outputs = Outputs.of(wrong[shuffled], logits[shuffled])
    risks = [0, 0, 0, 1 / 4, 1 / 5, 1 / 6, 1 / 7, 1 / 8, 2 / 9, 3 / 10]
    assert risk_coverage(outputs) == pytest.approx(risks)
    scores = score_calibration(outputs)
    assert scores.risk_coverage_area == pytest.approx(np.mean(risks))
    assert (scores.accuracy_80, scores.accuracy_90) == pytest.approx((7 / 8, 7 / 9))


def test_bins_of_equal_mass_hold_as_many_clips() -> None:
    outputs = draw(152, np.random.default_rng(0))
    assert {b.clips for b in reliability(outputs, equal_mass=True)} == {10, 11}
    assert sum(b.clips for b in reliability(outputs)) == 152


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_of_a_model_is_found(temperature: float) -> None:
    outputs = draw(20_000, np.random.default_rng(1), 1 / temperature)
    found = fit_temperature(outputs)
    assert found == pytest.approx(temperature, rel=0.05)
    least = outputs.scaled(found).nll.mean()
    assert all(least < outputs.scaled(found * factor).nll.mean() for factor in (0.99, 1.01))


@pytest.mark.parametrize("temperature", [1.0, 1 / 1.3])
def test_intervals_hold_the_truth(temperature: float) -> None:
    """At least 90 of 100 tables: with that coverage, 82 or fewer have a chance below 0.01."""
    rng = np.random.default_rng(2)
    truth = asdict(score_calibration(draw(400_000, rng, temperature)))
    for name in ("ece", "ece_equal_mass"):
        del truth[name]
    # the estimate of a calibrated model may be negative
    truth["squared_error"] = max(truth["squared_error"], 0)
    covered, trials = np.zeros(len(truth)), 100
    for _ in range(trials):
        found = summarize_calibration([draw(300, rng, temperature)], resamples=200)
        covered += [found.low[n] <= t <= found.high[n] for n, t in truth.items()]  # type: ignore
    shares = dict(zip(truth, covered / trials, strict=True))
    assert not [n for n, share in shares.items() if share <= 0.82]


def test_interval_of_folds_is_around_their_mean() -> None:
    rng = np.random.default_rng(3)
    tables = [draw(400, rng, 0.5) for _ in range(3)]
    found = summarize_calibration(tables, resamples=300)
    means = np.mean([astuple(score_calibration(table)) for table in tables], axis=0)
    assert astuple(found.mean) == pytest.approx(means.tolist())
    for name, mean in asdict(found.mean).items():
        low, high = found.low[name], found.high[name]
        if name.startswith("ece"):
            assert low is high is None
        else:
            assert low is not None and high is not None and low < mean < high, name
    alone = summarize_calibration(tables[:1], resamples=300)
    width, alone_width = (x.high["nll"] - x.low["nll"] for x in (found, alone))  # type: ignore
    assert width < alone_width


def test_tables_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Outputs.of([0], [[np.nan, 0]])
    with pytest.raises(ValueError, match="outside"):
        Outputs.of([2], [[1.0, 0]])
