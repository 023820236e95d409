"""``dfer crossval --cluster NAME --dry-run``, and options of a cluster without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from tests.helpers.cli import check_refusal, dfer
from tests.helpers.paths import ROOT

# torch cannot be imported, as on a login node that lacks it
CODE = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'deepspeed', 'open_clip', 'mlflow'):
            raise ImportError(name + ' is out of reach')
sys.meta_path.insert(0, Wall())
from launch.cli import main
main()
"""


def dry_run(shards: Index, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "srun").chmod(0o755)
    command = ["crossval", "demo", "--cluster", "gpus8", "--dry-run", f"data.shards={shards.root}"]
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", CODE, *command, *arguments],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_dry_run_prints_script_and_settings(tiny_shards: Index, tmp_path: Path) -> None:
    settings = ["cluster.time_minutes=90", "cluster.account=x", "cluster.scratch=/local/$USER"]
    settings += ["train.epochs=7", "train.global_batch=64"]
    done = dry_run(tiny_shards, tmp_path, "--max-parallel", "2", *settings)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"#SBATCH --array=0-4%2", "#SBATCH --time=90", "#SBATCH --account=x"} <= set(lines)
    assert "folds=(1 2 3 4 5)" in lines
    assert {"  epochs: 7", "  cache: /local/$USER"} <= set(lines)
    assert f"  shards: {tiny_shards.root.as_uri()}" in lines
    assert "cluster" not in done.stdout.partition("config.yaml")[2]
    assert [f.name for f in tmp_path.iterdir()] == ["srun"]


def test_batch_that_ranks_cannot_share_is_refused(tiny_shards: Index, tmp_path: Path) -> None:
    done = dry_run(tiny_shards, tmp_path, "train.global_batch=24")
    assert done.returncode == 2 and "16 ranks" in done.stderr


@pytest.mark.parametrize("arguments", [["cluster.partition=low"], ["--wait"], ["--dry-run"]])
def test_cluster_option_without_a_cluster_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = dfer("crossval", "demo", *arguments, cwd=tmp_path)
    check_refusal(done, f"{arguments[0]} is for a cluster: give --cluster NAME too")
