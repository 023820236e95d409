"""The device a rank computes on; the GPUs are pretended here, tests/gpu has a real one."""

from __future__ import annotations

import pytest
import torch

from dfer_dist.config.schema import Device
from dfer_dist.distributed.process_group import choose_device
from dfer_dist.utils.errors import UserError


def test_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert choose_device(Device.auto, 1) == torch.device("cuda", 1)
    with pytest.raises(
        UserError, match=r"rank 2 .* torch sees 2: use --nproc 2 or train.device=cpu"
    ):
        choose_device(Device.auto, 2)
    assert choose_device(Device.cpu, 2) == torch.device("cpu")


def test_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no GPU: use train.device=auto"):
        choose_device(Device.cuda)
    assert choose_device(Device.auto) == torch.device("cpu")
