"""``dfer tune`` on this machine: killed and given again, without a byte of the test clips."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest

from dfer_dist.config.load import load_config, read_config
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, expand
from dfer_dist.utils.files import read_json
from tests.helpers.cli import check_refusal, invoke
from tests.helpers.data.hidden import hide_test_clips
from tests.helpers.training.commands import dfer, one_epoch, predictions, start_slow, wait_for

SPACE = """
optim.lr_temporal: {low: 1.0e-4, high: 1.0e-2, log: true}
model.temporal_layers: {low: 1, high: 2, int: true}
"""


@pytest.fixture
def hidden(tiny_shards: Index, tmp_path: Path) -> Index:
    """The tiny set, with zeros for the test clips of fold 1."""
    return hide_test_clips(tiny_shards, 1, tmp_path / "shards")


def test_killed_search_loses_no_trial_and_reads_no_test_clip(hidden: Index, tmp_path: Path) -> None:
    with pytest.raises(DamagedClip):
        ClipReader(hidden).jpegs(hidden.test_shards(1)[0], 0)
    (tmp_path / "space.yaml").write_text(SPACE)
    settings = one_epoch(hidden, tmp_path / "runs", "train.epochs=2")
    options = ["--space", str(tmp_path / "space.yaml"), "--trials", "3", "--parallel", "2"]
    command = ["tune", "demo", *options, *settings]
    first = [RunDir(tmp_path / "runs" / f"demo-tune-trial{i}") for i in range(2)]
    slow = start_slow(*command)
    for run in first:
        wait_for(run.fold(1).metrics, '"step": 2,')
    slow.send_signal(signal.SIGKILL)
    slow.wait(60)
    said = dfer(*command)
    assert "demo-tune: 0 of 3 trials are over" in said and "dfer crossval" in said
    sweep = SweepDir(tmp_path / "runs" / "demo-tune.sweep")
    runs = expand(sweep.root)
    assert [run.root.name for run in runs] == [f"demo-tune-trial{i}" for i in range(3)]
    tested = set(clip_keys(hidden, fold_clips(hidden, 1).test))
    for run in runs:
        lines = run.fold(1).metrics.read_text().splitlines()
        assert [f'"step": {i},' in line for i, line in enumerate(lines, 1) if "loss" in line]
        keys, _ = predictions(run.fold(1).predictions)
        assert len(keys) == 10 and not tested & set(keys)
    for run in first:
        attempts = read_json(run.fold(1).status)["attempts"]
        assert len(attempts) == 2 and attempts[1]["from_step"] >= 2, "it resumed"

    # the end
    rows = list(csv.DictReader((sweep.root / "trials.csv").open()))
    assert {row["State"] for row in rows} == {"complete"}
    best = RunDir(tmp_path / "runs" / f"demo-tune-trial{rows[0]['Trial']}")
    assert float(rows[0]["UAR"]) == round(read_json(best.fold(1).result)["uar"], 2)
    file = sweep.root / "best.yaml"
    own = {"data.folds=null", "data.folds_hash=null", "eval.each_epoch=false"}
    assert load_config(str(file)) == read_config(best.config, sorted(own))
    assert "No test clip of fold 1 was read" in file.read_text().replace("\n# ", " ")

    # the same command, and others
    assert "demo-tune: 3 of 3 trials are over" in dfer(*command)
    assert all(len(read_json(run.fold(1).status)["attempts"]) == 2 for run in first)
    other = invoke(*command, "--metric", "war", cwd=tmp_path)
    check_refusal(other, "belongs to another search: metric was uar, now war")
    check_refusal(invoke("resume", sweep.root, cwd=tmp_path), "give its dfer tune command again")
