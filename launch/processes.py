"""The ranks of a fold as processes on this machine."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.provenance import resolved_python_command
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import extensions_dir

EXIT_USER_ERROR = 2  # of a rank and of a command
# loaded here: between fork and exec a process must not load anything
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_PLACE = re.compile("((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|LOCAL_SIZE|TORCHELASTIC_.*")
_POLL = 0.2  # seconds
_GRACE = 15.0  # seconds that the other ranks get after one has failed


class Interrupted(Exception):
    """A signal or the time limit stopped the command, and all ranks have ended.

    The message says whether they saved.
    """


class RanksExit(NamedTuple):
    """How the ranks of a fold ended."""

    status: int  # of the rank that failed, 0 if none did
    killed: str | None  # describes the rank that a foreign signal ended, if one was


class Signals(Protocol):
    """How many signals have asked for a fold to stop."""

    @property
    def count(self) -> int:
        """The second one ends its ranks at once."""


@dataclass(frozen=True)
class FoldJob:
    """A fold to train on this machine."""

    run: RunDir
    fold: int
    num_ranks: int
    deadline: float | None  # Unix time
    signals: Signals
    trial: int | None = None  # of a search, which it is shown as
    variables: dict[str, str] = field(default_factory=dict)  # of the ranks' environment

    @property
    def row(self) -> int:
        """Return its row in a table of folds, or of trials."""
        if self.trial is None:
            return self.fold
        return self.trial

    @property
    def folder(self) -> FoldDir:
        """Return the paths of the fold."""
        return self.run.fold(self.fold)


class SignalCounter:
    """Counts SIGINT, SIGTERM and SIGUSR2 to this process until :meth:`restore`."""

    def __init__(self) -> None:
        self.count = 0
        self._handlers = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        }

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def restore(self) -> None:
        """Set the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def run_ranks(job: FoldJob, lock_fd: int, follow: Callable[[], None]) -> RanksExit:
    """Start the ranks of a fold and wait for them.

    Parameters
    ----------
    lock_fd : int
        Of the lock on the fold, inherited by the ranks.
    follow : callable
        Called again and again while they run.

    Raises
    ------
    Interrupted
        If a signal stopped this process.
    """
    arguments = ["dfer_dist.train", "--run", str(job.run.root), "--fold", str(job.fold)]
    if job.deadline:
        arguments += ["--deadline", str(job.deadline)]
    options = {
        # Ctrl-C reaches this process only, which forwards it once
        "start_new_session": True,
        "preexec_fn": _die_with_parent,
        "pass_fds": (lock_fd,),
    }
    with started_ranks(
        arguments, job.run, job.folder, job.num_ranks, job.variables, **options
    ) as ranks:
        return wait_for_ranks(ranks, job.signals, follow)


@contextmanager
def started_ranks(
    arguments: list[str],
    run: RunDir,
    fold: FoldDir,
    world_size: int,
    variables: dict[str, str],
    **options: Any,
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield the processes of all ranks, and kill those that are left at the end.

    Parameters
    ----------
    arguments : list of str
        A module and its arguments.
    fold : FoldDir
        Where the logs of the ranks are.
    variables : dict
        More variables of their environment.
    **options
        Of :class:`subprocess.Popen`.
    """
    command, port = [*resolved_python_command(), "-m", *arguments], free_port()
    with ExitStack() as stack:
        ranks = []
        for rank in range(world_size):
            log = stack.enter_context(fold.log_of(rank).open("ab"))
            env = rank_environment(run, rank, world_size, port) | variables
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, **options)
            stack.callback(process.wait)
            stack.callback(process.kill)
            ranks.append(process)
        yield ranks


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the launcher dies, so that its ranks save and exit."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_for_ranks(
    ranks: Sequence[subprocess.Popen[bytes]], signals: Signals, follow: Callable[[], None]
) -> RanksExit:
    """Wait for the ranks of a fold, forward signals to them, and end those that outlive a failure.

    The first signal to this process is forwarded as SIGTERM, a second one as SIGKILL.

    Raises
    ------
    Interrupted
        If a signal stopped this process, unless a rank failed while it stopped.
    """
    num_forwarded = 0
    killed: str | None = None
    kill_time: float | None = None
    is_running = True
    while is_running:
        time.sleep(_POLL)
        is_running = any(process.poll() is None for process in ranks)
        if signals.count > num_forwarded:
            num_forwarded = signals.count
            _send_signal(ranks, signal.SIGTERM if num_forwarded == 1 else signal.SIGKILL)
        failed = any(process.poll() not in (None, 0, EXIT_PREEMPTED) for process in ranks)
        # only the first death is a cause: the other ranks fail because of it
        if not signals.count and kill_time is None:
            killed = describe_exit(ranks)
        if failed and kill_time is None:
            kill_time = time.monotonic() + _GRACE
        if kill_time and time.monotonic() > kill_time:
            _send_signal(ranks, signal.SIGKILL)
        # damaged or unreachable files of the fold end no training
        with suppress(OSError, ValueError, UserError):
            follow()
    return RanksExit(_exit_status([process.returncode for process in ranks], signals.count), killed)


def _exit_status(codes: list[int], num_signals: int) -> int:
    """Return the status of the rank that failed, or raise :class:`Interrupted`."""
    failed = any(code > 0 and code != EXIT_PREEMPTED for code in codes)
    # a rank that failed while it stopped has its own message
    if num_signals and not (failed and num_signals == 1):
        saved = set(codes) <= {0, EXIT_PREEMPTED}
        raise Interrupted("saved" if saved else "stopped without saving")
    # an error that the user can fix explains the deaths of the other ranks
    if EXIT_USER_ERROR in codes:
        return EXIT_USER_ERROR
    return next((code for code in codes if code), 0)


def _send_signal(ranks: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in ranks:
        process.send_signal(number)


def describe_exit(ranks: Sequence[subprocess.Popen[bytes]]) -> str | None:
    """Describe the first rank that a signal ended, if one did."""
    rank = next((i for i, process in enumerate(ranks) if (process.poll() or 0) < 0), None)
    if rank is None:
        return None
    name = signal.Signals(-ranks[rank].returncode).name
    hints = {
        "SIGKILL": ", as by the kernel when memory runs out",
        "SIGABRT": f", as by itself when it hangs (see stacks-rank{rank}.txt, if it exists)",
    }
    return f"rank {rank} was ended by {name}{hints.get(name, '')}"


def rank_environment(run: RunDir, rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the environment of a rank on this machine, with what ``torch.distributed`` reads."""
    threads = max(1, len(os.sched_getaffinity(0)) // world_size)
    env = run_environment(run, threads) | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


def run_environment(run: RunDir, threads: int) -> dict[str, str]:
    """Return the environment of a rank on any machine.

    It has the run's own code first on PYTHONPATH, ninja of this Python environment first on PATH,
    and the folder of compiled extensions and ``threads``, unless these are set.
    """
    # a rank's place is its own, whatever the user's shell or a node's profile says
    env = {k: v for k, v in os.environ.items() if not _PLACE.fullmatch(k)}
    python_path = [str(run.code), env.get("PYTHONPATH")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, python_path))
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env["TORCH_EXTENSIONS_DIR"] = str(extensions_dir())
    env.setdefault("OMP_NUM_THREADS", str(threads))
    return env


def free_port() -> int:
    """Return a TCP port of this machine on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
