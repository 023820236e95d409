"""``job.sh``: the exit status of a fold's job, with a Python that notes its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SCRIPT = """
run={run} fold=1 python={run}/python max_requeues=3
source {root}/launch/slurm/job.sh
exit {status}
"""


@pytest.mark.parametrize(
    ("status", "closed", "expected"), [(0, 0, 0), (0, 4, 4), (75, 0, 75), (75, 4, 75), (1, 4, 1)]
)
def test_status_of_the_ranks_survives_a_failing_summary(
    tmp_path: Path, status: int, closed: int, expected: int
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n'
        f'case "$*" in *" close "*) exit {closed} ;; esac\n'
    )
    python.chmod(0o755)
    script = SCRIPT.format(run=tmp_path, root=ROOT, status=status)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == expected, done.stderr
    fold = tmp_path / "fold-1"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"-P -m launch.slurm.job close {tmp_path} 1 {status} --most 3",
        f"-P -m launch.slurm.requeue {expected} {fold} --most 3",
    ]


def test_plain_script_takes_no_place_from_the_shell(tmp_path: Path) -> None:
    """``slurm/crossval.sbatch``, up to where it makes the run."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\n")
    python.chmod(0o755)
    left = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    left += ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    env = os.environ | dict.fromkeys(left, "1")
    env |= {"DFER_PYTHON": str(python), "SLURM_ARRAY_TASK_ID": "1", "KEPT": "1"}
    command = ["bash", str(ROOT / "slurm" / "crossval.sbatch"), "demo"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    seen = {line.partition("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert "KEPT" in seen and not seen & set(left)
