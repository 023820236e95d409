"""A site that takes no summary job."""

from __future__ import annotations

import shutil

import pytest

from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.tracking.server import client
from dfer_dist.utils.files import read_json
from tests.helpers.slurm.submitted import EPOCH, Submitted

pytestmark = pytest.mark.slurm

# as a submit plugin
SBATCH = """#!/bin/bash
grep -q gpus-per-node "${@: -1}" || { echo "sbatch: error: ask for GPUs" >&2; exit 1; }
exec SBATCH "$@"
"""


def test_last_fold_writes_the_summary(trial: Submitted) -> None:
    assert trial.cluster
    search = trial.cluster.environment["PATH"]
    sbatch = trial.root / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH.replace("SBATCH", str(shutil.which("sbatch", path=search))))
    sbatch.chmod(0o755)
    trial.variables["PATH"] = f"{sbatch.parent}:{search}"
    gpus = ("cluster.nodes=1", "cluster.gpus_per_node=2")
    said = trial.submit("--wait", *gpus, settings=EPOCH, folds="1-2")
    assert "no summary job (Slurm refuses the job: ask for GPUs): the last fold" in said
    assert "2 of 5 folds done" in said
    trial.all_done()
    summary = read_json(trial.run.summary)
    assert [fold["fold"] for fold in summary["folds"]] == [1, 2]
    tracking = tracking_of(trial.run)
    assert client(tracking.uri).get_run(tracking.run_id).info.status == "FINISHED"
    assert f"summary: {trial.run.report}" in trial.dfer("status", str(trial.run.root)).stdout
