"""The processes of one job: who am I, on which device, and the few things all of us decide together."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from dfer_dist.config.schema import Device
from dfer_dist.utils.errors import UserError

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` processes. Collective methods must be called by all of them."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def local_ranks(self) -> range:
        """Ranks on this machine."""
        first = self.rank - self.local_rank
        return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over ranks."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_objects(self, value: T) -> list[T] | None:
        """Every rank's value in rank order on rank 0, None elsewhere."""
        if self.world == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, boxes, dst=0)
        return boxes


def export_rank_variables() -> None:
    """Set what torch and DeepSpeed read (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) from Slurm's own variables.

    Does nothing where RANK is set already. Without any of them this is a job of one process. DeepSpeed would otherwise look
    for mpi4py.
    """
    if "RANK" in os.environ:
        return
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        for name, slurm in _SLURM.items():
            os.environ[name] = os.environ[slurm]
        os.environ["LOCAL_WORLD_SIZE"] = re.split(
            r"[(,]", os.environ.get("SLURM_TASKS_PER_NODE", "1")
        )[0]  # such as 4(x2)
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        )
        os.environ.setdefault("MASTER_ADDR", hosts.stdout.split()[0])
        # jobs on one node must not meet: the port follows from the job id, which all ranks know; below those that Linux hands out
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 12000))
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")


def choose_device(device: Device, local_rank: int = 0) -> torch.device:
    """The device to compute on, told to DeepSpeed too, whose own guess ignores our setting and talks about it when imported.

    Raises
    ------
    UserError
        If a GPU is asked for and there is none, or fewer GPUs than ranks.
    """
    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU: use train.device=auto")
    use_cuda = torch.cuda.is_available() and device is not Device.cpu
    os.environ["DS_ACCELERATOR"] = "cuda" if use_cuda else "cpu"
    if use_cuda:
        there = torch.cuda.device_count()
        if local_rank >= there:
            raise UserError(
                f"rank {local_rank} of this machine has no GPU, torch sees {there}: use --nproc {there} or train.device=cpu"
            )
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What a person calls a device: a GPU's model, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        device.type,
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has used at once: of the GPU, or of main memory, where imports count too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def start(device: Device, hang_seconds: float = 600.0) -> Ranks:
    """Join the process group: NCCL on GPUs, gloo on the CPU.

    Parameters
    ----------
    hang_seconds : float
        After which a rank counts as hanging; a collective call gives up a minute later.

    Raises
    ------
    UserError
        If a GPU is asked for and there is none.
    """
    export_rank_variables()
    where = choose_device(device, int(os.environ["LOCAL_RANK"]))
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.cuda.init()  # the clips' stream, begun before there is a model, asks whether this process computes on a GPU
    else:
        _keep_memory()
    timeout = timedelta(seconds=hang_seconds + 60)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timeout)
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]), where)


def _keep_memory() -> None:
    """Have glibc keep freed memory, which it would give back and fetch afresh, page by page, for each activation of each step.

    Where the environment says otherwise (``dfer plan --measure`` does), that stands.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def leave(status: int) -> NoReturn:
    """End this process with what has to be done at exit, but without taking the interpreter down.

    Seen three times on busy cores, in two-rank tests and once with plain torch: after all had gone well, a process was aborted at its end
    ("terminate called without an active exception"). The likely cause, not proven: gloo's threads hold the tensors of the last collective for a
    moment after it has returned, and Python 3.11 ends a thread that asks for the interpreter while that goes down in the midst of C++ code.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for worker in multiprocessing.active_children():
        worker.kill()  # they ignore SIGTERM, by which an exit function would end and then wait for them
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
