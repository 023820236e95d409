"""The exit status of a rank, on which a requeue depends."""

from __future__ import annotations

import subprocess
import sys

SIGNALLED_AT_ITS_END = """
import os, signal, sys
from dfer_dist.distributed.preemption import PreemptionHandler
from dfer_dist.distributed.process_group import exit_process

class LastObject:
    def __del__(
        self, numbers=(signal.SIGTERM, signal.SIGUSR2), pid=os.getpid(), kill=os.kill, write=os.write
    ):
        for number in numbers:
            kill(pid, number)
        write(1, b"signalled")

# Python clears this module last.
sys.last = LastObject()
PreemptionHandler().install()
exit_process(2)
"""


def test_signal_while_a_rank_exits_keeps_its_status() -> None:
    """srun signals the other ranks when one has ended."""
    command = [sys.executable, "-c", SIGNALLED_AT_ITS_END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "signalled", "")
