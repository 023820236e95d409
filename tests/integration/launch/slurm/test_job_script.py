"""``job.sh``: the exit status of a fold's job, with a Python that notes its arguments."""

from __future__ import annotations

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
