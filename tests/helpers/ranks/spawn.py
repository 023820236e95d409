"""Real ranks for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dfer_dist.runs.layout import RunDir
from launch.processes import free_port, rank_environment
from tests.helpers.paths import ROOT


def run_ranks(script: Path, ranks: int, *args: str, timeout: float = 240) -> dict[str, Any]:
    """Run a script of this folder on ``ranks`` ranks; return the JSON line that rank 0 printed."""
    command, port, nowhere = (
        [sys.executable, str(script), *args],
        free_port(),
        RunDir(Path("/nonexistent")),
    )
    environments = [rank_environment(nowhere, r, ranks, port) for r in range(ranks)]
    processes = [
        subprocess.Popen(
            command,
            # The scripts import other helpers.
            env={**env, "PYTHONPATH": f"{ROOT}{os.pathsep}{env['PYTHONPATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for env in environments
    ]
    outs = [p.communicate(timeout=timeout) for p in processes]
    codes = [p.returncode for p in processes]
    assert codes == [0] * ranks, "\n".join(
        f"rank {r}: status {c}\n{out[1][-1500:]}"
        for r, (c, out) in enumerate(zip(codes, outs, strict=True))
    )
    return json.loads(next(line for line in outs[0][0].splitlines() if line.startswith("{")))
