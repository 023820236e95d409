"""The small job by which ``dfer doctor`` checks a node."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from launch.doctor import trial
from launch.doctor.checks import NOTE, WRONG, Check
from launch.doctor.machine import MachineRequest
from tests.helpers.cli import dfer
from tests.helpers.slurm.scripted_slurm import FINE, NODES, ScriptedSlurm


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trial, "_POLL", 0.01)
    monkeypatch.setattr(trial, "_CACHE_SECONDS", 0.05)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def run_trial(runs: Path, queue_seconds: float = 0.1) -> Check:
    (check,) = trial.check_node(
        replace(FINE, setup=["module load x"]), MachineRequest(), runs, queue_seconds
    )
    return check


@pytest.mark.parametrize(
    ("state", "status", "printed", "subject", "text"),
    [
        ("FAILED", 33, "", "runs folder", "n9 does not see "),
        ("FAILED", 34, "", "python", "n9 does not see "),
        (
            "FAILED",
            143,
            "srun: error: n8: task 1: Exited with exit code 33",
            "runs folder",
            "n8 does not see ",
        ),
        (
            "FAILED",
            1,
            "Traceback\nImportError: no x\nsrun: error: n9: task 0: Exited",
            "job on a node",
            "status 1): ImportError: no x",
        ),
        ("FAILED", 1, "srun: error: no cpus", "job on a node", "srun: error: no cpus"),
        ("NODE_FAIL", 0, "", "job on a node", "n9 ended it (NODE_FAIL, status 0): without output"),
    ],
)
def test_job_without_a_report_is_explained(
    slurm: ScriptedSlurm, runs: Path, state: str, status: int, printed: str, subject: str, text: str
) -> None:
    slurm.job(state, status=status)
    if printed:
        (runs / "out.txt").write_text(printed)
    check = run_trial(runs)
    assert (check.state, check.subject) == (WRONG, subject) and text in check.text
    submitted = (slurm.root / "submitted").read_text()
    assert (
        "--nodes=2 " in submitted
        and "--gpus-per-node=8" in submitted
        and "--time=3 " in submitted
        and "--mem=8192MB" in submitted
    )
    assert (slurm.root / "cancelled").read_text().split() == ["77"]


@pytest.mark.parametrize("option", ["gpus-per-task=1", "gpu-bind=closest", "hold"])
def test_job_has_no_option_by_which_its_task_lacks_gpus_or_waits(
    slurm: ScriptedSlurm, runs: Path, option: str
) -> None:
    slurm.job("FAILED")
    name, _, value = option.partition("=")
    cluster = replace(FINE, sbatch={name: value or True, "exclusive": True})
    assert [*trial.check_node(cluster, MachineRequest(), runs, 0.1)]
    submitted = (slurm.root / "submitted").read_text()
    assert "--gpus-per-node=8" in submitted and "--exclusive" in submitted
    assert f"--{option}" not in submitted


def test_job_that_waits_is_explained(slurm: ScriptedSlurm, runs: Path) -> None:
    slurm.job("PENDING", "Resources")
    check = run_trial(runs)
    assert check.state == NOTE and "nodes are busy (Resources)" in check.text
    assert check.text.startswith("waited 0 s in the queue for two nodes: ")
    slurm.job("PENDING", "PartitionTimeLimit")
    begin = time.monotonic()
    check = run_trial(runs, queue_seconds=60)
    assert time.monotonic() - begin < 10  # it would wait forever
    assert check.state == WRONG and "more time than the partition allows" in check.text
    slurm.break_client("sbatch", "Batch job submission failed: QOS")
    assert run_trial(runs).text == "Slurm refuses it: Batch job submission failed: QOS"


def test_doctor_checks_a_node_with_a_small_job(
    slurm: ScriptedSlurm, tmp_path: Path, tiny_shards: Index
) -> None:
    """The job runs on this machine; signals are sent to the process of its batch script."""
    slurm.set_output("job", "JobId=77 JobState=RUNNING Reason=None NodeList=n9 ExitCode=0:0")
    slurm.set_output("nodes", *NODES)
    cluster = tmp_path / "here.yaml"
    cluster.write_text(
        "partition: gpu\ncpus_per_task: 1\nscratch: $DFER_SCRATCH/me\n"
        "setup: [module load nothing]\n"
    )
    environment = {
        "start": 'bash "${!#}" & echo $! > $root/pid',
        "deliver": '[ $# = 1 ] || kill "-${1#--signal=}" $(cat $root/pid)',
    }
    arguments = ["doctor", "demo", f"data.shards={tiny_shards.root}", "--cluster", cluster]
    done = dfer(*arguments, cwd=tmp_path, DFER_SCRATCH=str(tmp_path / "disk"), **environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    host = os.uname().nodename
    assert any(
        line.startswith(f"note  {host}: setup: its lines print: ") and "not found" in line
        for line in lines
    )
    for name in (
        "runs folder",
        "python",
        "GPUs",
        "processors",
        "DeepSpeed",
        "scratch",
        "weights",
        "shards",
        "tracking",
        "signals",
    ):
        assert sum(line.startswith(f"ok    {host}: {name}: ") for line in lines) == 1, (name, lines)
    assert f"kept in {tmp_path}/disk/me" in done.stdout
    assert os.listdir(tmp_path / "runs") == []
