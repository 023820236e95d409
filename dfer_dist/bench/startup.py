"""Time from a command to its first step, and from a stop to the next one."""

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

# without collections, as a rank does it
_IMPORTS = "import gc; gc.disable(); import torch, deepspeed, open_clip, mlflow; gc.freeze()"
_PLAIN = Path(__file__).parents[2] / "benchmarks" / "plain_step.py"
_TIMEOUT = 600.0  # seconds to a first step


def measure(
    command: list[str], runs: Path, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Start, stop and start a command again, ``rounds`` times after one warm-up round.

    Parameters
    ----------
    command : list of str
        ``dfer train`` of fold 1 with the name ``startup``, logging every step, long enough to be
        stopped.
    runs : Path
        Where the command creates its run.

    Returns
    -------
    dict
        Medians of ``seconds``: ``ours`` from the command to the first step, ``again`` from the
        same command after a stop to the next step, ``floor`` the imports that training needs,
        and in a checkout ``baseline`` from the start of a plain script to its first step.

    Raises
    ------
    UserError
        If the command ends before a step.
    """
    run = RunDir(runs / "startup")
    seconds: dict[str, list[float]] = {}
    for r in range(rounds + 1):
        shutil.rmtree(run.root, ignore_errors=True)
        for name in ("ours", "again"):
            seconds.setdefault(name, []).append(_seconds_to_step(command, run))
        seconds.setdefault("floor", []).append(_seconds_to_end(["-c", _IMPORTS]))
        if _PLAIN.is_file():
            seconds.setdefault("baseline", []).append(_seconds_to_end([str(_PLAIN)]))
        progress(r + 1, rounds + 1)
    medians = {name: {"seconds": median(times[1:])} for name, times in seconds.items()}
    return {"baseline": None} | medians


def _seconds_to_step(command: list[str], run: RunDir) -> float:
    """Return the seconds until a command has done a step, and stop it."""
    before = _last_step(run)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while _last_step(run) == before:
            if process.poll() is not None or time.perf_counter() - begin > _TIMEOUT:
                raise UserError(f"no step was done: see {run.fold(1).log}")
            time.sleep(0.02)
        return time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _last_step(run: RunDir) -> int:
    metrics = run.fold(1).metrics
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _seconds_to_end(arguments: list[str]) -> float:
    """Return the seconds of a Python process."""
    command = [sys.executable, *arguments]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin
