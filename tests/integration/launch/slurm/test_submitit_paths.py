"""Jobs of Submitit whose folder has a name that Submitit would change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import JobPaths

from launch.submitit_paths import executor_class
from tests.helpers.paths import ROOT
from tests.helpers.slurm.fake_clients import FakeSlurm


@pytest.mark.parametrize("name", ["50%accurate", "%j %t", "plain"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_job_finds_its_function(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tasks: int
) -> None:
    for client, says in (("sbatch", "echo Submitted batch job 120"), ("srun", "")):
        (slurm.root / client).write_text(f"#!/bin/sh\n{says}\n")
        (slurm.root / client).chmod(0o755)
    # restored at the end
    for function in ("_format_id", "get_first_id_independent_folder"):
        monkeypatch.setattr(JobPaths, function, vars(JobPaths)[function])
    folder, marks = tmp_path / name / "1", [tmp_path / f"mark-{task}" for task in range(tasks)]
    executor = executor_class(folder)(folder, python=sys.executable)
    executor.map_array(Path.touch, marks)
    # what the batch script runs, as Slurm starts each task
    module = executor._submitit_command_str.split(" -m ")[1].partition(" ")[0]
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "120", "PYTHONPATH": str(ROOT)}
    for task in range(tasks):
        if tasks > 1:
            job |= {"SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": str(task)}
        command = [sys.executable, "-m", module, str(folder)]
        subprocess.run(command, env=os.environ | job, check=True, capture_output=True)
    assert all(mark.exists() for mark in marks)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["bin", name, *(mark.name for mark in marks)]
    )
