"""Real steps on this machine, in processes of their own, for ``dfer plan --measure``."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config


def take_steps(config: Config, world: int = 1, exact_memory: bool = False) -> dict[str, Any]:
    """What :mod:`dfer_dist.planning.footprint` says on rank 0 of ``world`` ranks.

    Parameters
    ----------
    exact_memory : bool
        Freed memory goes back at once, so that the peak is what was in use, not what malloc kept; steps take longer.

    Raises
    ------
    UserError
        If a rank dies, with its last line.
    """
    from dfer_dist.config.load import dump_config
    from dfer_dist.runs.layout import RunDir
    from dfer_dist.runs.provenance import python_command
    from launch.processes import free_port, rank_environment

    with tempfile.TemporaryDirectory() as folder:
        file, port = Path(folder) / "config.yaml", free_port()
        file.write_text(dump_config(config), encoding="utf-8")
        command = [*python_command(), "-m", "dfer_dist.planning.footprint", "--config", str(file)]
        ranks = []
        for rank in range(world):
            env = rank_environment(RunDir(Path(folder)), rank, world, port)
            env |= {"MALLOC_MMAP_THRESHOLD_": "65536"} if exact_memory else {}
            with (Path(folder) / f"{rank}.log").open("w") as log:
                ranks.append(
                    subprocess.Popen(
                        command, env=env, text=True, stdout=subprocess.PIPE, stderr=log
                    )
                )
        said = [process.communicate()[0] for process in ranks]
        logs = [(Path(folder) / f"{rank}.log").read_text() for rank in range(world)]
    found = next((line for line in said[0].splitlines() if line.startswith("{")), None)
    if any(process.returncode for process in ranks) or found is None:
        last = next(
            (
                log.strip().splitlines()[-1]
                for process, log in zip(ranks, logs, strict=True)
                if process.returncode and log.strip()
            ),
            None,
        )
        raise UserError(f"the steps failed: {last or 'they were killed, as when memory runs out'}")
    return dict(json.loads(found))
