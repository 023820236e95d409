"""The device a rank computes on; the GPUs are pretended here, tests/gpu has a real one."""

from __future__ import annotations

import os

import pytest
import torch

from dfer_dist.config.schema import Device, Precision
from dfer_dist.distributed import flight_recorder
from dfer_dist.distributed.process_group import (
    choose_device,
    export_rank_variables,
    precision_fault,
)
from dfer_dist.utils.errors import UserError


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start outside of any job, and restore what the product sets."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in (*names, *(n for n in os.environ if n.startswith("SLURM_"))):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def show_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, 2)
    assert choose_device(Device.auto, 1) == torch.device("cuda", 1)
    with pytest.raises(
        UserError, match=r"rank 2 .* torch sees 2: use --nproc 2 or train.device=cpu"
    ):
        choose_device(Device.auto, 2)
    assert choose_device(Device.cpu, 2) == torch.device("cpu")


def test_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match=r"no GPU \(driver .*: use train.device=auto"):
        choose_device(Device.cuda)
    assert choose_device(Device.auto) == torch.device("cpu")


@pytest.mark.parametrize("local_rank", [0, 1, 3])
def test_only_gpu_of_a_task_is_the_first_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, local_rank: int
) -> None:
    """Slurm binds a GPU to each task (--gpus-per-task); they all call it cuda:0."""
    show_gpus(monkeypatch, 1)
    assert choose_device(Device.auto, local_rank) == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_device(Device.cuda, local_rank) == torch.device("cuda", 0)


def test_ranks_of_a_command_do_not_share_its_only_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--nproc 1"):
        choose_device(Device.auto, 1)


def test_advice_in_a_job_is_for_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, 2)
    monkeypatch.setenv("SLURM_PROCID", "2")
    with pytest.raises(UserError, match=r"cluster\.gpus_per_node=2"):
        choose_device(Device.auto, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_GPUS_ON_NODE", "2"), ("SLURM_STEP_GPUS", "0"), ("SLURM_JOB_GPUS", "0,1")],
)
def test_gpus_of_a_job_that_torch_does_not_see_are_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A broken driver, or a build for the CPU: the fold must not train on the processor."""
    show_gpus(monkeypatch, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    if value == "0":
        # the number of the GPU
        value = "0,"
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"driver .* built for .* CUDA_VISIBLE_DEVICES 0,1"):
        choose_device(Device.auto)
    assert choose_device(Device.cpu) == torch.device("cpu")


@pytest.mark.parametrize("value", [None, "", "0"])
def test_job_without_gpus_uses_the_processor(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    show_gpus(monkeypatch, 0)
    if value is not None:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", value)
    assert choose_device(Device.auto) == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "is_slow"), [((7, 0), True), ((7, 5), True), ((8, 0), False)]
)
def test_gpu_without_bf16_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_slow: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    gpu = torch.device("cuda", 0)
    fault = precision_fault(Precision.bf16, gpu)
    assert bool(fault) == is_slow
    assert not is_slow or "set train.precision=fp16" in str(fault)
    assert precision_fault(Precision.fp32, gpu) is None
    assert precision_fault(Precision.fp16, gpu) is None


@pytest.mark.parametrize("has_units", [False, True])
def test_fp16_on_a_processor_needs_its_units(
    monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: has_units)
    cpu = torch.device("cpu")
    fault = precision_fault(Precision.fp16, cpu)
    assert (fault is None) == has_units
    assert has_units or "needs a GPU: set train.precision=bf16 or fp32" in str(fault)
    assert precision_fault(Precision.bf16, cpu) is None


def test_single_process_has_an_address_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier session left in the shell."""
    monkeypatch.setenv("MASTER_ADDR", "10.255.255.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    export_rank_variables()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "0")


def test_rank_takes_its_place_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cluster file sets on purpose, as MASTER_PORT, counts."""
    job = {"JOB_ID": "12345", "PROCID": "3", "LOCALID": "1", "NTASKS": "4"}
    job |= {"TASKS_PER_NODE": "2(x2)", "STEP_NODELIST": "n1,n2", "JOB_NODELIST": "n1,n2"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    export_rank_variables()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["3", "1", "4", "2", "n1", "29500"]


@pytest.mark.parametrize("name", ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"])
def test_flight_recorder_keeps_the_size_of_the_user(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for known in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        monkeypatch.setenv(known, "")
        monkeypatch.delenv(known)
    monkeypatch.setenv(name, "7")
    before = dict(os.environ)
    flight_recorder.enable()
    assert dict(os.environ) == before
    monkeypatch.delenv(name)
    flight_recorder.enable()
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "2000"
