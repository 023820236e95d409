"""Nodes on which a fold cannot start."""

from __future__ import annotations

import pytest

from launch.slurm.failures import failed_starts
from tests.helpers.slurm.submitted import EPOCH, Submitted

pytestmark = pytest.mark.slurm

# as where a file system is not mounted, or a driver is missing
BROKEN = """
import socket, sys
if socket.gethostname() == "n1" and "dfer_dist.train" in sys.orig_argv:
    sys.exit("ImportError: libcudart.so.13: cannot open shared object file")
"""


def test_fold_on_one_node_leaves_a_broken_one(trial: Submitted) -> None:
    packages = trial.root / "packages"
    packages.mkdir()
    (packages / "sitecustomize.py").write_text(BROKEN)
    trial.submit("cluster.nodes=1", f"cluster.environment.PYTHONPATH={packages}", settings=EPOCH)
    job = trial.done()
    assert (job["JobState"], job["Restarts"], job["ExcNodeList"]) == ("COMPLETED", "1", "n1")
    (start,) = failed_starts(trial.fold)
    assert start.nodes == ["n1"] and start.reason.endswith(BROKEN.split('"')[-2])
    assert [attempt["nodes"] for attempt in trial.attempts()] == [job["NodeList"]]
