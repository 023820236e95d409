"""Real training steps on this machine, in processes of their own, for ``dfer plan --measure``."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.errors import UserError
from launch.processes import free_port, rank_environment

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config


def take_steps(config: Config, world_size: int = 1, exact_memory: bool = False) -> dict[str, Any]:
    """Return what :mod:`dfer_dist.planning.measure` measures on rank 0.

    Parameters
    ----------
    exact_memory : bool
        Return freed memory to the system at once, so that the peak is what was in use and not what
        malloc kept. Steps take longer.

    Raises
    ------
    UserError
        If a rank dies, with its last line.
    """
    from dfer_dist.config.load import dump_config

    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        command = [*python_command(), "-m", "dfer_dist.planning.measure"]
        command += ["--config", str(folder / "config.yaml")]
        ranks, logs = [], [folder / f"{rank}.log" for rank in range(world_size)]
        for rank, log in enumerate(logs):
            env = rank_environment(RunDir(folder), rank, world_size, port)
            if exact_memory:
                env["MALLOC_MMAP_THRESHOLD_"] = "65536"
            with log.open("w") as file:
                process = subprocess.Popen(
                    command, env=env, text=True, stdout=subprocess.PIPE, stderr=file
                )
            ranks.append(process)
        outputs = [process.communicate()[0] for process in ranks]
        failed = [log for process, log in zip(ranks, logs, strict=True) if process.returncode]
        result = next((line for line in outputs[0].splitlines() if line.startswith("{")), None)
        if failed or result is None:
            raise UserError(f"the steps failed: {_last_line(failed)}")
    return dict(json.loads(result))


def _last_line(logs: list[Path]) -> str:
    """Return the last line of the first log that has one."""
    for log in logs:
        lines = log.read_text().strip().splitlines()
        if lines:
            return lines[-1]
    return "they were killed, as when memory runs out"
