"""``environment.txt`` against pip, and on a node with other packages."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.provenance import environment_lock
from launch.runs import open_run
from tests.helpers.cli import check_refusal, dfer


def test_lock_has_all_that_pip_freeze_has() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
    )
    theirs = {line for line in done.stdout.splitlines() if "==" in line and line[0] != "#"}
    ours = set(environment_lock().splitlines())
    assert len(theirs) > 50 and theirs <= ours
    assert all(line.startswith(("-e ", "# python ")) or " @ " in line for line in ours - theirs)


def test_node_with_other_packages_is_warned_of_once(tiny_shards: Index, tmp_path: Path) -> None:
    arguments = [
        f"data.shards={tiny_shards.root.as_uri()}",
        "data.cache=$DFER_UNSET",
        "tracking.enabled=false",
        "train.global_batch=8",
    ]
    run, _ = open_run(tmp_path / "runs", None, "demo", arguments, (), None, 2)
    lock = run.environment.read_text()
    assert lock == environment_lock()
    here = next(line for line in lock.splitlines() if line.startswith("torch=="))
    run.environment.write_text(lock.replace(here, "torch==0.1"))
    done = dfer("train", "demo", "--fold", "1", "--nproc", "2", *arguments, cwd=tmp_path)
    check_refusal(
        done, "$DFER_UNSET is not set here"
    )  # from a rank, which looks at its packages before anything else
    line = (
        f"warning: {socket.gethostname()} has other packages than environment.txt of the run: "
        f"{here}, not torch==0.1"
    )
    logs = "".join(log.read_text() for log in run.fold(1).root.glob("log*.txt"))
    assert logs.splitlines().count(line) == 1 and logs.count("other packages") == 1
