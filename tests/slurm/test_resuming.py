"""Faults of a fold with two ranks on two nodes of a real Slurm.

Each run is compared with one on two ranks of this machine without a Slurm.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.paths import HELPERS
from tests.helpers.slurm.submitted import ROOT, Submitted
from tests.helpers.training.trials import DFER, SETTINGS, Trial, same, same_in_mlflow

pytestmark = pytest.mark.slurm


def print_attempts(trial: Submitted, begin: float) -> None:
    """Print what happened, for the page in docs."""
    print(
        f"\n{time.monotonic() - begin:.0f} s; {trial.state()['Restarts']} restarts; "
        f"steps repeated: {trial.num_rolled_back}; from step, why:"
    )
    print(*(f"  {a['from_step']}: {a['why']} ({a['nodes']})" for a in trial.attempts()), sep="\n")


def starts_again(trial: Submitted) -> bool:
    """Return whether this Slurm starts a preempted job once more after it has completed."""
    return trial.ask("sinfo", "--version").split()[-1].startswith("24.11")


def test_undisturbed_fold_equals_one_without_slurm(trial: Submitted, undisturbed: Trial) -> None:
    begin = time.monotonic()
    trial.submit()
    job = trial.done()
    print_attempts(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
    assert trial.attempts()[0] | {
        "job": "",
        "array": "",
        "device": "",
        "device_type": "",
        "started": "",
        "ended": "",
        "peak_bytes": 0,
    } == {
        "job": "",
        "array": "",
        "device": "",
        "device_type": "",
        "nodes": "n[1-2]",
        "world_size": 2,
        "from_step": 0,
        "undone_steps": 0,
        "started": "",
        "ended": "",
        "why": "all steps done",
        "peak_bytes": 0,
    }
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_fold_requeued_by_hand_resumes(trial: Submitted, undisturbed: Trial) -> None:
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    trial.ask("scontrol", "requeue", trial.job())
    job = trial.done()
    print_attempts(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_preempted_fold_resumes(trial: Submitted, undisturbed: Trial) -> None:
    """SIGTERM and 15 s to save; the job comes back once the high partition is idle."""
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    trial.ask(
        "sbatch",
        "--partition=high",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 3",
    )
    job = trial.done()
    print_attempts(trial, begin)
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) == 1 + starts_again(trial)
    assert (
        len(trial.attempts()) == 2
        and trial.attempts()[0]["why"] == "SIGTERM"
        and trial.num_rolled_back == 0
    )
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_fold_with_a_killed_rank_resumes(trial: Submitted, undisturbed: Trial) -> None:
    trial.slow(0.3)
    begin = time.monotonic()
    trial.submit()
    trial.training(8)
    os.kill(trial.ranks()[1], signal.SIGKILL)
    job = trial.done()
    print_attempts(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_fold_resumes_after_each_time_limit(trial: Submitted, undisturbed: Trial) -> None:
    """Two minutes, of which 30 s and two steps are kept for saving; the steps take 6 minutes."""
    trial.slow(10.0)
    begin = time.monotonic()
    trial.submit("cluster.time_minutes=2")
    job = trial.done(seconds=1500)
    print_attempts(trial, begin)
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 3
    whys = [a["why"] for a in trial.attempts()]
    assert len(whys) == int(job["Restarts"]) + 1 and whys.pop() == "all steps done"
    # SIGUSR2 is Slurm's own notice, which may come before a rank's time is up
    assert set(whys) <= {"time is up", "preempted", "SIGUSR2"}
    assert trial.num_rolled_back == 0
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_cancelled_fold_stays_cancelled(trial: Submitted) -> None:
    trial.slow(0.3)
    trial.submit()
    trial.training(4)
    trial.ask("scancel", trial.job())
    job = trial.done()
    time.sleep(8)  # a requeued job would be pending or running by now
    assert trial.state()["JobState"] == job["JobState"] == "CANCELLED" and job["Restarts"] == "0"
    assert trial.attempts()[-1]["why"] == "SIGTERM"


@pytest.mark.parametrize("rank", [0, 1])
def test_fold_with_a_traceback_is_not_requeued(trial: Submitted, rank: int) -> None:
    trial.prepare()
    trial.hook("dfer_dist.training.meters", f"hooks.fail(me, {rank}, 5)")
    trial.submit()
    job = trial.done()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "1:0")


def test_fold_resumes_after_a_node_crash(trial: Submitted, undisturbed: Trial) -> None:
    """The second node crashes; the job comes back on others."""
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
    print_attempts(trial, begin)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "n2" not in str(trial.attempts()[-1]["nodes"])
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_requeued_fold_runs_the_submitted_code(
    trial: Submitted, undisturbed: Trial, tmp_path: Path
) -> None:
    """The checkout is edited after the command, and the job requeued: it runs the old code."""
    trial.here = tmp_path / "checkout"
    for folder in ("dfer_dist", "launch", "configs"):
        shutil.copytree(
            ROOT / folder, trial.here / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "setup.cfg", trial.here)
    meter = trial.here / "dfer_dist" / "training" / "meters.py"
    whole = meter.read_text()
    meter.write_text(
        whole
        + f"\nimport sys\nsys.path.append({str(HELPERS / 'training')!r})\n"
        + "import hooks\nhooks.slow(sys.modules[__name__], 0.3)\n"
    )
    trial.submit()
    for file in (
        meter,
        trial.here / "launch" / "slurm" / "job.py",
        trial.here / "launch" / "slurm" / "requeue.py",
    ):
        file.write_text("raise SystemExit('the edited code runs')\n")
    trial.training(8)
    trial.ask("scontrol", "requeue", trial.job())
    job = trial.done()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    same(trial, undisturbed)
    said = trial.try_to_submit(
        "--resume"
    )  # all is done: what the checkout has become does not matter
    assert "the edited code runs" in said.stderr + said.stdout


def test_fold_preempted_twice_resumes(trial: Submitted, undisturbed: Trial) -> None:
    trial.slow(0.3)
    trial.submit()
    for step in (6, 18):
        trial.training(step)
        trial.ask(
            "sbatch",
            "--partition=high",
            "--nodes=4",
            "--exclusive",
            "--output=/dev/null",
            "--wrap",
            "sleep 3",
        )
    job = trial.done()
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) == 2 + starts_again(trial)
    assert [a["why"] for a in trial.attempts()] == [
        "SIGTERM",
        "SIGTERM",
        "all steps done",
    ] and trial.num_rolled_back == 0
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_fold_is_requeued_after_slurmctld_restarts(trial: Submitted, undisturbed: Trial) -> None:
    """The controller is down when a task is killed: the job's first requeue requests fail."""
    assert trial.cluster
    trial.slow(0.3)
    trial.submit()
    trial.training(8)
    trial.cluster.kill("slurmctld")
    os.kill(trial.ranks()[1], signal.SIGKILL)
    time.sleep(8)
    trial.cluster.up()
    job = trial.done()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_fold_is_requeued_without_accounting(bare: Submitted, undisturbed: Trial) -> None:
    """No sacct: a fold is requeued and done; ``--wait`` follows it."""
    bare.slow(0.3)
    assert bare.cluster
    env = bare.cluster.environment | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(["sacct"], env=env, capture_output=True).returncode != 0
    arguments = [
        "crossval",
        "demo",
        "--cluster",
        "testbed",
        "--folds",
        "1",
        "--wait",
        "--runs",
        str(bare.root),
    ]
    waiting = subprocess.Popen(
        [DFER, *arguments, f"data.shards={bare.shards.root}", *SETTINGS],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    bare.training(8)
    assert "RUNNING" in bare.dfer("status", str(bare.run.root)).stdout
    bare.ask("scontrol", "requeue", bare.job())
    said = waiting.communicate(timeout=300)[0]
    assert waiting.returncode == 0 and "demo fold 1 DONE" in said, said
    same(bare, undisturbed)
