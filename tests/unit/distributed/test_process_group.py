"""Which device a rank computes on (that there are GPUs is pretended here; tests/gpu has a real one), and how ranks average gradients."""

from __future__ import annotations

import pytest
import torch

from dfer_dist.config.schema import Device
from dfer_dist.distributed.process_group import choose_device
from dfer_dist.utils.errors import UserError
from tests.helpers.paths import HELPERS
from tests.helpers.spawn import run_ranks


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert choose_device(Device.auto, 1) == torch.device("cuda", 1)
    with pytest.raises(
        UserError, match=r"rank 2 .* torch sees 2: use --nproc 2 or train.device=cpu"
    ):
        choose_device(Device.auto, 2)
    assert choose_device(Device.cpu, 2) == torch.device("cpu")


def test_a_gpu_that_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no GPU: use train.device=auto"):
        choose_device(Device.cuda)
    assert choose_device(Device.auto) == torch.device("cpu")


def test_gradients_are_averaged_over_ranks_bucket_by_bucket() -> None:
    """Two real ranks; 280 numbers in buckets of 100, to bf16's rounding: both roundings are 0.4 % of a rank's own number at most."""
    seen = run_ranks(HELPERS / "averaging.py", 2)
    assert 0 < seen["off"] < 0.02 < seen["largest"]


def test_gradients_are_those_of_the_last_step_alone() -> None:
    """Two steps of two micro batches; the second leaves a layer out, whose gradient of the first one must not stay."""
    seen = run_ranks(HELPERS / "kept_gradients.py", 1)
    assert min(seen["both"]) > 0 and min(seen["one"][:2]) > 0 and max(seen["one"][2:]) == 0
    assert seen["off"] < 0.01 * seen["largest"]
    assert (
        seen["frozen"] == 0 and not seen["compiler"]
    )  # what starts in less time leaves the collector as it was
