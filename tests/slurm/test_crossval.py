"""``slurm/crossval.sbatch`` on a real Slurm: what clusters do to two ranks on two nodes, held against a run without any of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from cluster import Cluster
from harness import DFER, Trial, same, same_in_mlflow
from submitted import ROOT, Submitted

from dfer_dist.rundir import RunDir, read_json

pytestmark = pytest.mark.slurm


def attempts(trial: Trial) -> list[dict[str, object]]:
    return read_json(trial.fold.status)["attempts"]


def told(trial: Submitted, begin: float) -> None:
    """What was seen, for the page in docs."""
    print(
        f"\n{time.monotonic() - begin:.0f} s; {trial.state()['Restarts']} restarts; steps again: {trial.undone}; from step, why:"
    )
    print(*(f"  {a['from_step']}: {a['why']} ({a['nodes']})" for a in attempts(trial)), sep="\n")


def test_undisturbed(trial: Submitted, undisturbed: Trial) -> None:
    begin = time.monotonic()
    trial.submit()
    job = trial.done()
    told(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
    assert attempts(trial)[0] | {"job": "", "started": "", "ended": ""} == {
        "job": "",
        "nodes": "n[1-2]",
        "world_size": 2,
        "from_step": 0,
        "undone_steps": 0,
        "started": "",
        "ended": "",
        "why": "all steps done",
    }
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_requeued_by_hand(trial: Submitted, undisturbed: Trial) -> None:
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    trial.ask("scontrol", "requeue", f"{trial.job}_1")
    job = trial.done()
    told(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_preempted(trial: Submitted, undisturbed: Trial) -> None:
    """SIGTERM, 15 s to leave; the job comes back when the high partition has let go of its nodes."""
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    trial.ask("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3")
    job = trial.done()
    told(trial, begin)
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1"
    assert attempts(trial)[0]["why"] == "SIGTERM" and trial.undone == 0
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_a_task_killed(trial: Submitted, undisturbed: Trial) -> None:
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    os.kill(trial.ranks()[1], signal.SIGKILL)
    job = trial.done()
    told(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_a_time_limit_that_is_too_short(trial: Submitted, undisturbed: Trial) -> None:
    """Two minutes, of which 30 s and the time of two steps are kept for leaving; the steps alone take 144 s."""
    trial.slow(4.0)
    begin = time.monotonic()
    trial.submit("--time=2")
    job = trial.done(seconds=500)
    told(trial, begin)
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 2
    whys = [a["why"] for a in attempts(trial)]
    assert len(whys) == int(job["Restarts"]) + 1 and whys.pop() == "all steps done"
    assert set(whys) <= {"time is up", "told to leave"}  # told: by the other rank, whose time was up first
    assert trial.undone == 0
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_cancelled_stays_cancelled(trial: Submitted) -> None:
    trial.slow(0.3)
    trial.submit()
    trial.training(4)
    trial.ask("scancel", trial.job)
    job = trial.done()
    time.sleep(8)  # a requeued job would be pending or running by now
    assert trial.state()["JobState"] == job["JobState"] == "CANCELLED" and job["Restarts"] == "0"
    assert attempts(trial)[-1]["why"] == "SIGTERM"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_traceback_is_not_requeued(trial: Submitted, rank: int) -> None:
    trial.prepare()
    trial.hook("dfer_dist.meter", f"hooks.fail(me, {rank}, 5)")
    trial.submit()
    job = trial.done()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "1:0")


def test_a_node_lost(trial: Submitted, undisturbed: Trial) -> None:
    """The power of the second node goes; the job comes back on others."""
    assert trial.cluster
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    trial.cluster.crash("n2")
    try:
        job = trial.done()
    finally:
        trial.cluster.up()
    told(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "n2" not in str(attempts(trial)[-1]["nodes"])
    same(trial, undisturbed)
    same_in_mlflow(trial)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("train.epoch=3", "train.epoch"),  # found when the run is opened
        ("train.device=cuda", "torch sees no GPU"),  # found by the ranks
    ],
)
def test_a_broken_config_fails_at_once(trial: Submitted, wrong: str, why: str) -> None:
    trial.settings = [wrong]
    trial.submit()
    job = trial.done()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "2:0")
    said = (trial.root / "job-1.txt").read_text()
    assert "error: " in said and why in said


def test_idle_gpus_are_refused(trial: Submitted) -> None:
    trial.submit("--gpus-per-node=2")
    assert trial.done()["ExitCode"] == "2:0"
    assert "give sbatch --ntasks-per-node=2" in (trial.root / "job-1.txt").read_text()


def test_all_folds(trial: Submitted) -> None:
    """Five elements, two at a time, one of which makes the run; and a sixth that has no fold. The table is that of one machine."""
    settings = ["data.num_frames=4", "data.image_size=32", "train.epochs=1", "train.global_batch=8", "eval.batch=5"]
    begin = time.monotonic()
    trial.submit(settings=settings, array="1-6%2")
    for fold in range(1, 7):
        assert trial.done(fold, 600)["JobState"] == "COMPLETED"
    print(f"\nfive folds after {time.monotonic() - begin:.0f} s")
    assert "nothing to do" in (trial.root / "job-6.txt").read_text()
    words = ["crossval", "demo", "--nproc", "2", "--name", "local", "--runs", str(trial.root), f"data.shards={trial.shards.root}"]
    subprocess.run([DFER, *words, *settings], cwd=ROOT, check=True, capture_output=True, timeout=600)
    ours, theirs = (read_json(run.summary) for run in (trial.run, RunDir(trial.root / "local")))
    assert ours["missing"] == [] and ours == theirs
    tracking = trial.run.describe()["tracking"]
    from dfer_dist.tracking import client

    api = client(tracking["uri"])
    assert {api.get_run(r).info.status for r in (tracking["run_id"], *tracking["folds"].values())} == {"FINISHED"}


def test_one_element_is_requeued_and_not_its_array(cluster: Cluster, trial: Submitted) -> None:
    """The last element of an array has the array's own id, by which scontrol would start all of them again."""
    script = trial.root / "elements.sh"
    script.write_text(
        "#!/bin/bash\n"
        f"trap '{sys.executable} -m launch.requeue $?' EXIT\n"
        "sleep 1\n"
        'if [ "$SLURM_JOB_ID" = "$SLURM_ARRAY_JOB_ID" ] && [ -z "$SLURM_RESTART_COUNT" ]; then exit 75; fi\n'
    )
    words = ["--parsable", "--array=1-3", f"--export=ALL,PYTHONPATH={ROOT}", "--output=/dev/null", str(script)]
    trial.job = cluster.ask("sbatch", *words).strip()
    restarts = [(job["JobState"], job["Restarts"]) for job in (trial.done(k, 60) for k in (1, 2, 3))]
    assert sorted(restarts) == [("COMPLETED", "0"), ("COMPLETED", "0"), ("COMPLETED", "1")]
