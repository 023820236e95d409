"""Folds on this machine, one after the other: each as N ranks, with a progress bar fed from the fold's own files."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dfer_dist import UserError
from dfer_dist.preempt import EXIT_PREEMPTED
from dfer_dist.provenance import python_command
from dfer_dist.rundir import FoldDir, RunDir, read_json

_POLL = 0.2  # seconds
_GRACE = 15.0  # seconds that the other ranks get after one has failed


class Interrupted(Exception):
    """The person, or the system, told us to stop, and the ranks have left; the text says whether they saved."""


def run_folds(run: RunDir, folds: list[int], nproc: int, console: Console) -> list[int]:
    """Train and test folds that have no result yet; returns those that failed.

    Raises
    ------
    UserError
        If a fold stopped for a mistake that a person can mend; the other folds would stop for it too.
    Interrupted
        After Ctrl-C or SIGTERM, once all ranks have saved and left.
    """
    failed = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        for fold in folds:
            where = run.fold(fold)
            task = progress.add_task(f"fold {fold}", total=None, figures="")
            if where.result.exists():
                progress.update(task, total=1, completed=1, figures=_verdict(where) + ", kept")
                continue
            progress.update(task, figures="starting")
            earlier = {log: log.stat().st_size for log in where.root.glob("log*.txt")}
            with _locked(where):
                code, killed = _run_ranks(run, fold, nproc, _Follower(where, progress, task))
            if code == 0:
                progress.update(task, figures=_verdict(where))
                if not console.is_terminal:
                    console.print(f"fold {fold}: {_verdict(where)}")
                continue
            line = killed or _last_error(where, earlier)
            if code == 2:
                raise UserError(line)
            progress.update(task, figures="failed")
            console.print(
                f"fold {fold} failed (status {code}): {line}; its log is {where.log}", style="red", markup=False, soft_wrap=True
            )
            failed.append(fold)
    return failed


def rank_environment(run: RunDir, rank: int, world: int, port: int) -> dict[str, str]:
    """What a rank on this machine finds in its environment: its place, the run's own code, and the compiled extension."""
    env = dict(os.environ)
    here = Path(sys.executable).parent
    env |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    env["PYTHONPATH"] = os.pathsep.join([str(run.code), *filter(None, [env.get("PYTHONPATH")])])
    env["PATH"] = f"{here}{os.pathsep}{env.get('PATH', '')}"  # ninja of this environment, not the system's
    env.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // world)))
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


@contextmanager
def _locked(fold: FoldDir) -> Iterator[None]:
    """Hold a fold for this command; the kernel lets go when the process ends, however it ends."""
    fold.root.mkdir(parents=True, exist_ok=True)
    with (fold.root / ".lock").open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"another command is working on {fold.root}: wait for it, or stop it") from e
        yield


def _run_ranks(run: RunDir, fold: int, nproc: int, follow: Callable[[], None]) -> tuple[int, str | None]:
    """Start the ranks of a fold and wait for them; returns what :func:`_wait` does."""
    where = run.fold(fold)
    port = free_port()
    command = [*python_command(), "-m", "dfer_dist.train", "--run", str(run.root), "--fold", str(fold)]
    ranks: list[subprocess.Popen[bytes]] = []
    logs: list[IO[bytes]] = []
    told = _Told()
    try:
        for rank in range(nproc):
            log: IO[bytes] = (where.log if rank == 0 else where.log.with_name(f"log-rank{rank}.txt")).open("ab")
            logs.append(log)
            env = rank_environment(run, rank, nproc, port)
            # a session of their own: Ctrl-C reaches this process only, which passes it on once
            process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_parent
            )
            ranks.append(process)
        return _wait(ranks, told, follow)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        for log in logs:
            log.close()
        told.restore()


def _wait(ranks: list[subprocess.Popen[bytes]], told: _Told, follow: Callable[[], None]) -> tuple[int, str | None]:
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
        if not killed and not told.times and deadline is None:
            killed = next((_epitaph(rank, p) for rank, p in enumerate(ranks) if (p.returncode or 0) < 0), None)
        if bad and deadline is None:
            deadline = time.monotonic() + _GRACE
        if deadline and time.monotonic() > deadline:
            for p in ranks:
                p.kill()
        follow()
        time.sleep(_POLL)
    follow()
    codes = [p.returncode for p in ranks]
    if told.times:
        raise Interrupted("saved" if set(codes) <= {0, EXIT_PREEMPTED} else "stopped without saving")
    # a mistake that a person can mend explains the deaths of the other ranks
    return 2 if 2 in codes else next((c for c in codes if c), 0), killed


def _epitaph(rank: int, process: subprocess.Popen[bytes]) -> str:
    name = signal.Signals(-process.returncode).name
    return f"rank {rank} was ended by {name}" + (", as by the kernel when memory runs out" if name == "SIGKILL" else "")


class _Told:
    """Counts how often this process was told to stop."""

    def __init__(self) -> None:
        self.times = 0
        self._before = {n: signal.signal(n, self._count) for n in (signal.SIGINT, signal.SIGTERM)}

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.times += 1

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Follower:
    """Moves a progress bar to what the fold's files say."""

    def __init__(self, fold: FoldDir, progress: Progress, task: Any) -> None:
        self.fold, self.progress, self.task = fold, progress, task
        self.offset = 0
        self.seen: dict[str, float] = {}
        self.known_steps = False

    def __call__(self) -> None:
        if not self.known_steps and self.fold.status.exists():
            status = read_json(self.fold.status)
            if status["state"] == "RUNNING":
                self.known_steps = True
                self.progress.update(self.task, total=status["steps"])
        if not self.known_steps or not self.fold.metrics.exists():
            return
        if self.fold.metrics.stat().st_size < self.offset:
            self.offset = 0  # a resumed fold wrote the file anew
        with self.fold.metrics.open("rb") as f:
            f.seek(self.offset)
            text = f.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            self.seen |= json.loads(line)
        if whole:
            self.progress.update(self.task, completed=self.seen["step"], figures=self._figures())

    def _figures(self) -> str:
        parts = [f"loss {self.seen['loss']:.2f}"] if "loss" in self.seen else []
        parts += [
            f"{name} {self.seen[key]:.1f}" for key, name in (("val_war", "val WAR"), ("test_war", "WAR")) if key in self.seen
        ]
        parts += [f"{self.seen['clips_per_second']:.0f} clips/s"] if "clips_per_second" in self.seen else []
        return "  ".join(parts)


def _verdict(fold: FoldDir) -> str:
    result = read_json(fold.result)
    return f"UAR {result['uar']:.2f}  WAR {result['war']:.2f}"


def _last_error(fold: FoldDir, earlier: dict[Path, int]) -> str:
    """The line that says why an attempt failed; ``earlier`` has the bytes that earlier attempts left in each log."""
    new = [log.read_bytes()[earlier.get(log, 0) :] for log in sorted(fold.root.glob("log*.txt"))]
    lines = [line for text in new for line in text.decode(errors="replace").splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else (lines[-1] if lines else "it wrote nothing")


def fast_bf16() -> bool:
    """Whether bf16 is no slower than float32 here: on a GPU, or a processor with AVX-512, AMX or Arm's bf16 instructions.

    Without them torch emulates: the demo's model trained at 8 clips/s against 100 in float32 (measured with oneDNN held to
    AVX2).
    """
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return not {"avx512f", "amx_bf16", "bf16"}.isdisjoint(cpu.split())


def free_port() -> int:
    """A TCP port on this machine that nobody listened on just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the launcher dies, so that a killed launcher leaves no ranks behind (they save first)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
