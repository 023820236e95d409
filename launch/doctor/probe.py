"""What ``dfer doctor`` runs on a node, as a rank would run.

``python -m launch.doctor.probe FOLDER`` reports its host, checks the machine, and notes which
signals came meanwhile. FOLDER is in the folder of all runs; that all machines read and write in it
shows that they share it. On two nodes one runs on each, and they check the network between them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path

from dfer_dist.config.load import read_config
from dfer_dist.utils.files import write_json
from launch.doctor.checks import Check, Result, ok, wrong
from launch.doctor.machine import MachineRequest, check_machine
from launch.doctor.network import Meeting, check_network, check_shared_folder

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_SIGNAL_TIMEOUT = 20.0  # seconds after all other checks


def check_signals(received: Collection[str]) -> Result:
    """Check that all signals came."""
    missing = [number.name for number in SIGNALS if number.name not in received]
    if not missing:
        return ok("SIGUSR2 and SIGTERM reach a rank")
    return wrong(
        f"{' and '.join(missing)} sent to the job reached no rank: ranks could not save before a "
        "time limit or when they are preempted; does cluster.setup or a container hold them back?"
    )


def main() -> None:
    """Check this node and write ``report-RANK.json``."""
    folder, rank = Path(sys.argv[1]), int(os.environ.get("SLURM_PROCID", "0"))
    meeting = Meeting(folder, rank, int(os.environ.get("SLURM_NTASKS", "1")))
    received: set[str] = set()
    for number in SIGNALS:
        signal.signal(number, lambda number, _: received.add(signal.Signals(number).name))
    request = MachineRequest.read(folder / "request.json")
    config = None
    if (folder / "config.yaml").exists():
        config = read_config(folder / "config.yaml")
    # signals are sent when all have started
    meeting.exchange("started", socket.gethostname())
    shared = Check("runs folder", *check_shared_folder(folder / "lock"))
    checks = [shared, *check_machine(request, config)]
    deadline = time.monotonic() + _SIGNAL_TIMEOUT
    while len(received) < len(SIGNALS) and time.monotonic() < deadline:
        time.sleep(0.1)
    checks.append(Check("signals", *check_signals(received)))
    if meeting.size > 1:
        # joins an all-reduce, once no signal can come
        checks += check_network(meeting)
    write_json(folder / f"report-{rank}.json", {"checks": checks})


if __name__ == "__main__":
    main()
