"""The watchdog in processes that hang, work or are suspended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

HANG = """
import multiprocessing, os, sys, threading, time
from pathlib import Path
from dfer_dist.distributed.watchdog import Watchdog
import torch
torch._C._distributed_c10d._dump_nccl_trace = lambda: b"the last collectives"
file, trace = Path(sys.argv[1]), Path(sys.argv[1] + ".nccl")
dog = Watchdog(file, 0.5, lambda reason: print(reason, flush=True), trace)
def a_name_to_look_for():
    time.sleep(60)
threading.Thread(target=a_name_to_look_for, daemon=True).start()
def a_worker_to_look_for(rank):
    while os.getppid() == rank:
        time.sleep(0.1)
fork = multiprocessing.get_context("fork")
fork.Process(target=a_worker_to_look_for, args=[os.getpid()], daemon=True).start()
for _ in range(10):
    time.sleep(0.1)
    dog.beat()
print("alive", flush=True)
if sys.argv[2] == "stop":
    dog.stop()
    time.sleep(1.5)
    sys.exit(0)
time.sleep(60)
"""


def test_hanging_process_aborts_and_leaves_its_stacks(tmp_path: Path) -> None:
    file = tmp_path / "stacks.txt"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANG, str(file), "hang"], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - begin < 30
    assert done.returncode == -signal.SIGABRT
    assert done.stdout.splitlines()[0] == "alive" and "no step for 0 s" in done.stdout
    assert "a_worker_to_look_for" in done.stderr and "a_name_to_look_for" not in done.stderr
    assert "a_name_to_look_for" in file.read_text() and "no step for" in file.read_text()
    assert (tmp_path / "stacks.txt.nccl").read_bytes() == b"the last collectives"


def test_working_finished_or_suspended_process_is_left_alone(tmp_path: Path) -> None:
    """SIGSTOP is no hang of this rank: it has its full time again."""
    command = [sys.executable, "-c", HANG, str(tmp_path / "stacks"), "stop"]
    working, suspended = (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    time.sleep(0.3)
    suspended.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    suspended.send_signal(signal.SIGCONT)
    for process in (working, suspended):
        assert (process.communicate(timeout=60)[0], process.returncode) == ("alive\n", 0)
    assert not (tmp_path / "stacks").exists()
