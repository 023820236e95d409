"""GPUs of this machine as commands see them; they are pretended here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfer_dist.utils.errors import UserError
from launch import local
from launch.commands.train import demo

_FILES = [Path("/dev/nvidia0"), Path("/dev/nvidia1")]


def show_gpus(
    monkeypatch: pytest.MonkeyPatch, files: list[Path], *capabilities: tuple[int, int]
) -> None:
    """Pretend device files, and GPUs that torch may use."""
    monkeypatch.setattr(local, "gpus_here", lambda: files)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(local, "cpu_flags", lambda: {"avx512f"})


@pytest.mark.parametrize(
    ("files", "capabilities", "expected"),
    [
        ([], [], 0),
        # of another job on this node, or without a driver
        (_FILES, [], 0),
        # CUDA_VISIBLE_DEVICES names one of two
        (_FILES, [(9, 0)], 1),
        (_FILES, [(9, 0), (9, 0)], 2),
    ],
)
def test_gpus_are_those_that_torch_may_use(
    monkeypatch: pytest.MonkeyPatch,
    files: list[Path],
    capabilities: list[tuple[int, int]],
    expected: int,
) -> None:
    show_gpus(monkeypatch, files, *capabilities)
    assert local.count_gpus() == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([(7, 0)], False), ([(7, 5)], False), ([(9, 0), (7, 5)], False), ([(8, 0)], True)],
)
def test_bf16_is_fast_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[tuple[int, int]], expected: bool
) -> None:
    show_gpus(monkeypatch, _FILES, *capabilities)
    assert local.fast_bf16() == expected


def test_processor_decides_where_torch_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, _FILES)
    assert local.fast_bf16()
    monkeypatch.setattr(local, "cpu_flags", lambda: {"avx2"})
    assert not local.fast_bf16()


@pytest.mark.parametrize(
    ("capabilities", "ranks", "is_slow"),
    [([], 2, False), ([(7, 5)], 1, True), ([(9, 0)] * 4, 2, False)],
)
def test_demo_has_ranks_and_precision_for_the_gpus_that_torch_may_use(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    capabilities: list[tuple[int, int]],
    ranks: int,
    is_slow: bool,
) -> None:
    """Stop where the shares of the ranks are checked, before the clips are rendered."""
    show_gpus(monkeypatch, _FILES, *capabilities)
    settings = ["train.global_batch=6", f"train.micro_batch={6 // ranks + 1}"]
    with pytest.raises(UserError, match=f"multiple of {ranks} ranks x"):
        demo(overrides=settings, out=tmp_path / "out", runs=tmp_path / "runs")
    assert ("training in float32" in capsys.readouterr().out) == is_slow
