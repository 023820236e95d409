"""What the numbers of a run or of a comparison say, in sentences.

A difference counts only if its interval excludes zero and the paired test finds it too. If they
disagree, nothing is decided; whatever makes a comparison less than fair weakens its sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from dfer_dist.evaluation.metrics import left_out_text
from dfer_dist.evaluation.significance import Difference
from dfer_dist.reporting.class_scores import class_recalls, top_confusions
from dfer_dist.reporting.comparison.paired import ClassChange, Comparison, Paired, compare
from dfer_dist.reporting.history import total_time
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.wording import (
    NOT_RECORDED,
    folds_text,
    interval_text,
    join,
    mean_text,
    p_equals,
    signed,
    validation_text,
)
from dfer_dist.runs.records import Scores
from dfer_dist.runs.summary import Summary
from dfer_dist.utils.errors import first_of

ALPHA = 0.05
# Smaller sets were not simulated (docs/reference/report-formulas.md).
MIN_CLIPS = 60
MIN_FOLDS = 3
_MAX_CLASSES = 7  # in a sentence: MAFW has 43 with compound ones
MAX_CONFUSIONS = 3  # in the sentence on a run


class Outcome(Enum):
    """What interval and test together say of a difference."""

    higher = "higher"
    lower = "lower"
    not_shown = "not shown"
    undecided = "undecided"


@dataclass(frozen=True)
class Card:
    """A number with its name and an explanation; ``kind`` names its color on the page."""

    name: str
    value: str
    more: str
    kind: str = ""


@dataclass(frozen=True)
class Verdict:
    """Sentences that can be quoted alone, the most important one first; and cards."""

    sentences: list[str]
    cards: list[Card]


def outcome(difference: Difference, p: float | None) -> Outcome:
    """Return what a 95 % interval and the p-value of a test say of a difference.

    Parameters
    ----------
    difference : Difference
    p : float or None
        None, or NaN, if there is no test: then a difference is at most undecided.
    """
    if not all(map(math.isfinite, (difference.value, difference.low, difference.high))):
        return Outcome.undecided
    rejected = p is not None and p < ALPHA
    if difference.certain != rejected:
        return Outcome.undecided
    if not difference.certain:
        return Outcome.not_shown
    return Outcome.higher if difference.value > 0 else Outcome.lower


def metric_p(paired: Paired, metric: str) -> float | None:
    """Return the p-value that belongs to the difference of ``uar`` or ``war``.

    It is that of the corrected t-test over folds. With a single fold WAR has McNemar's test, and
    UAR has none.
    """
    if len(paired.folds) == 1:
        return paired.mcnemar.p if metric == "war" else None
    test = paired.t_test[metric]
    return test.p if test else None


def comparison_verdict(c: Comparison) -> Verdict:
    """Return one sentence on ``c.second`` against ``c.first``, and cards of what it rests on."""
    limits = _limits(c)
    suffix = f" Limits: {' '.join(limits)}" * bool(limits)
    cost = _cost_card(c)
    if c.paired is None:
        scores = " and ".join(f"{mean_text(x.summary.uar)} ({x.name})" for x in (c.first, c.second))
        sentence = f"{c.title}: nothing is shown; their UAR, {scores}, are not of the same clips."
        return Verdict([sentence + suffix], [cost])
    uar, war = (_metric_text(c.paired, m) for m in ("uar", "war"))
    found, other = (_outcome_text(c, c.paired, m, bool(limits)) for m in ("uar", "war"))
    clips = f"on {c.paired.clips} clips"
    text = f"{c.second.name} minus {c.first.name}: UAR {uar}: {found} {clips}"
    if other != found:
        text += f"; WAR {war}: {other}"
    cards = [_metric_card(c.paired, m) for m in ("uar", "war")]
    return Verdict([f"{text}.{suffix}"], [*cards, _class_card(c.paired.classes), cost])


def comparisons_verdict(comparisons: Sequence[Comparison]) -> Verdict:
    """Return the sentences on all comparisons with the first run; cards if it is only one."""
    verdicts = [comparison_verdict(c) for c in comparisons]
    if len(verdicts) == 1:
        return verdicts[0]
    sentences = [s for v in verdicts for s in v.sentences]
    note = f"The p-values are not corrected for the number of comparisons ({len(comparisons)})."
    return Verdict([*sentences, note], [])


def _limits(c: Comparison) -> list[str]:
    """Return sentences on everything that weakens the comparison."""
    texts = (validation_text(x.summary) for x in (c.first, c.second))
    limits, paired = [*dict.fromkeys(filter(None, texts)), *c.warnings], c.paired
    ranks = [_ranks_text(c.first), _ranks_text(c.second)]
    if ranks[0] != ranks[1] and NOT_RECORDED not in ranks:
        limits.append(f"They were trained on {ranks[0]} and on {ranks[1]}.")
    if paired and len(paired.folds) < MIN_FOLDS and not paired.is_pooled:
        folds = folds_text([f.fold for f in paired.folds])
        limits.append(f"Only {folds} tested: little is known of another choice of training clips.")
    if paired and paired.clips < MIN_CLIPS:
        limits.append(f"{paired.clips} clips are few.")
    return limits


def _metric_text(paired: Paired, metric: str) -> str:
    d, p = paired.difference[metric], metric_p(paired, metric)
    return f"{signed(d.value)} points (95 % {signed(d.low)} to {signed(d.high)}, {p_equals(p)})"


def _outcome_text(c: Comparison, paired: Paired, metric: str, limited: bool) -> str:
    difference, p = paired.difference[metric], metric_p(paired, metric)
    found, name = outcome(difference, p), c.second.name
    if found is Outcome.not_shown:
        return "no difference shown"
    if found is Outcome.undecided:
        return f"not decided ({_disagreement(difference, p)})"
    if limited:
        return f"{name} scored {found.value}"
    if found is Outcome.higher:
        return f"{name} is better"
    return f"{name} is worse"


def _disagreement(d: Difference, p: float | None) -> str:
    """Return why interval and test together decide nothing."""
    if not math.isfinite(d.value + d.low + d.high):
        return "the difference is not defined"
    if p is None or math.isnan(p):
        return "the interval excludes zero, but there is no test"
    if d.certain:
        return "the interval excludes zero, but p is not below 0.05"
    return "p is below 0.05, but the interval includes zero"


def _metric_card(paired: Paired, metric: str) -> Card:
    d, p = paired.difference[metric], metric_p(paired, metric)
    more = f"95 %: {signed(d.low)} to {signed(d.high)}; {p_equals(p)}"
    return Card(f"{metric.upper()}, points", signed(d.value), more, metric)


def changed_classes(classes: Sequence[ClassChange]) -> list[ClassChange]:
    """Return the classes that changed for certain, the largest change first.

    Their interval excludes zero, and McNemar's test with Holm's correction for all classes agrees.
    """
    changed = [x for x in classes if outcome(x.difference, x.p).value in ("higher", "lower")]
    return sorted(changed, key=lambda x: -abs(x.difference.value))


def _class_card(classes: Sequence[ClassChange]) -> Card:
    name, changed = "Class that changed most", changed_classes(classes)
    if changed:
        first, *others = changed
        d = first.difference
        more = f"95 %: {signed(d.low)} to {signed(d.high)}; {p_equals(first.p)} (Holm)"
        if others:
            more += f"; also {join(f'{x.name} {signed(x.difference.value)}' for x in others)}"
        return Card(name, f"{first.name} {signed(d.value)}", more)
    more = "no class changed for certain"
    largest = max(classes, key=lambda x: abs(x.difference.value))
    if largest.difference.value:
        d = largest.difference
        more += f"; most: {largest.name} {signed(d.value)} ({signed(d.low)} to {signed(d.high)})"
    return Card(name, "none", more)


def _cost_card(c: Comparison) -> Card:
    """Return the time that training took, of each run and on which ranks."""
    first, second = total_time(c.first.costs), total_time(c.second.costs)
    # The unit once if both have it.
    amount, _, unit = first.rpartition(" ")
    if first != NOT_RECORDED and second.endswith(f" {unit}"):
        first = amount
    trained = [f"{_num_folds(len(x.folds))} on {_ranks_text(x)}" for x in (c.first, c.second)]
    more = f"each: all {trained[0]}"
    if trained[0] != trained[1]:
        more = f"{c.first.name}: {trained[0]}; {c.second.name}: {trained[1]}"
    return Card(f"Time, {c.first.name} / {c.second.name}", f"{first} / {second}", more)


def _ranks_text(loaded: LoadedRun) -> str:
    """Return text such as ``2 ranks (NVIDIA H200)``."""
    return join(dict.fromkeys(cost.ranks_sentence for cost in loaded.costs))


def _num_folds(count: int) -> str:
    return f"{count} fold{'s' * (count > 1)}"


def run_verdict(loaded: LoadedRun) -> Verdict:
    """Return what a reviewer would say of a run."""
    s = loaded.summary
    folds = f"{len(s.folds)} of " * bool(s.missing) + _num_folds(len(loaded.all_folds))
    scores = [
        f"{name} {spread.mean:.2f} % (95 % {interval_text(*spread.ci95)})"
        for name, spread in (("UAR", s.uar), ("WAR", s.war))
    ]
    sentences = [f"{join(scores)}: mean over {folds}, {s.pooled.n} clips."]
    if s.validation:
        sentences = [f"{join(scores)}: {s.pooled.n} clips.", validation_text(s)]
    if s.missing:
        sentences.append(f"Missing: {folds_text(s.missing)}. The scores are of the others only.")
    left_out = sum(len(r.left_out) for r in s.folds)
    if left_out:
        sentences.append(f"{left_out_text(left_out, s.pooled.n)}.")
    if s.selection == "best_test":
        sentences.append("The epoch was chosen on the test fold: the scores are optimistic.")
    sentences += [_majority_text(s), *_never_recognised(s), _confusions_text(s.pooled)]
    if s.shuffled:
        sentences.append(_shuffled_text(loaded))
    return Verdict(sentences, [])


def _majority_text(s: Summary) -> str:
    """Compare WAR with the most frequent class, by its interval and the exact binomial test."""
    from scipy.stats import binomtest

    low, high = s.war.ci95
    baseline = f"always answering {s.majority.class_name} ({s.majority.war:.2f} %)"
    right = sum(row[i] for i, row in enumerate(s.pooled.confusion))
    p = float(binomtest(right, s.pooled.n, s.majority.war / 100).pvalue)
    difference = Difference(*(x - s.majority.war for x in (s.war.mean, low, high)))
    found = outcome(difference, p)
    if found is Outcome.higher:
        return f"WAR is above {baseline}."
    if found is Outcome.lower:
        return f"WAR is below {baseline}."
    return f"WAR is not shown to differ from {baseline}."


def _never_recognised(s: Summary) -> list[str]:
    found = [
        f"{c.name} (0 of {c.clips} clips, 95 % {interval_text(*c.interval)})"
        for c in class_recalls(s)
        if c.clips and c.recall == 0
    ]
    return [f"Never recognised: {first_of(found, _MAX_CLASSES)}."] * bool(found)


def _confusions_text(scores: Scores) -> str:
    found = top_confusions(scores, MAX_CONFUSIONS)
    if not found:
        return "No clip was misclassified."
    items = [f"{x.truth} → {x.predicted} ({x.count} of {x.support} clips)" for x in found]
    return f"Most frequent confusions: {join(items)}."


def _shuffled_text(loaded: LoadedRun) -> str:
    """Compare the predictions with those from shuffled frames of the same clips."""
    folds = {
        k: replace(fold, table=fold.shuffled)
        for k, fold in loaded.folds.items()
        if fold.shuffled is not None
    }
    paired = compare(loaded, replace(loaded, folds=folds)).paired
    if paired is None:
        return "The predictions with shuffled frames are not of the same clips."
    found = outcome(paired.difference["uar"], metric_p(paired, "uar"))
    text = f"Shuffling the frames changes UAR by {_metric_text(paired, 'uar')}"
    if found is Outcome.lower:
        return f"{text}: the scores depend on their order."
    if found is Outcome.higher:
        return f"{text}: the scores are better without their order."
    return f"{text}: that the scores depend on their order is not shown."
