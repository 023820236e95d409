"""TFLOP/s of a rank and model FLOPs utilization."""

from __future__ import annotations

import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.models.flops import model_flops
from dfer_dist.training.speed import utilization
from dfer_dist.training.speed.utilization import Utilization, measure_peak


def make(device: str = "cpu", precision: str = "bf16", world_size: int = 2) -> Utilization:
    settings = ["data.shards=x", "model.temporal=mean", f"train.precision={precision}"]
    config = load_config("demo", settings)
    return Utilization(config, SEVEN, Ranks(0, world_size, 0, torch.device(device)))


def test_utilization_is_operations_by_seconds_by_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks share 32 clips: each does half of 40 clips a second."""
    monkeypatch.setattr(utilization, "device_name", lambda _: "Tesla T4")
    seen = make("cuda", "fp16")
    flops_per_clip = model_flops(seen.config, SEVEN, 16, train=True) / 16
    assert seen.metrics(40.0) == pytest.approx(
        {"tflops": flops_per_clip * 20 / 1e12, "mfu": flops_per_clip * 20 / 65e12}
    )


def test_gpu_that_is_not_in_the_table_has_no_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilization, "device_name", lambda _: "NVIDIA H20")
    seen = make("cuda")
    assert seen.metrics(40.0).keys() == {"tflops"}
    seen.flops_per_clip = 3e12
    assert seen.text(1.0) == "1.5 TFLOP/s"


def test_line_of_the_log_has_both() -> None:
    seen = make()
    seen.flops_per_clip, seen.peak = 3e12, 6e12
    assert seen.text(1.0) == "1.5 TFLOP/s, MFU 25%"


def test_peak_of_a_processor_is_that_of_its_fastest_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([0.0, 9.0, 9.0, 9.0, 9.0, 9.5, 20.0])
    monkeypatch.setattr(utilization.time, "perf_counter", lambda: next(ticks))
    assert measure_peak(torch.float32) == 2 * 512**3 / 0.5
