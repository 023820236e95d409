"""``dfer doctor`` asks Slurm about the very jobs that ``dfer crossval`` submits."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir
from launch.doctor.partition import check_slurm
from launch.slurm.batch import (
    ArrayTask,
    ClusterTarget,
    make_executor,
    make_summary_executor,
    submitting,
)
from launch.slurm.cluster import Cluster, load_cluster
from tests.helpers.slurm.scripted_slurm import ScriptedSlurm

# notes what it is given: the options of the script, and the variables that change them
SBATCH = """#!/bin/bash
{ grep '^#SBATCH' "${@: -1}" | grep -vE -- '--(output|dependency)='
  env | grep -E '^(SBATCH|SLURM|SRUN|RANK|MASTER|WORLD|LOCAL|CUDA|PYTHONPATH)' | sort
  echo; } >> $root/seen
echo Submitted batch job 7
"""
VARIABLES = {
    "SBATCH_PARTITION": "high",
    "SBATCH_TIMELIMIT": "3",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_GRES": "gpu:1",
    "SBATCH_WCKEY": "x",
    "SLURM_JOB_ID": "1",
    "SLURM_MEM_PER_CPU": "1",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_JWT": "token",
    "SLURM_TIME_FORMAT": "relative",
    "RANK": "0",
    "MASTER_PORT": "29500",
    "CUDA_VISIBLE_DEVICES": "0",
    "PYTHONPATH": "/opt/packages",
}
SETTINGS = (
    "partition=long",
    "account=lab",
    "qos=high",
    "constraint=ib",
    "nodes=1",
    "gpus_per_node=4",
    "cpus_per_task=3",
    "memory_gb=20",
    "time_minutes=60",
    "notice_seconds=60",
    "environment.A=${HOME}",
    "sbatch.exclude=n3",
    "sbatch.wckey=mine",
    "sbatch.gres=gpu:a100:8",
    "summary={partition: long, constraint: null}",
    "summary.time=7",
    "partition=gpu,long",
)


@pytest.mark.parametrize("seed", range(20))
def test_doctor_asks_about_the_jobs_that_are_submitted(
    slurm: ScriptedSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    """Random variables of the shell and settings of the cluster."""
    chance = random.Random(seed)
    for name, value in VARIABLES.items():
        monkeypatch.delenv(name, raising=False)
        if chance.random() < 0.5:
            monkeypatch.setenv(name, value)
    chosen = [f"cluster.{text}" for text in SETTINGS if chance.random() < 0.4]
    if "cluster.sbatch.gres=gpu:a100:8" in chosen:
        # doctor would stop at GPUs that are no ranks
        chosen.append("cluster.gpus_per_node=8")
    cluster = load_cluster("gpus8", chosen)
    (slurm.root / "sbatch").write_text(SBATCH.replace("$root", str(slurm.root)))
    assert {"a fold's job", "the summary's job"} <= {c.subject for c in check_slurm(cluster)}
    asked = seen(slurm)
    submit(cluster, tmp_path)
    assert seen(slurm) == asked
    assert len(asked) == 2 and "--job-name=dfer-summary" in asked[1]
    own = {"SLURM_CONF", "SLURM_JWT", "PYTHONPATH"} & os.environ.keys()
    names = {line.partition("=")[0] for job in asked for line in job.splitlines() if line[0] != "#"}
    assert names - {"SLURM_TIME_FORMAT"} == own


def submit(cluster: Cluster, folder: Path) -> None:
    """Submit a fold and the summary as ``dfer crossval`` does."""
    run, target = RunDir(folder / "run"), ClusterTarget("", cluster)
    folder.joinpath("jobs").mkdir()
    with submitting():
        make_executor([ArrayTask(run, 1)], target, folder / "jobs").submit(print)
        make_summary_executor(target, folder / "jobs", run.code, "7").submit(print)


def seen(slurm: ScriptedSlurm) -> list[str]:
    """Return what each job gets, the time format of questions aside, and forget it."""
    file = slurm.root / "seen"
    jobs = file.read_text().replace("SLURM_TIME_FORMAT=standard\n", "").strip().split("\n\n")
    file.unlink()
    return jobs
