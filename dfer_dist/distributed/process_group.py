"""The ranks of a job: process group, device and a few collectives."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from dfer_dist.config.schema import Device, Precision
from dfer_dist.distributed import flight_recorder
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import cpu_model, peak_resident_bytes
from dfer_dist.utils.hosts import expand_host_list

T = TypeVar("T")

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# The compute capability from which on GPUs compute in bf16 themselves.
FAST_BF16 = (8, 0)

_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


@dataclass(frozen=True)
class Ranks:
    """The place of this process among the ``world_size`` processes of a job.

    Collective methods must be called by all of them.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def local_ranks(self) -> range:
        """The ranks on this node."""
        first = self.rank - self.local_rank
        return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Return elementwise sums over ranks. Collective."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast_object(self, value: T) -> T:
        """Return rank 0's value on every rank. Collective."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def gather_objects(self, value: T) -> list[T] | None:
        """Return every rank's value in rank order on rank 0, None elsewhere. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values, dst=0)
        return values


def export_rank_variables() -> None:
    """Set the variables that torch and DeepSpeed read from Slurm's own ones.

    These are RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Nothing
    changes where RANK is set. Without any of them this is a job of one process. Where one is
    missing, DeepSpeed imports mpi4py.
    """
    if "RANK" in os.environ:
        return
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_NODELIST" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        # Those of the user's shell are another job's.
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        return
    for name, slurm_name in _SLURM.items():
        os.environ[name] = os.environ[slurm_name]
    # Slurm writes the tasks of each node as 4(x2) or 4,2.
    tasks_per_node = os.environ.get("SLURM_TASKS_PER_NODE", "1")
    os.environ["LOCAL_WORLD_SIZE"] = re.split(r"[(,]", tasks_per_node)[0]
    hosts = expand_host_list(os.environ["SLURM_JOB_NODELIST"])
    os.environ.setdefault("MASTER_ADDR", hosts[0])
    # All ranks derive one port from the job id, so jobs on one node do not collide. It is below
    # the ports that Linux assigns by itself.
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 12000))


def choose_device(device: Device, local_rank: int = 0) -> torch.device:
    """Return the device to compute on, and make DeepSpeed use the same.

    DeepSpeed reads the variable DS_ACCELERATOR, set here, when it is imported.

    Raises
    ------
    UserError
        If a GPU is requested, by ``device`` or from Slurm, and torch sees none, or if there are
        fewer GPUs than ranks.
    """
    is_available = torch.cuda.is_available()
    if device is Device.cuda and not is_available:
        raise UserError(
            f"train.device=cuda, but torch sees no GPU ({describe_gpu_setup()}): use "
            "train.device=auto"
        )
    if device is Device.auto and not is_available and _has_gpus_of_slurm():
        raise UserError(
            f"this job has GPUs on {socket.gethostname()}, and torch sees none "
            f"({describe_gpu_setup()}): look at nvidia-smi there, or set train.device=cpu"
        )
    use_cuda = is_available and device is not Device.cpu
    os.environ["DS_ACCELERATOR"] = "cuda" if use_cuda else "cpu"
    if not use_cuda:
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    in_slurm = "SLURM_PROCID" in os.environ
    # Slurm may show each task its own GPU only (--gpus-per-task, --gpu-bind). Ranks that a command
    # starts on this machine all see the same.
    if num_gpus == 1 and (in_slurm or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1):
        return torch.device("cuda", 0)
    if local_rank >= num_gpus:
        remedy = f"--nproc {num_gpus}"
        if in_slurm:
            remedy = f"cluster.gpus_per_node={num_gpus}, or as many tasks as GPUs on a node,"
        raise UserError(
            f"rank {local_rank} of this machine has no GPU, torch sees {num_gpus}: "
            f"use {remedy} or train.device=cpu"
        )
    return torch.device("cuda", local_rank)


def _has_gpus_of_slurm() -> bool:
    """Return whether Slurm gave this job GPUs on this node."""
    names = ("SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)


def describe_gpu_setup() -> str:
    """Return what decides whether torch sees GPUs: driver, torch's build, visible devices."""
    driver = "none"
    with suppress(OSError):
        found = re.search(r"\d+(\.\d+)+", Path("/proc/driver/nvidia/version").read_text())
        driver = found[0] if found else "unknown"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    return f"driver {driver}, torch is built for {build}, CUDA_VISIBLE_DEVICES {visible}"


def precision_fault(precision: Precision, device: torch.device) -> str | None:
    """Return why a device cannot train in a precision, and what to set; None if it can.

    GPUs before compute capability 8.0 emulate bf16 slowly. Few processors compute in float16; on
    others DeepSpeed refuses it.
    """
    if device.type == "cpu":
        if precision is not Precision.fp16 or torch.ops.mkldnn._is_mkldnn_fp16_supported():
            return None
        return "train.precision=fp16 needs a GPU: set train.precision=bf16 or fp32"
    capability = torch.cuda.get_device_capability(device)
    if precision is not Precision.bf16 or capability >= FAST_BF16:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}."
        f"{capability[1]}) has no bf16 of its own: set train.precision=fp16"
    )


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_model() or device.type


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has used at once.

    On a GPU these are the bytes allocated by torch. On the CPU they are the resident set, imported
    libraries included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def init_distributed(device: Device, hang_seconds: float = 600.0) -> Ranks:
    """Join the process group: NCCL on GPUs, gloo on the CPU.

    Parameters
    ----------
    device : Device
    hang_seconds : float
        Time after which a rank counts as hanging; collective calls time out a minute later.

    Raises
    ------
    UserError
        If a GPU is requested and there is none.
    """
    export_rank_variables()
    local_rank = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        flight_recorder.enable()
        torch.cuda.set_device(chosen)
        # The data loader is made before the model and asks whether this process uses a GPU.
        torch.cuda.init()
    else:
        _keep_freed_memory()
    timeout = timedelta(seconds=hang_seconds + 60)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, chosen)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory.

    By default it returns the memory of each activation to the kernel and fetches it again, page by
    page, in every step. Measured on a CPU with AMX: 1.61 s a step instead of 1.66 s. Does nothing
    where MALLOC_MMAP_THRESHOLD_ is set, as by ``dfer plan --measure``.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def exit_process(status: int) -> NoReturn:
    """End the loader workers, run the exit functions, and end this process at once.

    Python does not finalize the interpreter: a rank with a gloo group was seen to abort in that
    now and then ("terminate called without an active exception"), after all had gone well. Likely
    a thread of gloo asks for the interpreter then, and Python 3.11 ends it in the midst of C++
    code. The process group is not destroyed: that waits for ever for a collective whose peer has
    died.
    """
    # torch's handler would raise when the loader workers end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # They ignore SIGTERM, with which an exit function would end them and then wait.
    for worker in multiprocessing.active_children():
        worker.kill()
    # A signal would end the process with a status that asks for another start.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
