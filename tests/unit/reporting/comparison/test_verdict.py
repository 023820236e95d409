"""The sentences that a report begins with: never more than intervals and tests carry."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_dist.evaluation.metrics import score
from dfer_dist.evaluation.significance import Difference, McNemar, TTest
from dfer_dist.reporting.class_scores import top_confusions
from dfer_dist.reporting.comparison.paired import (
    ClassChange,
    Comparison,
    FoldScores,
    Paired,
    compare,
)
from dfer_dist.reporting.comparison.verdict import (
    Outcome,
    comparison_verdict,
    comparisons_verdict,
    outcome,
    run_verdict,
)
from dfer_dist.reporting.results import LoadedRun, ScoredPredictions, load_run
from tests.helpers.made_runs import CLASSES, make_run

NAN = math.nan
NONE = Difference(1.67, -2.3, 5.98)
HIGHER = Difference(6.0, 2.0, 10.0)
LOWER = Difference(-6.0, -10.0, -2.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, LoadedRun]:
    """Runs ``full`` and ``lora`` of three folds, half an hour each on four ranks."""
    root = tmp_path_factory.mktemp("runs")
    full, lora = (load_run(make_run(root / name)) for name in ("full", "lora"))
    return full, lora


def changed(name: str, difference: Difference, p: float) -> ClassChange:
    return ClassChange(name, 20, 1, 2, 50.0, 50.0 + difference.value, difference, p)


def made(
    runs: tuple[LoadedRun, LoadedRun],
    uar: Difference = NONE,
    p: float | None = 0.61,
    war: Difference | None = None,
    war_p: float | None = None,
    folds: int = 5,
    clips: int = 28,
    warnings: tuple[str, ...] = (),
    classes: tuple[ClassChange, ...] = (changed("fear", NONE, 0.5),),
) -> Comparison:
    """Return a comparison with these numbers; those of WAR are those of UAR if not given."""
    t_test = {}
    for metric, value in (("uar", p), ("war", p if war_p is None else war_p)):
        t_test[metric] = TTest(0.0, None, value, folds - 1) if folds > 1 else None
    paired = Paired(
        folds=[FoldScores(k, clips, [50.0, 50.0], [50.0, 50.0]) for k in range(1, folds + 1)],
        n_test=clips,
        n_train=4 * clips,
        difference={"uar": uar, "war": war or uar},
        t_test=t_test,
        mcnemar=McNemar(30, 10, 0.001),
        classes=list(classes),
        changes=[],
    )
    return Comparison(*runs, list(warnings), paired)


def sentence(runs: tuple[LoadedRun, LoadedRun], **numbers: Any) -> str:
    (text,) = comparison_verdict(made(runs, **numbers)).sentences
    return text


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [
        (NONE, 0.61, Outcome.not_shown),
        (HIGHER, 0.01, Outcome.higher),
        (LOWER, 0.01, Outcome.lower),
        (HIGHER, 0.05, Outcome.undecided),
        (NONE, 0.049, Outcome.undecided),
        (HIGHER, None, Outcome.undecided),
        (HIGHER, NAN, Outcome.undecided),
        (NONE, None, Outcome.not_shown),
        (NONE, NAN, Outcome.not_shown),
        (Difference(NAN, NAN, NAN), 0.01, Outcome.undecided),
        (Difference(6.0, 2.0, NAN), 0.01, Outcome.undecided),
        (Difference(0.0, 0.0, 0.0), 1.0, Outcome.not_shown),
        (Difference(6.0, 0.0, 12.0), 0.01, Outcome.undecided),
    ],
)
def test_outcome_needs_interval_and_test(
    difference: Difference, p: float | None, expected: Outcome
) -> None:
    assert outcome(difference, p) is expected


def test_comparison_sentence_says_no_more_than_interval_and_test(
    runs: tuple[LoadedRun, LoadedRun],
) -> None:
    assert sentence(runs) == (
        "lora minus full: UAR +1.67 points (95 % −2.30 to +5.98, p = 0.610): "
        "no difference shown on 140 clips."
    )
    assert sentence(runs, uar=HIGHER, p=0.01).endswith("p = 0.010): lora is better on 140 clips.")
    assert sentence(runs, uar=LOWER, p=1e-9).endswith("p < 0.0001): lora is worse on 140 clips.")
    for numbers, reason in (
        ({"uar": HIGHER, "p": 0.2}, "the interval excludes zero, but p is not below 0.05"),
        ({"p": 0.01}, "p is below 0.05, but the interval includes zero"),
        ({"uar": HIGHER, "p": None}, "the interval excludes zero, but there is no test"),
        ({"uar": HIGHER, "p": NAN}, "the interval excludes zero, but there is no test"),
        ({"uar": Difference(NAN, NAN, NAN)}, "the difference is not defined"),
    ):
        assert f": not decided ({reason}) on 140 clips." in sentence(runs, **numbers)
    apart = sentence(runs, war=LOWER, war_p=0.01)
    assert apart.endswith(
        "no difference shown on 140 clips; "
        "WAR −6.00 points (95 % −10.00 to −2.00, p = 0.010): lora is worse."
    )


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ({"warnings": ("Their seeds differ.",)}, "Their seeds differ."),
        ({"folds": 2}, "Only folds 1, 2 tested"),
        ({"clips": 8}, "40 clips are few."),
    ],
)
def test_limits_weaken_the_sentence(
    runs: tuple[LoadedRun, LoadedRun], limit: dict[str, Any], named: str
) -> None:
    text = sentence(runs, uar=HIGHER, p=0.01, **limit)
    assert "is better" not in text
    assert "lora scored higher" in text
    assert f"Limits: {named}" in text
    assert "lora scored lower" in sentence(runs, uar=LOWER, p=0.01, **limit)


def test_one_fold_decides_nothing_of_uar(runs: tuple[LoadedRun, LoadedRun]) -> None:
    text = sentence(runs, uar=HIGHER, folds=1, clips=900)
    assert "UAR +6.00 points (95 % +2.00 to +10.00, no test): not decided" in text
    # McNemar's test is of the clips that are right
    assert "p = 0.0010): lora scored higher. Limits: Only fold 1 tested" in text


def test_other_ranks_and_seeds_are_limits(
    runs: tuple[LoadedRun, LoadedRun], tmp_path: Path
) -> None:
    c = made(runs)
    folds = {k: replace(f, cost=replace(f.cost, ranks=(1,))) for k, f in c.second.folds.items()}
    c = replace(c, second=replace(c.second, folds=folds))
    unknown = {k: replace(f, cost=replace(f.cost, hours=None)) for k, f in folds.items()}
    unpaired = replace(c, first=replace(c.first, folds=unknown), paired=None)
    assert comparison_verdict(unpaired).cards[0].value == "not recorded / 1.5 h"
    verdict = comparison_verdict(c)
    (text,) = verdict.sentences
    assert verdict.cards[3].more == (
        "full: 3 folds on 4 ranks (unknown device); lora: 3 folds on 1 rank (unknown device)"
    )
    assert "trained on 4 ranks (unknown device) and on 1 rank (unknown device)." in text
    other = make_run(tmp_path / "other", (1,), 1)
    other.config.write_text(other.config.read_text().replace("seed: 0", "seed: 7"))
    pair = load_run(make_run(tmp_path / "run", (1,), 1)), load_run(other)
    assert compare(*pair).warnings == ["They were trained with different seeds (0, 7)."]


def test_unpaired_runs_show_nothing(runs: tuple[LoadedRun, LoadedRun]) -> None:
    verdict = comparison_verdict(Comparison(*runs, ["Their classes differ."], None))
    (text,) = verdict.sentences
    assert text.startswith("lora against full: nothing is shown")
    assert text.endswith("not of the same clips. Limits: Their classes differ.")
    assert [card.name for card in verdict.cards] == ["Time, full / lora"]


def test_cards_name_only_classes_that_changed_for_certain(
    runs: tuple[LoadedRun, LoadedRun],
) -> None:
    fear, anger = changed("fear", LOWER, 0.04), changed("anger", replace(LOWER, value=-9.0), 0.01)
    unsure = changed("sad", replace(LOWER, value=-20.0), 0.06)
    cards = comparison_verdict(made(runs, classes=(fear, anger, unsure))).cards
    assert [card.name for card in cards] == [
        "UAR, points",
        "WAR, points",
        "Class that changed most",
        "Time, full / lora",
    ]
    assert (cards[0].value, cards[0].more) == ("+1.67", "95 %: −2.30 to +5.98; p = 0.610")
    assert cards[2].value == "anger −9.00"
    assert cards[2].more == "95 %: −10.00 to −2.00; p = 0.010 (Holm); also fear −6.00"
    assert cards[3].value == "1.5 / 1.5 h"
    assert cards[3].more == "each: all 3 folds on 4 ranks (unknown device)"
    card = comparison_verdict(made(runs, classes=(changed("joy", NONE, 0.6), unsure))).cards[2]
    assert card.value == "none"
    assert card.more == "no class changed for certain; most: sad −20.00 (−10.00 to −2.00)"
    still = changed("joy", Difference(0.0, 0.0, 0.0), 1.0)
    card = comparison_verdict(made(runs, classes=(still,))).cards[2]
    assert card.more == "no class changed for certain"


def test_several_comparisons_have_a_sentence_each(runs: tuple[LoadedRun, LoadedRun]) -> None:
    verdict = comparisons_verdict([made(runs), made(runs)])
    assert len(verdict.sentences) == 3
    assert "not corrected for the number of comparisons (2)" in verdict.sentences[-1]
    assert not verdict.cards


def predictions(loaded: LoadedRun, predicted: Any, labels: Any = None) -> LoadedRun:
    """Return the run with other predictions, a function of the labels, in every fold."""
    folds = {}
    for k, fold in loaded.folds.items():
        table = fold.table
        truth = table.labels if labels is None else labels(table.labels)
        said = np.asarray(predicted(truth))
        scores = score(truth, said, CLASSES)
        result = replace(fold.result, **vars(scores))
        values = ScoredPredictions(table.keys, truth, table.logits, said, scores)
        folds[k] = replace(fold, table=values, result=result)
    return replace(loaded, folds=folds)


def test_run_verdict_matches_predictions(runs: tuple[LoadedRun, LoadedRun]) -> None:
    loaded, _ = runs
    s = loaded.summary
    first, majority, *_, confusions = run_verdict(loaded).sentences
    low, high = s.uar.ci95
    assert first.startswith(f"UAR {s.uar.mean:.2f} % (95 % {low:.2f} to {high:.2f}), WAR ")
    assert first.endswith("mean over 3 folds, 600 clips.")
    assert majority == f"WAR is above always answering neutral ({s.majority.war:.2f} %)."
    matrix = np.array(s.pooled.confusion)
    np.fill_diagonal(matrix, 0)
    truth, predicted = np.unravel_index(matrix.argmax(), matrix.shape)
    count, support = matrix.max(), s.pooled.support[CLASSES[truth]]
    expected = f"{CLASSES[truth]} → {CLASSES[predicted]} ({count} of {support} clips)"
    assert confusions.startswith(f"Most frequent confusions: {expected}")


def test_run_verdict_of_all_right_and_all_wrong(
    runs: tuple[LoadedRun, LoadedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run_verdict(predictions(runs[0], lambda y: y)).sentences
    assert "WAR is above always answering neutral" in right[1]
    assert right[2:] == ["No clip was misclassified."]
    wrong = run_verdict(predictions(runs[0], lambda y: (y + 1) % 7)).sentences
    assert "WAR is below always answering neutral" in wrong[1]
    assert wrong[2].count("(0 of ") == 7
    monkeypatch.setattr("dfer_dist.reporting.comparison.verdict._MAX_CLASSES", 5)
    few = run_verdict(predictions(runs[0], lambda y: (y + 1) % 7)).sentences[2]
    assert few.count("(0 of ") == 5 and few.endswith(" and 2 more.")
    # not a word of more than three cells, the largest first
    assert wrong[3].startswith("Most frequent confusions: neutral → anger")
    assert wrong[3].count("→") == 3


def test_majority_answers_are_not_above_the_majority(runs: tuple[LoadedRun, LoadedRun]) -> None:
    sentences = run_verdict(predictions(runs[0], lambda y: np.full_like(y, 2))).sentences
    assert sentences[1].startswith("WAR is not shown to differ from always answering neutral")
    assert sentences[2].startswith("Never recognised: happiness (0 of ")
    # three clips of one class, all right: the interval is a point, and a test finds nothing
    loaded = predictions(runs[0], lambda y: y, labels=lambda y: np.zeros_like(y))
    assert "not shown to differ from always answering happiness" in run_verdict(loaded).sentences[1]


def test_absent_class_is_not_called_never_recognised(tmp_path: Path) -> None:
    loaded = load_run(make_run(tmp_path / "run", (1,), 1, without=5, sure=3.0))
    assert not [s for s in run_verdict(loaded).sentences if "disgust" in s]


def test_equal_confusions_are_in_the_order_of_the_classes() -> None:
    scores = score([0, 0, 1, 1, 2], [1, 2, 0, 1, 2], ["a", "b", "c"])
    assert [(x.truth, x.predicted, x.count, x.support) for x in top_confusions(scores, 2)] == [
        ("a", "b", 1, 2),
        ("a", "c", 1, 2),
    ]
    assert top_confusions(score([0, 1], [0, 1], ["a", "b"]), 2) == []


def test_shuffled_frames_cost_only_what_the_test_carries(tmp_path: Path) -> None:
    loaded = load_run(make_run(tmp_path / "run", shuffled=True))
    text = run_verdict(loaded).sentences[-1]
    assert text.startswith("Shuffling the frames changes UAR by −")
    assert text.endswith(": the scores depend on their order.")
    same = {k: replace(f, shuffled=f.table) for k, f in loaded.folds.items()}
    text = run_verdict(replace(loaded, folds=same)).sentences[-1]
    assert text.startswith("Shuffling the frames changes UAR by +0.00 points")
    assert text.endswith(": that the scores depend on their order is not shown.")
    better = {k: replace(f, table=f.shuffled, shuffled=f.table) for k, f in loaded.folds.items()}
    text = run_verdict(replace(loaded, folds=better)).sentences[-1]
    assert text.endswith(": the scores are better without their order.")


def test_run_verdict_names_missing_folds_lost_clips_and_optimistic_epochs(tmp_path: Path) -> None:
    how = {"selection": "best_test", "left_out": ["Sad/1"]}
    run = make_run(tmp_path / "run", (1, 3), **how)
    assert run_verdict(load_run(run)).sentences[1:4] == [
        "Missing: fold 2. The scores are of the others only.",
        "2 of 402 test clips left out when the data was packed.",
        "The epoch was chosen on the test fold: the scores are optimistic.",
    ]
