"""``dfer tune --cluster`` on a real Slurm: its command is killed, and follows the jobs again."""

from __future__ import annotations

import signal

import pytest

from dfer_dist.runs.sweep import expand
from dfer_dist.utils.files import read_json
from launch.slurm.jobs import submissions
from tests.helpers.data.hidden import hide_test_clips
from tests.helpers.forked import Forked
from tests.helpers.slurm.submitted import DFER, EPOCH, Submitted

pytestmark = pytest.mark.slurm
SPACE = "optim.lr_temporal: {low: 1.0e-4, high: 1.0e-2, log: true}\n"


def test_killed_search_follows_its_jobs_again(trial: Submitted) -> None:
    """Three trials, two at a time: each is one job, and none reads a test clip."""
    assert trial.cluster
    index = hide_test_clips(trial.shards, 1, trial.root / "shards")
    (trial.root / "space.yaml").write_text(SPACE)
    flags = ["--space", str(trial.root / "space.yaml"), "--trials", "3", "--parallel", "2"]
    flags += ["--cluster", "testbed", "--runs", str(trial.root), "cluster.nodes=1"]
    command = ["tune", "demo", *flags, f"data.shards={index.root}", *EPOCH, *trial.settings]
    env = trial.cluster.environment | {"PYTHONPATH": str(trial.here), "COLUMNS": "160"}
    process = Forked([DFER, *command], env, trial.here)
    trial.wait(lambda: trial.ask("squeue", "--noheader", "--states=R").count("\n") == 2, 300)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    done = trial.dfer(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = expand(trial.root / "demo-tune.sweep")
    assert [run.root.name for run in runs] == [f"demo-tune-trial{i}" for i in range(3)]
    for run in runs:
        assert [len(entry.folds) for entry in submissions(run)] == [1], "submitted once"
        assert read_json(run.fold(1).status)["state"] == "DONE"
        assert read_json(run.summary)["folds"][0]["n"] == 10
    assert (trial.root / "demo-tune.sweep" / "best.yaml").is_file()
    assert not trial.ask("squeue", "--noheader")
