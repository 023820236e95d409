"""Votes of annotators in the report of a run and of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Ambiguous, TargetKind
from dfer_dist.evaluation.votes import any_annotator, kl_divergence
from dfer_dist.reporting.comparison.fairness import same_clips
from dfer_dist.reporting.comparison.paired import compare
from dfer_dist.reporting.comparison.sections import comparison_sections
from dfer_dist.reporting.protocol import protocol_rows
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.sections import run_sections
from dfer_dist.reporting.votes import compared_votes_table, votes_table
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.summary import Summary
from dfer_dist.tracking.metric_names import CURRENT
from dfer_dist.tracking.summary import summary_metrics
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import make_run, write_summary


def clip_values(run: RunDir, fold: int) -> np.ndarray:
    """Return divergence and agreement of the clips with votes, from the file, [2, N]."""
    table = pq.read_table(run.fold(fold).predictions)
    votes, logits = (np.array(table[name].to_pylist()) for name in ("votes", "logits"))
    votes, logits = votes[votes.any(1)], logits[votes.any(1)]
    return np.stack([kl_divergence(votes, logits), any_annotator(votes, logits.argmax(1))])


def test_report_gives_means_of_the_votes_next_to_war(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", voted=True, target="votes", ambiguous_clips=40)
    loaded = load_run(run)
    (table,) = run_sections(loaded)[1].tables
    by_fold = np.array([clip_values(run, k).mean(1) for k in (1, 2, 3)])
    assert [row[2] for row in table.rows[:3]] == [f"{x:.3f}" for x in by_fold[:, 0]]
    assert [row[3] for row in table.rows[:3]] == [f"{x:.2f}" for x in by_fold[:, 1]]
    assert [row[1] for row in table.rows[:3]] == [
        f"{f.result.war:.2f}" for f in loaded.folds.values()
    ]
    mean, interval, constant = table.rows[3:]
    kl, share = by_fold.mean(0)
    assert mean[2].startswith(f"{kl:.3f} ± ") and mean[3].startswith(f"{share:.2f} ± ")
    low, high = map(float, interval[2].split(" to "))
    assert low < kl < high < float(constant[2]), "the model is better than the mean of the votes"
    assert "with 40 clips that have no majority in every fold" in table.notes[-1]
    write_summary(loaded)
    summary = Summary.read(run.summary)
    assert summary.votes is not None and summary.votes.n == 3 * 199
    assert summary.votes.kl.mean == pytest.approx(kl)
    metrics = summary_metrics(summary)
    assert metrics["kl_mean"] == pytest.approx(kl) and metrics["any_annotator_std"] > 0
    assert CURRENT.of("kl_mean") == "1_scores/kl" and CURRENT.of("test_kl") == "1_scores/test_kl"


def test_runs_without_votes_have_no_such_table(tmp_path: Path) -> None:
    voted, plain = make_run(tmp_path / "a", voted=True), make_run(tmp_path / "b")
    loaded = load_run(plain)
    assert votes_table(loaded) is None and loaded.summary.votes is None
    assert "votes" not in [s.key for s in run_sections(loaded)]
    assert not {"kl_mean", "any_annotator_mean"} & summary_metrics(loaded.summary).keys()
    assert compared_votes_table(compare(load_run(voted), loaded)) is None


def test_scores_that_the_predictions_contradict_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (1,), 1, voted=True)
    table = votes_table(load_run(run))
    assert table is not None and table.rows[1][2] == f"{clip_values(run, 1)[0].mean():.3f}"
    file = run.fold(1).result
    result = json.loads(file.read_text())
    result["votes"]["kl"] += 0.01
    file.write_text(json.dumps(result))
    with pytest.raises(UserError, match="votes are not those of the predictions next to it"):
        load_run(run)


def test_comparison_is_paired_and_positive_where_the_second_is_better(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "first", voted=True, sure=1.0),
        make_run(tmp_path / "second", voted=True, sure=3.0, target="votes", ambiguous_clips=9),
    ]
    first, second = map(load_run, runs)
    sections = {s.key: s for s in comparison_sections([first, second], [compare(first, second)])}
    (table,) = sections["votes"].tables
    values = [[clip_values(run, k) for k in (1, 2, 3)] for run in runs]
    means = np.array([[v.mean(1) for v in own] for own in values]).mean(1)
    for row, a, b, sign in zip(table.rows, *means, (-1, 1), strict=True):
        better = float(row[3].replace("−", "-"))
        low, high = (float(x.replace("−", "-")) for x in row[4].split(" to "))
        assert better == pytest.approx(sign * (b - a), abs=0.006)
        assert 0 < low < better < high
    assert "597 clips" in table.notes[0]
    assert compare(first, second).warnings == [
        "Only second was trained on 9 clips without a majority."
    ]
    assert not same_clips(first, second) and same_clips(first, first)


def test_protocol_says_what_was_trained_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (1,), 1)
    assert "Clips without a majority" not in dict(protocol_rows(load_run(run)))
    config = read_config(run.config)
    config.train.target, config.data.ambiguous = TargetKind.votes, Ambiguous.train
    run.config.write_text(dump_config(config))
    rows = dict(protocol_rows(load_run(run)))
    assert rows["Loss"] == "cross-entropy with the distribution of annotators' votes"
    assert rows["Clips without a majority"] == "in the training of every fold, in no test"
