"""What ``dfer doctor`` runs on a node, as a rank would run.

``python -m launch.doctor.probe FOLDER`` reports its host, checks the machine, and notes which
signals came meanwhile. FOLDER is in the folder of all runs; that both machines read and write in it
shows that they share it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.hardware import filesystem
from dfer_dist.utils.locks import try_lock
from launch.doctor.checks import OK, WRONG, Check
from launch.doctor.machine import MachineRequest, check_machine

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_SIGNAL_TIMEOUT = 20.0  # seconds after all other checks


def lock_folder(folder: Path) -> int:
    """Lock a folder and return the file descriptor that holds the lock.

    Raises
    ------
    OSError
        BlockingIOError if another process holds it, anything else if the file system has no locks.
    """
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if try_lock(file):
            return file
        raise BlockingIOError(f"{folder} is locked by another process")
    except OSError:
        os.close(file)
        raise


def check_shared_folder(folder: Path) -> Check:
    """Check that a lock of the submitting machine is seen here; its files are, as this runs."""
    kind = filesystem(folder)
    seen = "files that one machine writes and renames are seen on the other"
    try:
        os.close(lock_folder(folder))
    except BlockingIOError:
        return Check("runs folder", OK, f"{seen}, and locks hold ({kind})")
    except OSError as e:
        return Check(
            "runs folder",
            WRONG,
            f"{seen}, but {kind} has no flock ({e.strerror}): two jobs could train the same fold; "
            "mount it with locks",
        )
    return Check(
        "runs folder",
        WRONG,
        f"{seen}, but a lock of one machine is not seen on another ({kind}): two jobs could train "
        "the same fold; mount it with flock",
    )


def check_signals(received: Collection[str]) -> Check:
    """Check that all signals came."""
    names = [number.name for number in SIGNALS]
    missing = [name for name in names if name not in received]
    if not missing:
        return Check("signals", OK, f"{' and '.join(names)} reach a rank")
    return Check(
        "signals",
        WRONG,
        f"{' and '.join(missing)} sent to the job reached no rank: ranks could not save before a "
        "time limit or when they are preempted; does cluster.setup or a container hold them back?",
    )


def main() -> None:
    """Check this node and write ``report.json``."""
    folder = Path(sys.argv[1])
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, note)
    request = MachineRequest(**read_json(folder / "request.json")["machine"])
    write_json(folder / "started.json", {"host": socket.gethostname()})
    checks = [check_shared_folder(folder), *check_machine(request)]
    deadline = time.monotonic() + _SIGNAL_TIMEOUT
    while len(set(received)) < len(SIGNALS) and time.monotonic() < deadline:
        time.sleep(0.1)
    checks.append(check_signals(received))
    write_json(folder / "report.json", {"checks": [asdict(check) for check in checks]})


if __name__ == "__main__":
    main()
