"""``dfer bench step``, ``eval`` and ``save``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dfer_dist.bench.matrix_products import MatrixProducts
from dfer_dist.bench.step import Variant
from dfer_dist.config.load import load_config
from dfer_dist.data.sources.records import CLASSES
from dfer_dist.models.build import build_model
from dfer_dist.models.flops import model_flops
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import mfu, peak_flops
from launch.cli import app
from launch.commands.bench import _steps_table


def operations(recorded: MatrixProducts) -> int:
    return sum(2 * math.prod(p.left[0]) * p.right[0][-1] * n for p, n in recorded.counts.items())


def test_products_of_forward_and_backward_are_recorded() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    x, y = torch.randn(3, 6), torch.randn(2, 3, 5, requires_grad=True)
    with MatrixProducts() as recorded:
        net(x).sum().backward()
        (y @ y.transpose(1, 2)).sum().backward()
    first, second = 2 * 3 * 6 * 5, 2 * 3 * 5 * 4
    batched = 2 * 2 * 3 * 3 * 5
    # The gradient of x is not needed.
    assert operations(recorded) == 2 * first + 3 * second + 3 * batched
    assert sum(recorded.counts.values()) == 5 + 3
    assert recorded.seconds(torch.device("cpu")) > 0


@pytest.mark.parametrize("recompute", [False, True])
def test_flops_are_those_of_recorded_products(recompute: bool) -> None:
    kept = "model.checkpoint_temporal=false"
    config = load_config("demo", ["data.shards=dfew", "data.num_frames=3", kept])
    model, classes = build_model(config.model, CLASSES["dfew"], 3, 64), CLASSES["dfew"]
    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    with MatrixProducts() as recorded:
        model(frames).sum().backward()
    config.model.checkpoint_image = config.model.checkpoint_temporal = recompute
    assert model_flops(config, classes, 2, train=True) == operations(recorded)
    text = model.eval().text_features().detach()
    with MatrixProducts() as recorded:
        # Gradients are enabled, so attention is computed by plain products.
        model(frames, text)
    assert model_flops(config, classes, 2, train=False) == operations(recorded)


def test_mfu_uses_the_peak_of_the_exact_gpu() -> None:
    assert mfu(312e12 * 0.4 * 2, 2.0, "NVIDIA A100-SXM4-80GB", "bf16") == pytest.approx(0.4)
    peaks = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA L40S": 362,
        "NVIDIA A10": 125,
    }
    peaks |= {
        "NVIDIA A100 80GB PCIe": 312,
        "NVIDIA A100-PCIE-40GB": 312,
        "NVIDIA GeForce RTX 4090": 165,
    }
    assert {name: peak_flops(name, "bf16") for name in peaks} == {
        name: peak * 1e12 for name, peak in peaks.items()
    }
    for other in (
        "NVIDIA A10G",
        "NVIDIA H20",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "Tesla V100-SXM2-16GB",
        "Intel Xeon",
        "",
    ):
        assert mfu(1e12, 1.0, other, "bf16") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert peak_flops("Tesla T4", "fp16") == 65e12
    assert peak_flops("Tesla T4", "fp32") == 8.1e12
    row = {"seconds": 1.0, "clips_per_s": 4.0, "peak_bytes": 2**30}
    about = {
        "backbone": "b",
        "num_frames": 16,
        "image_size": 224,
        "device": "NVIDIA H200",
        "rounds": 5,
        "precision": "bf16",
    }
    for share, end in (
        (0.415, "41.5% of the GPU's bf16 peak (MFU)"),
        (None, "memory is the peak above the imports"),
    ):
        assert str(_steps_table({"mfu": share, "ours": row}, "step", about).caption).endswith(end)


def test_killed_process_raises_one_line(tmp_path: Path) -> None:
    variant = Variant(tmp_path, load_config("demo"), "ours")
    variant.process.kill()
    variant.process.wait()
    with pytest.raises(
        UserError, match="the measured process has died: without a word, as when memory"
    ):
        variant.call("train")
    variant.close()


@pytest.mark.engine_full
def test_eval_reports_all_variants_and_training(tmp_path: Path) -> None:
    file, small = (
        tmp_path / "x.json",
        ["demo", "data.shards=dfew", "data.num_frames=2", "eval.batch=4"],
    )
    done = CliRunner().invoke(
        app, ["bench", "eval", *small, "--rounds", "1", "--json", str(file)], catch_exceptions=False
    )
    results = json.loads(file.read_text())
    assert "times as many as in training" in done.output
    for kind in (results, results["training"]):
        for variant in ("ours", "floor", "baseline"):
            assert kind[variant]["seconds"] > 0
            assert kind[variant]["clips_per_s"] > 0
        assert kind["ours"]["peak_bytes"] > 0 and kind["flops"] > 0
        assert kind["mfu"] is None or torch.cuda.is_available()
    assert results["floor"]["seconds"] < results["ours"]["seconds"]
    # Four clips each: forward and backward, and forward alone.
    assert results["training"]["flops"] > 2 * results["flops"]


@pytest.mark.engine_full
def test_startup_times_first_start_and_restart(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    done = CliRunner().invoke(
        app, ["bench", "startup", "--rounds", "1", "--json", str(file)], catch_exceptions=False
    )
    assert "to its first step" in done.output
    seconds = {
        name: row["seconds"]
        for name, row in json.loads(file.read_text()).items()
        if name != "version"
    }
    assert set(seconds) == {"ours", "again", "floor", "baseline"}
    # One round on a busy machine: the lower bound may be above ours by chance, not by much.
    assert min(seconds["ours"], seconds["again"]) > seconds["floor"] / 2 > 0.25


@pytest.mark.engine_full
def test_save_reports_how_long_training_waits(tmp_path: Path) -> None:
    file, small = tmp_path / "x.json", ["demo", "data.shards=dfew", "--into", str(tmp_path)]
    CliRunner().invoke(
        app, ["bench", "save", *small, "--rounds", "1", "--json", str(file)], catch_exceptions=False
    )
    results = json.loads(file.read_text())
    ours = results["ours"]
    assert 0 < ours["held_seconds"] < ours["seconds"]
    # Weights and two moments.
    assert ours["bytes"] > 4 * 3 * 200_000
    assert results["floor"]["seconds"] < ours["seconds"] and results["baseline"]["seconds"] > 0
    assert not list(tmp_path.glob("tmp*")), "nothing is left behind"
