"""From a command to its first step, and from a stop to the next one: what ``dfer bench startup`` measures, on real commands."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError

_IMPORTS = "import torch, deepspeed, open_clip, mlflow"
_PLAIN = Path(__file__).parents[2] / "benchmarks" / "plain_step.py"
_PATIENCE = 600.0  # seconds to a first step


def measure(
    command: list[str], runs: Path, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Start, stop and start again, ``rounds`` times after one for warming up.

    Parameters
    ----------
    command : list of str
        ``dfer train …`` of fold 1 with the name ``startup``, logging every step, long enough to be stopped.
    runs : Path
        Where it puts its run.

    Returns
    -------
    dict
        Medians of ``seconds``: ``ours`` from the command to the first step, ``again`` from the same command after a stop to the next step, ``floor`` the imports that
        training needs, and in a checkout ``baseline`` from a plain script's start to its first step.

    Raises
    ------
    UserError
        If the command ends before a step.
    """
    run = RunDir(runs / "startup")
    taken: dict[str, list[float]] = {}
    for r in range(rounds + 1):
        shutil.rmtree(run.root, ignore_errors=True)
        for name in ("ours", "again"):
            taken.setdefault(name, []).append(_to_a_step(command, run))
        taken.setdefault("floor", []).append(_to_the_end([sys.executable, "-c", _IMPORTS]))
        if _PLAIN.is_file():
            taken.setdefault("baseline", []).append(_to_the_end([sys.executable, str(_PLAIN)]))
        progress(r + 1, rounds + 1)
    return {"baseline": None} | {
        name: {"seconds": median(times[1:])} for name, times in taken.items()
    }


def _to_a_step(command: list[str], run: RunDir) -> float:
    """Seconds until the command has done a step; it is told to leave then, and waited for."""
    before = _steps(run)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while _steps(run) == before:
            if process.poll() is not None or time.perf_counter() - begin > _PATIENCE:
                raise UserError(f"no step was done: look into {run.fold(1).log}")
            time.sleep(0.02)
        return time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _steps(run: RunDir) -> int:
    metrics = run.fold(1).metrics
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _to_the_end(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin
