"""Real ranks for a test, forked from a process that has imported the large libraries once."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dfer_dist.runs.layout import RunDir
from launch.processes import free_port, rank_environment

# Importing them takes a rank 5 s. DeepSpeed is not among them: it looks for GPUs when it is
# imported, and a process that did cannot fork ranks that use them.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "torchvision.transforms.v2", "mlflow", "open_clip"])
# Wait for the server at the end, so that the CPU time of the ranks counts as the tests'.
atexit.register(multiprocessing.forkserver._forkserver._stop)


def run_ranks(script: Path, ranks: int, *args: str, timeout: float = 240) -> dict[str, Any]:
    """Run a script of this folder on ``ranks`` ranks; return the JSON line that rank 0 printed."""
    port, nowhere = free_port(), RunDir(Path("/nonexistent"))
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, str(rank)) for rank in range(ranks)]
        processes = [
            _SERVER.Process(
                target=_run_script,
                args=([str(script), *args], rank_environment(nowhere, rank, ranks, port), output),
            )
            for rank, output in enumerate(outputs)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        texts = [output.read_text() for output in outputs]
    assert codes == [0] * ranks, "\n".join(
        f"rank {rank}: status {code}\n{text[-1500:]}"
        for rank, (code, text) in enumerate(zip(codes, texts, strict=True))
    )
    return json.loads(next(line for line in texts[0].splitlines() if line.startswith("{")))


def _run_script(command: list[str], environment: Mapping[str, str], output: Path) -> None:
    """Run a script as this process's main program; its output goes to a file."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, sys.stdout.fileno())
    os.dup2(fd, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
