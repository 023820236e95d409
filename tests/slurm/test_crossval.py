"""``dfer crossval --cluster`` on a real Slurm: all folds, GPUs, wrong requests and sweeps."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest
from cluster import Cluster

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import expand
from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.tracking.server import client
from dfer_dist.utils.files import read_json
from launch.progress import is_done
from tests.helpers.slurm.submitted import ENVIRONMENT, EPOCH, ROOT, Submitted, local
from tests.helpers.training.trials import Trial, same

pytestmark = pytest.mark.slurm


def test_all_folds_give_the_summary_of_one_machine(trial: Submitted) -> None:
    """Five folds, two at a time, and a summary after them, equal to that of one machine."""
    theirs = scores(local(trial, EPOCH))
    before = os.times()
    begin = time.monotonic()
    said = trial.submit("--max-parallel", "2", settings=EPOCH, folds="1-5")
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    print(f"\nfrom command to queue {time.monotonic() - begin:.1f} s, processor time {cpu:.1f} s")
    assert cpu < 5 and "submitted 5 folds" in said
    running = set()
    begin = time.monotonic()
    while trial.ask("squeue", "--noheader"):
        running.add(
            trial.ask(
                "squeue", "--noheader", "--array", "--states=R", "--name=dfer-demo", "--format=%i"
            ).count("\n")
        )
        assert time.monotonic() < begin + 600, trial.log()
        time.sleep(0.5)
    print(f"five folds and their summary after {time.monotonic() - begin:.0f} s")
    assert max(running) == 2
    ours = scores(trial.run)
    assert ours["missing"] == [] and ours == theirs
    assert {
        a["nodes"] for k in range(1, 6) for a in read_json(trial.run.fold(k).status)["attempts"]
    } <= {"n[1-2]", "n[3-4]"}
    assert statuses(trial) == {"parent": "FINISHED", **{str(k): "FINISHED" for k in range(1, 6)}}


def scores(run: RunDir) -> dict[str, Any]:
    """Return the summary without speed and memory, which differ between runs."""
    summary = read_json(run.summary)
    del summary["cost"]
    return summary


def statuses(trial: Trial) -> dict[str, str]:
    """Return the states of a cross-validation's runs at MLflow; children by fold."""
    tracking = tracking_of(trial.run)
    api = client(tracking.uri)
    found = {str(k): api.get_run(r).info.status for k, r in tracking.folds.items()}
    return {"parent": api.get_run(tracking.run_id).info.status, **found}


def test_plain_sbatch_gives_the_same_summary(trial: Submitted) -> None:
    """Without Submitit: five tasks, two at a time, and a sixth that has no fold."""
    assert trial.cluster
    theirs = scores(local(trial, EPOCH))
    arguments = [
        "sbatch",
        "--parsable",
        f"--chdir={ROOT}",
        f"--output={trial.root}/job-%a.txt",
        "--array=1-6%2",
        "--nodes=2",
    ]
    arguments += [
        f"--export=ALL,{','.join(f'{k}={v}' for k, v in ENVIRONMENT.items())}",
        "--cpus-per-task=1",
    ]
    arguments += [
        str(ROOT / "slurm" / "crossval.sbatch"),
        "demo",
        "--runs",
        str(trial.root),
        f"data.shards={trial.shards.root}",
    ]
    job = trial.ask(*arguments, *EPOCH).strip()
    for fold in range(1, 7):
        assert trial.done(f"{job}_{fold}", 600)["JobState"] == "COMPLETED"
    assert "nothing to do" in (trial.root / "job-6.txt").read_text()
    assert scores(trial.run) == theirs
    assert set(statuses(trial).values()) == {"FINISHED"}


def test_idle_gpus_are_refused(trial: Submitted) -> None:
    arguments = [
        "sbatch",
        "--parsable",
        f"--chdir={ROOT}",
        f"--output={trial.root}/job-%a.txt",
        "--array=1",
        "--gpus-per-node=2",
    ]
    arguments += [
        f"--export=ALL,{','.join(f'{k}={v}' for k, v in ENVIRONMENT.items())}",
        str(ROOT / "slurm" / "crossval.sbatch"),
        "demo",
    ]
    job = trial.ask(
        *arguments, "--runs", str(trial.root), f"data.shards={trial.shards.root}"
    ).strip()
    assert trial.done(f"{job}_1")["ExitCode"] == "2:0"
    assert "give sbatch --ntasks-per-node=2" in (trial.root / "job-1.txt").read_text()


def test_each_gpu_has_a_rank(trial: Submitted, undisturbed: Trial) -> None:
    """Two pretended GPUs of one node: two ranks there, and CUDA_VISIBLE_DEVICES names both."""
    trial.submit(
        "cluster.nodes=1",
        "cluster.gpus_per_node=2",
        "cluster.setup=['nvidia_smi() { :; }']",
        "cluster.environment.SEEN=yes",
    )
    assert trial.done()["JobState"] == "COMPLETED"
    text = trial.run.root.joinpath("slurm/1", f"{trial.job()}_submission.sh").read_text()
    assert "#SBATCH --gpus-per-node=2" in text and 'export SEEN="yes"' in text
    assert trial.attempts()[0]["world_size"] == 2 and trial.attempts()[0]["nodes"] == "n1"
    same(trial, undisturbed)


def test_broken_fold_fails_alone(trial: Submitted) -> None:
    """One fold cannot be trained: it fails with a reason; the others and the summary are done."""
    trial.prepare(EPOCH)
    trial.hook("dfer_dist.data.shards.index", "hooks.refuse(me, 2)")
    trial.submit("--max-parallel", "2", settings=EPOCH, folds="1-3")
    assert trial.done(trial.job(2))["ExitCode"] == "2:0"
    trial.all_done()
    shown = trial.dfer("status", str(trial.run.root)).stdout
    assert "FAILED" in shown and "fold 2 is broken" in shown and shown.count("DONE") == 2
    summary = read_json(trial.run.summary)
    assert [r["fold"] for r in summary["folds"]] == [1, 3] and summary["missing"] == [2, 4, 5]
    known = statuses(trial)
    assert known == {
        "parent": "FAILED",
        "1": "FINISHED",
        "2": "FAILED",
        "3": "FINISHED",
        "4": "SCHEDULED",
        "5": "SCHEDULED",
    }


def test_setting_that_ranks_refuse_fails_the_fold(trial: Submitted) -> None:
    trial.settings = ["train.device=cuda"]
    trial.submit()
    job = trial.done()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "2:0")
    assert "torch sees no GPU" in trial.said()
    assert "torch sees no GPU" in trial.dfer("status", str(trial.run.root)).stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["train.epoch=3"], "did you mean 'train.epochs'"),
        (["cluster.time_minutes=2", "cluster.notice_seconds=120"], "preempted before"),
        (["cluster.partition=none"], "invalid partition"),
        (["cluster.memory_gb=900"], "Slurm refuses the job"),
        (["cluster.sbatch.array=1-9"], "--max-parallel"),
        (["--sweep", "model.backbone=tiny"], "two values or more"),
        (["--nproc", "2"], "for this machine"),
    ],
)
def test_wrong_request_is_refused_at_once(trial: Submitted, arguments: list[str], why: str) -> None:
    done = trial.try_to_submit(*arguments)
    assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1
    assert not trial.run.root.exists() and not trial.ask("squeue", "--noheader")


def test_second_submission_adds_missing_folds(trial: Submitted) -> None:
    """Refused while folds wait; ``--resume`` adds missing folds, ``dfer resume`` failed ones.

    Folds that were never submitted stay so.
    """
    trial.prepare(EPOCH)
    trial.hook("dfer_dist.training.meters", "hooks.slow(me, 1)")
    trial.submit(settings=EPOCH, folds="1-2")
    first = trial.job(1)
    again = trial.try_to_submit(settings=EPOCH, folds="1-3")
    assert again.returncode == 2 and "folds 1, 2" in again.stderr and "--resume" in again.stderr
    trial.submit("--resume", settings=EPOCH, folds="1-3")
    assert trial.job(1) == first and trial.job(3) != first
    assert len(read_json(trial.run.jobs)["submissions"][-1]["folds"]) == 1
    trial.wait(lambda: trial.run.fold(1).metrics.exists())
    assert trial.dfer("cancel", str(trial.run.root)).returncode == 0
    trial.all_done()
    assert statuses(trial)["parent"] == "FAILED"
    assert trial.dfer("resume", str(trial.run.root)).returncode == 0
    trial.all_done()
    done = dict.fromkeys(["parent", "1", "2", "3"], "FINISHED")
    assert statuses(trial) == {**done, "4": "SCHEDULED", "5": "SCHEDULED"}
    assert read_json(trial.run.summary)["missing"] == [4, 5]
    assert "nothing to submit" in trial.submit(settings=EPOCH, folds="1-3")


def test_sweep_compares_its_runs(trial: Submitted) -> None:
    """Two values, one of which no rank can build: an array of both, and one comparison."""
    trial.submit("--sweep", "model.backbone=tiny,ViT-Z", settings=EPOCH, folds="1,2")
    trial.all_done()
    good, bad = (RunDir(trial.root / f"demo-{value}") for value in ("tiny", "ViT-Z"))
    assert trial.job(1, good).partition("_")[0] == trial.job(2, bad).partition("_")[0]
    assert len(read_json(good.summary)["folds"]) == 2 and not bad.summary.exists()
    rows = (trial.root / "demo.sweep" / "comparison.md").read_text()
    assert (
        "| 2 of 5 | model.backbone=tiny |" in rows
        and "| demo-ViT-Z | missing | missing | 0 of 5 | model.backbone=ViT-Z |" in rows
    )
    assert "did you mean" in trial.dfer("status", str(bad.root)).stdout


def test_settings_and_seeds_are_one_array(trial: Submitted) -> None:
    """Two settings with two seeds and folds: cancelled in the middle and given again."""
    flags = ["--seeds", "0-1", "--sweep", "optim.lr_image=3e-4,3e-6", "--max-parallel", "2"]
    flags.append("cluster.nodes=1")
    sweep = trial.root / "demo.sweep"
    trial.submit(*flags, settings=EPOCH, folds="1,2")
    runs = expand(sweep)
    folds = [run.fold(k) for run in runs for k in (1, 2)]
    jobs = {trial.job(k, run) for run in runs for k in (1, 2)}
    assert len(jobs) == 8 and len({job.partition("_")[0] for job in jobs}) == 1
    trial.wait(lambda: any(is_done(fold) for fold in folds), 400)
    assert trial.dfer("cancel", str(sweep)).returncode == 0
    trial.all_done()
    before = {fold: fold.status.read_text() for fold in folds if is_done(fold)}
    assert 0 < len(before) < 8
    trial.submit(*flags, settings=EPOCH, folds="1,2")
    trial.all_done(900)
    assert all(map(is_done, folds))
    assert {fold: fold.status.read_text() for fold in before} == before
    (pair,) = read_json(sweep / "comparison.json")["comparisons"]
    assert (pair["paired"]["seeds"], pair["paired"]["folds"]) == ([0, 1], [1, 2])
    api = client(tracking_of(runs[0]).uri)
    assert api.get_run(read_json(sweep / "sweep.json")["run_id"]).info.status == "FINISHED"


def test_one_array_task_is_requeued_alone(cluster: Cluster, trial: Submitted) -> None:
    """The last task of an array has the array's own id, by which scontrol would requeue all."""
    script = trial.root / "tasks.sh"
    script.write_text(
        "#!/bin/bash\n"
        f"trap '{sys.executable} -m launch.slurm.requeue $? {trial.fold.root}' EXIT\n"
        "sleep 1\n"
        'if [ "$SLURM_JOB_ID" = "$SLURM_ARRAY_JOB_ID" ]; then\n'
        '  [ "$SLURM_RESTART_COUNT" ] || exit 75\n'
        "fi\n"
    )
    arguments = [
        "--parsable",
        "--array=1-3",
        f"--export=ALL,PYTHONPATH={ROOT}",
        "--output=/dev/null",
        str(script),
    ]
    job = cluster.ask("sbatch", *arguments).strip()
    ended = [trial.done(f"{job}_{k}", 60) for k in (1, 2, 3)]
    restarts = [(job["JobState"], job["Restarts"]) for job in ended]
    assert sorted(restarts) == [("COMPLETED", "0"), ("COMPLETED", "0"), ("COMPLETED", "1")]
