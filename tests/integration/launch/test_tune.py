"""``dfer tune`` on this machine: killed and given again, without a byte of the test clips."""

from __future__ import annotations

import csv
import os
import re
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dfer_dist.config.load import load_config, read_config
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.folds.validation import make_validation
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.demo.dataset import render_demo
from dfer_dist.evaluation.significance import differences, pair, weights
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, expand
from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.tracking.server import client
from dfer_dist.tracking.sweeps import PARENT_TAG
from dfer_dist.utils.files import read_json
from launch.commands.data import pack_listing
from tests.helpers.cli import check_refusal, invoke
from tests.helpers.data.hidden import hide_test_clips
from tests.helpers.forked import Forked
from tests.helpers.paths import DFER, ROOT
from tests.helpers.training.commands import dfer, one_epoch, predictions, start_slow, wait_for

SPACE = """
optim.lr_temporal: {low: 1.0e-4, high: 1.0e-2, log: true}
model.temporal_layers: {low: 1, high: 2, int: true}
"""
RATES = """
optim.lr_image: {low: 3.0e-6, high: 3.0e-3, log: true}
optim.lr_temporal: {low: 1.0e-5, high: 1.0e-2, log: true}
optim.lr_prompt: {low: 1.0e-4, high: 1.0e-1, log: true}
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
    options = ["--space", str(tmp_path / "space.yaml"), "--trials", "2", "--parallel", "2"]
    command = ["tune", "demo", *options, *settings]
    first = [RunDir(tmp_path / "runs" / f"demo-tune-trial{i}") for i in range(2)]
    slow = start_slow(*command)
    for run in first:
        wait_for(run.fold(1).metrics, '"step": 2,')
    slow.send_signal(signal.SIGKILL)
    slow.wait(60)
    said = dfer(*command)
    assert "demo-tune: 0 of 2 trials are over" in said and "dfer crossval" in said
    sweep = SweepDir(tmp_path / "runs" / "demo-tune.sweep")
    runs = expand(sweep.root)
    assert [run.root.name for run in runs] == [f"demo-tune-trial{i}" for i in range(2)]
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
    assert "demo-tune: 2 of 2 trials are over" in dfer(*command)
    assert all(len(read_json(run.fold(1).status)["attempts"]) == 2 for run in first)
    other = invoke(*command, "--metric", "war", cwd=tmp_path)
    check_refusal(other, "belongs to another search: metric was uar, now war")
    check_refusal(invoke("resume", sweep.root, cwd=tmp_path), "give its dfer tune command again")


def test_missing_optuna_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = invoke("tune", "demo", "--space", "x.yaml", "--trials", "2", cwd=tmp_path)
    check_refusal(done, "optuna is not installed: run pip install 'dfer_dist[tune]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.engine_full
def test_search_beats_a_learning_rate_that_is_too_small(tmp_path: Path) -> None:
    """Twelve trials, two at a time, killed twice; the best one on clips of another seed."""
    index = hide_test_clips(demo_set(tmp_path), 1, tmp_path / "shards")
    write_slow_experiment(tmp_path / "slow.yaml", index)
    (tmp_path / "space.yaml").write_text(RATES)
    runs = tmp_path / "runs"
    options = ["--space", str(tmp_path / "space.yaml"), "--trials", "12", "--parallel", "2"]
    command = ["tune", str(tmp_path / "slow.yaml"), *options, "--runs", str(runs)]
    for number in (3, 8):
        process = Forked([DFER, *command], os.environ, forks_ranks=True)
        wait_for(runs / f"slow-tune-trial{number}/fold-1/metrics.jsonl", '"step": 12,', 900)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    done = Forked([DFER, *command], os.environ, forks_ranks=True).wait(timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    members = read_json(runs / "slow-tune.sweep" / "sweep.json")["members"]
    assert [m["run"] for m in members] == [f"slow-tune-trial{i}" for i in range(12)]
    tracked, wanted = [], []
    for member in members:
        run = RunDir(runs / member["run"])
        lines = run.fold(1).metrics.read_text().splitlines()
        assert [f'"step": {i},' in line for i, line in enumerate(lines, 1) if "loss" in line]
        assert run.fold(1).result.exists() != member["pruned"]
        own = client(tracking_of(run).uri).get_run(tracking_of(run).run_id)
        tracked.append((own.info.status, own.data.tags.get("pruned"), own.data.tags[PARENT_TAG]))
        wanted.append(("KILLED", "true") if member["pruned"] else ("FINISHED", None))
    assert [found[:2] for found in tracked] == wanted
    assert len({parent for *_, parent in tracked}) == 1

    make_validation(index, [1], None, seed=1).write(tmp_path / "other.json")
    best = str(runs / "slow-tune.sweep" / "best.yaml")
    tables = []
    for name, experiment in (("default", str(tmp_path / "slow.yaml")), ("best", best)):
        own = ["--fold", "1", "--name", name, "--runs", str(runs)]
        dfer("train", experiment, *own, f"data.folds={tmp_path / 'other.json'}")
        tables.append(runs / name / "fold-1" / "predictions.parquet")
    (keys, first), (others, second) = map(predictions, tables)
    assert keys == others
    labels = pq.read_table(tables[0])["label"].to_pylist()
    pairs = pair([(labels, first.argmax(1), second.argmax(1))], len(index.classes))
    uar, war = differences(pairs, list(weights(pairs).values()))
    print(f"best minus default: UAR {uar}, WAR {war}")
    assert uar.low > 0 and war.low > 0


def demo_set(folder: Path) -> Index:
    """Render and pack 350 clips of the demo."""
    source = render_demo(folder / "source", clips=350, workers=2)
    listing = read_dataset("demo", source / "frames", source / "lists")
    pack_listing(listing, folder / "packed", clips_per_shard=32)
    return read_index(folder / "packed")


def write_slow_experiment(file: Path, index: Index) -> None:
    """Write the demo's experiment with learning rates that are 100 times too small."""
    text = (ROOT / "configs" / "demo.yaml").read_text().replace("data/demo/shards", str(index.root))
    for key, rate in {"image": 3.0e-4, "temporal": 1.0e-3, "prompt": 1.0e-2}.items():
        text = re.sub(f"lr_{key}: .*", f"lr_{key}: {rate / 100}", text)
    file.write_text(text.replace("epochs: 6", "epochs: 4"))
