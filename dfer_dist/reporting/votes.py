"""Predictions against the votes of annotators: a table of a run, and one of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dfer_dist.evaluation.votes import any_annotator, kl_divergence, mean_over_folds
from dfer_dist.reporting.comparison.paired import Comparison
from dfer_dist.reporting.results import LoadedRun, ScoredPredictions, vote_values
from dfer_dist.reporting.tables import Table, slug
from dfer_dist.reporting.wording import heading, interval_text, mean_text, signed, warnings

_NAMES = ("KL to the votes, nats", "Chosen by an annotator %")
_NOTE = (
    "KL: mean divergence of the model's probabilities from the shares of votes, lower is better; "
    "nothing is smoothed. Chosen by an annotator: clips whose predicted class has a vote at least."
)


def votes_table(loaded: LoadedRun) -> Table | None:
    """Return WAR and the scores against votes of each fold; None if a fold has none."""
    summary = loaded.summary
    if not summary.votes:
        return None
    rows = []
    for k, fold in loaded.folds.items():
        values, labels = vote_values(fold.table)
        kl, share = values.mean(1)
        war = f"{fold.result.war:.2f}"
        rows.append([str(k), war, f"{kl:.3f}", f"{share:.2f}", str(len(labels))])
    kl, share = summary.votes.kl, summary.votes.any_annotator
    spreads = [mean_text(kl, 3), mean_text(share)]
    intervals = [interval_text(*kl.ci95, decimals=3), interval_text(*share.ci95)]
    rules = [len(rows)]
    rows += [
        ["mean", mean_text(summary.war), *spreads, str(summary.votes.n)],
        ["95 % interval", interval_text(*summary.war.ci95), *intervals, ""],
        ["always the mean of the votes", "", *_constant([f.table for f in loaded.folds.values()])],
    ]
    header = ["Fold", "WAR %", *_NAMES, "Clips with votes"]
    title = f"{heading(loaded.name, summary)}: votes of annotators"
    notes = [_NOTE, trained_on_text(loaded)]
    return Table("votes", title, header, rows, warnings(summary), notes, rules=rules)


def _constant(tables: Sequence[ScoredPredictions]) -> list[str]:
    """Return the scores of a model that ignores the clip: the mean of all their votes."""
    votes = np.concatenate([t.votes[t.votes.any(1)] for t in tables if t.votes is not None])
    mean = (votes / votes.sum(1, keepdims=True)).mean(0)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(mean), -1e30)[None].repeat(len(votes), 0)
    share = any_annotator(votes, logits.argmax(1)).mean()
    return [f"{kl_divergence(votes, logits).mean():.3f}", f"{share:.2f}", ""]


def trained_on_text(loaded: LoadedRun) -> str:
    """Return what the run was trained on: labels or votes, with or without ambiguous clips."""
    result = loaded.result
    if result.target == "majority":
        return "Trained on labels, the majority of the votes."
    text = "Trained on the distribution of the votes"
    if not result.ambiguous_clips:
        return f"{text}, without clips that have no majority."
    return f"{text}, with {result.ambiguous_clips} clips that have no majority in every fold."


def compared_votes_table(c: Comparison) -> Table | None:
    """Return the paired differences on the clips that have the same votes; None without any."""
    both, labels = [], []
    for k in c.first.folds.keys() & c.second.folds.keys():
        pairs, own = _match(c.first.folds[k].table, c.second.folds[k].table)
        if pairs.size:
            both.append(pairs)
            labels.append(own)
    if not both or c.first.result.classes != c.second.result.classes:
        return None
    found = mean_over_folds([(b[0] - b[1]) * [[1], [-1]] for b in both], labels)
    means = np.mean([b.mean(2) for b in both], axis=0)
    rows = []
    for i, (name, better) in enumerate(zip(_NAMES, found, strict=True)):
        digits = 3 - i
        numbers = [f"{x:.{digits}f}" for x in means[:, i]]
        low, high = signed(better.low, digits), signed(better.high, digits)
        rows.append([name, *numbers, signed(better.value, digits), f"{low} to {high}"])
    header = ["Measure", c.first.name, c.second.name, "Better by", "95 % interval"]
    clips = sum(map(len, labels))
    notes = [f"{clips} clips; paired bootstrap over clips within folds.", _NOTE]
    notes += [f"{x.name}: {trained_on_text(x)}" for x in (c.first, c.second)]
    name = f"votes-{slug(c.second.name)}"
    return Table(name, f"{c.title}: votes of annotators", header, rows, c.warnings, notes)


def _match(a: ScoredPredictions, b: ScoredPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of both runs, [2, 2, N], on the clips with the same votes; their labels."""
    if a.votes is None or b.votes is None or a.votes.shape[1] != b.votes.shape[1]:
        return np.empty((2, 2, 0)), np.empty(0)
    assert a.logits is not None
    assert b.logits is not None
    rows = {key: i for i, key in enumerate(b.keys)}
    common = [(i, rows[key]) for i, key in enumerate(a.keys) if key in rows and a.votes[i].any()]
    i, j = np.array(common, dtype=np.int64).reshape(-1, 2).T
    same = (a.votes[i] == b.votes[j]).all(1)
    i, j = i[same], j[same]
    values = [
        [kl_divergence(a.votes[i], logits), any_annotator(a.votes[i], predicted)]
        for logits, predicted in ((a.logits[i], a.predicted[i]), (b.logits[j], b.predicted[j]))
    ]
    return np.array(values), a.labels[i]
