"""What a rank imports before its first step, and what it starts after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dfer_dist.data.shards.index import Index
from launch.processes import free_port, rank_environment
from launch.runs import open_run

UNUSED = {"mlflow", "pandas", "sklearn", "transformers"}
THREADS = {"system", "uploader"}
RANK = f"""
import os, sys, threading
import dfer_dist.train
from dfer_dist.training import fold

import_deepspeed, votes = fold._import_deepspeed, None

def import_and_replace():
    global votes
    import_deepspeed()
    from dfer_dist.training.trainer import Trainer
    votes, Trainer.reduce_votes = Trainer.reduce_votes, report

def report(trainer, result):
    if trainer.state.step == 1:
        print(sorted(name for name in {UNUSED!r} if sys.modules.get(name)), flush=True)
        return votes(trainer, result)
    print(sorted({{t.name for t in threading.enumerate()}} & {THREADS!r}), flush=True)
    os._exit(0)

fold._import_deepspeed = import_and_replace
dfer_dist.train.main()
"""


def test_first_step_waits_for_no_package_that_it_does_not_use(
    tiny_shards: Index, tmp_path: Path
) -> None:
    overrides = [f"data.shards={tiny_shards.root}", "train.global_batch=4"]
    run, _ = open_run(tmp_path, "one", "demo", overrides, (), "2", 1)
    command = [sys.executable, "-c", RANK, "--run", str(run.root), "--fold", "2"]
    environment = rank_environment(run, 0, 1, free_port())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n['system', 'uploader']\n"), done.stderr
