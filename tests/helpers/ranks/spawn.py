"""Real ranks for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dfer_dist.runs.layout import RunDir
from launch.processes import free_port, rank_environment
from tests.helpers.forked import Forked


def run_ranks(script: Path, ranks: int, *args: str, timeout: float = 240) -> dict[str, Any]:
    """Run a script of this folder on ``ranks`` ranks; return the JSON line that rank 0 printed."""
    port, nowhere = free_port(), RunDir(Path("/nonexistent"))
    processes = [
        Forked([str(script), *args], rank_environment(nowhere, rank, ranks, port))
        for rank in range(ranks)
    ]
    ended = [process.wait(timeout) for process in processes]
    assert [done.returncode for done in ended] == [0] * ranks, "\n".join(
        f"rank {rank}: status {done.returncode}\n{done.stderr[-1500:]}"
        for rank, done in enumerate(ended)
    )
    return json.loads(next(line for line in ended[0].stdout.splitlines() if line.startswith("{")))
