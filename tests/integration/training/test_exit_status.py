"""The exit status of a rank, on which a requeue depends."""

from __future__ import annotations

import subprocess
import sys

SIGNALLED_AT_ITS_END = """
import atexit, os, signal, sys
from dfer_dist.distributed.process_group import exit_process

class LastObject:
    def __del__(self, write=os.write):
        write(1, b"finalized")

def signal_itself():
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    print("signalled")

# Python clears this module last.
sys.last = LastObject()
atexit.register(signal_itself)
exit_process(2)
"""


def test_signal_while_a_rank_exits_keeps_its_status() -> None:
    """srun signals the other ranks when one has ended.

    Python is not finalized: threads of gloo may abort the process meanwhile.
    """
    command = [sys.executable, "-c", SIGNALLED_AT_ITS_END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "signalled\n", "")
