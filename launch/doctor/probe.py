"""What ``dfer doctor`` runs on a node, as a rank would run.

``python -m launch.doctor.probe FOLDER`` reports its host, checks the machine, and notes which
signals came meanwhile. FOLDER is in the folder of all runs; that both machines read and write in it
shows that they share it.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path

from dfer_dist.config.load import read_config
from dfer_dist.utils.files import write_json
from dfer_dist.utils.hardware import filesystem
from dfer_dist.utils.locks import is_locked
from launch.doctor.checks import Check, Result, ok, wrong
from launch.doctor.machine import MachineRequest, check_machine

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_SIGNAL_TIMEOUT = 20.0  # seconds after all other checks


def check_shared_folder(folder: Path) -> Result:
    """Check that a lock of the submitting machine is seen here; its files are, as this runs."""
    kind = filesystem(folder)
    seen = "files that one machine writes and renames are seen on the other"
    try:
        if is_locked(folder / "lock"):
            return ok(f"{seen}, and locks hold ({kind})")
        fault = f"a lock of one machine is not seen on another ({kind})"
    except OSError as e:
        fault = f"{kind} has no flock ({e.strerror})"
    return wrong(f"{seen}, but {fault}: two jobs could train the same fold; mount it with flock")


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
    """Check this node and write ``report.json``."""
    folder = Path(sys.argv[1])
    received: set[str] = set()
    for number in SIGNALS:
        signal.signal(number, lambda number, _: received.add(signal.Signals(number).name))
    request = MachineRequest.read(folder / "request.json")
    config = None
    if (folder / "config.yaml").exists():
        config = read_config(folder / "config.yaml")
    write_json(folder / "started.json", {"host": socket.gethostname()})
    shared = Check("runs folder", *check_shared_folder(folder))
    checks = [shared, *check_machine(request, config)]
    deadline = time.monotonic() + _SIGNAL_TIMEOUT
    while len(received) < len(SIGNALS) and time.monotonic() < deadline:
        time.sleep(0.1)
    checks.append(Check("signals", *check_signals(received)))
    write_json(folder / "report.json", {"checks": checks})


if __name__ == "__main__":
    main()
