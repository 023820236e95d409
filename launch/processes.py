"""The ranks of a fold as processes on this machine: started, watched, told to leave, ended."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError

POLL = 0.2  # seconds
_LIBC = ctypes.CDLL(
    None
)  # loaded here: a process that was just forked, perhaps while a thread imports, should not load anything
_GRACE = 15.0  # seconds that the other ranks get after one has failed


class Interrupted(Exception):
    """The person, or the system, told us to stop, or time is up, and the ranks have left; the text says whether they saved."""


@dataclass(frozen=True)
class Job:
    """A fold to run on ``nproc`` ranks, before ``deadline`` (unix time); ``lock`` is the open file that holds it, ``told`` counts signals
    to this process."""

    run: RunDir
    fold: int
    nproc: int
    deadline: float | None
    lock: int
    told: SignalCounter

    @property
    def where(self) -> FoldDir:
        return self.run.fold(self.fold)


def run_ranks(job: Job, follow: Callable[[], None]) -> tuple[int, str | None]:
    """Start the ranks of a fold and wait for them; returns what :func:`_wait` does."""
    from dfer_dist.runs.provenance import python_command

    where = job.where
    port = free_port()
    command = [
        *python_command(),
        "-m",
        "dfer_dist.train",
        "--run",
        str(job.run.root),
        "--fold",
        str(job.fold),
    ]
    command += ["--deadline", str(job.deadline)] if job.deadline else []
    ranks: list[subprocess.Popen[bytes]] = []
    logs: list[IO[bytes]] = []
    try:
        for rank in range(job.nproc):
            log: IO[bytes] = where.log_of(rank).open("ab")
            logs.append(log)
            env = rank_environment(job.run, rank, job.nproc, port)
            # a session of their own: Ctrl-C reaches this process only, which passes it on once
            process = subprocess.Popen(
                command,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                pass_fds=(job.lock,),
            )
            ranks.append(process)
        return _wait(ranks, job.told, follow)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        for log in logs:
            log.close()


def _wait(
    ranks: list[subprocess.Popen[bytes]], told: SignalCounter, follow: Callable[[], None]
) -> tuple[int, str | None]:
    """The status of the rank that ended the job, and, if a signal of somebody else's ended it, words that name it."""
    passed_on = 0
    killed: str | None = None
    deadline: float | None = None
    while any(p.poll() is None for p in ranks):
        if told.times > passed_on:
            passed_on = told.times
            for p in ranks:
                if p.poll() is None:
                    p.send_signal(signal.SIGTERM if passed_on == 1 else signal.SIGKILL)
        bad = [p for p in ranks if p.poll() not in (None, 0, EXIT_PREEMPTED)]
        if not told.times and deadline is None:
            killed = describe_exit(ranks)
        if bad and deadline is None:
            deadline = time.monotonic() + _GRACE
        if deadline and time.monotonic() > deadline:
            for p in ranks:
                p.kill()
        _show(follow)
        time.sleep(POLL)
    if not told.times and deadline is None:  # all of them between two looks
        killed = describe_exit(ranks)
    _show(follow)
    codes = [p.returncode for p in ranks]
    failed = any(c > 0 and c != EXIT_PREEMPTED for c in codes)
    if told.times and not (
        failed and told.times == 1
    ):  # a rank that failed while it left says why itself
        raise Interrupted(
            "saved" if set(codes) <= {0, EXIT_PREEMPTED} else "stopped without saving"
        )
    # a mistake that a person can mend explains the deaths of the other ranks
    return 2 if 2 in codes else next((c for c in codes if c), 0), killed


def _show(follow: Callable[[], None]) -> None:
    """Move the bar. What it is fed from may be damaged, or out of reach for a while: that ends no training."""
    with suppress(OSError, ValueError, UserError):
        follow()


def describe_exit(ranks: list[subprocess.Popen[bytes]]) -> str | None:
    """Words for the first rank that a signal ended, if one did."""
    rank = next((r for r, p in enumerate(ranks) if (p.poll() or 0) < 0), None)
    if rank is None:
        return None
    name = signal.Signals(-ranks[rank].returncode).name
    hints = {
        "SIGKILL": ", as by the kernel when memory runs out",
        "SIGABRT": f", as by itself when it hangs (stacks-rank{rank}.txt, if it does)",
    }
    return f"rank {rank} was ended by {name}{hints.get(name, '')}"


class SignalCounter:
    """Counts how often this process was told to stop, from its making until :meth:`restore`."""

    def __init__(self) -> None:
        self.times = 0
        self._before = {
            n: signal.signal(n, self._count)
            for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        }

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.times += 1

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def rank_environment(run: RunDir, rank: int, world: int, port: int) -> dict[str, str]:
    """What a rank on this machine finds in its environment: its place, and what :func:`run_environment` has."""
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    env = run_environment(run, threads=max(1, len(os.sched_getaffinity(0)) // world)) | place
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


def run_environment(run: RunDir, threads: int) -> dict[str, str]:
    """The environment of a rank wherever it runs: the run's own code, the compiled extension, and threads unless they are set."""
    env = dict(os.environ)
    here = Path(sys.executable).parent
    env["PYTHONPATH"] = os.pathsep.join([str(run.code), *filter(None, [env.get("PYTHONPATH")])])
    env["PATH"] = (
        f"{here}{os.pathsep}{env.get('PATH', '')}"  # ninja of this environment, not the system's
    )
    env.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    env.setdefault("OMP_NUM_THREADS", str(threads))
    return env


def free_port() -> int:
    """A TCP port on this machine that nobody listened on just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the launcher dies, so that a killed launcher leaves no ranks behind (they save first)."""
    _LIBC.prctl(1, signal.SIGTERM)
