"""What ``dfer doctor`` runs on a node, as a rank would run: ``python -m launch.doctor.probe FOLDER``.

It says hello, looks at the machine, and tells which signals came meanwhile. FOLDER lies among the runs; what both sides read and
write there shows whether it is one folder.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.hardware import filesystem
from dfer_dist.utils.locks import try_lock
from launch.doctor.checks import OK, WRONG, Check
from launch.doctor.machine import CheckRequest, examine

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_LATE = 20.0  # seconds after all else in which a signal may come


def hold(folder: Path) -> int:
    """Lock a folder; returns the open file, which holds it.

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


def shared(folder: Path) -> Check:
    """Whether the lock of the machine that asked is felt here. That its files are seen here is shown by our being here."""
    kind, words = (
        filesystem(folder),
        "what is written and renamed on either side is seen on the other",
    )
    try:
        os.close(hold(folder))
    except BlockingIOError:
        return Check("runs folder", OK, f"{words}, and locks hold ({kind})")
    except OSError as e:
        return Check(
            "runs folder",
            WRONG,
            f"{words}, but {kind} has no flock ({e.strerror}): two jobs could work at one fold; mount it with locks",
        )
    return Check(
        "runs folder",
        WRONG,
        f"{words}, but a lock of one machine is not felt on another ({kind}): two jobs could work at one fold; mount it with flock",
    )


def reached(seen: list[str]) -> Check:
    """Whether all signals came."""
    missing = [number.name for number in SIGNALS if number.name not in seen]
    if missing:
        hint = "ranks could not save before a time limit or when they are preempted; does something in `setup` or a container keep them?"
        return Check(
            "signals", WRONG, f"{' and '.join(missing)} sent to the job came to no rank: {hint}"
        )
    return Check("signals", OK, f"{' and '.join(number.name for number in SIGNALS)} reach a rank")


def main() -> None:
    folder, seen = Path(sys.argv[1]), []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, note)
    ask = read_json(folder / "ask.json")
    write_json(folder / "hello.json", {"host": socket.gethostname()})
    checks = [shared(folder), *examine(CheckRequest(**ask["machine"]))]
    end = time.monotonic() + _LATE
    while len(set(seen)) < len(SIGNALS) and time.monotonic() < end:
        time.sleep(0.1)
    write_json(
        folder / "report.json", {"checks": [asdict(check) for check in [*checks, reached(seen)]]}
    )


if __name__ == "__main__":
    main()
