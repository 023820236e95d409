"""``dfer bench step``, ``eval`` and ``save``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dfer_dist.products import Products
from launch.cli import app


def test_products_of_forward_and_backward_are_taken_down() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    x, y = torch.randn(3, 6), torch.randn(2, 3, 5, requires_grad=True)
    with Products() as taken:
        net(x).sum().backward()
        (y @ y.transpose(1, 2)).sum().backward()
    first, second = 2 * 3 * 6 * 5, 2 * 3 * 5 * 4
    batched = 2 * 2 * 3 * 3 * 5
    assert taken.flops == 2 * first + 3 * second + 3 * batched  # nobody asks for the gradient of x
    assert sum(taken.counts.values()) == 5 + 3
    assert taken.seconds(torch.device("cpu")) > 0


@pytest.mark.engine_full
def test_the_commands_tell_what_they_measured(tmp_path: Path) -> None:
    file, small = tmp_path / "x.json", ["demo", "data.shards=dfew", "data.num_frames=2", "eval.batch=4"]
    done = CliRunner().invoke(app, ["bench", "eval", *small, "--rounds", "1", "--json", str(file)], catch_exceptions=False)
    figures = json.loads(file.read_text())
    assert "times as many as in training" in done.output
    for kind in (figures, figures["training"]):
        assert all(kind[way]["seconds"] > 0 and kind[way]["clips_per_s"] > 0 for way in ("ours", "floor", "baseline"))
        assert kind["ours"]["peak_bytes"] > 0 and kind["flops"] > 0
    assert figures["floor"]["seconds"] < figures["ours"]["seconds"]
    assert figures["training"]["flops"] > 2 * figures["flops"], "four clips each: forward and backward, and forward alone"


@pytest.mark.engine_full
def test_a_start_and_a_start_again_are_timed(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    done = CliRunner().invoke(app, ["bench", "startup", "--rounds", "1", "--json", str(file)], catch_exceptions=False)
    assert "to its first step" in done.output
    seconds = {name: row["seconds"] for name, row in json.loads(file.read_text()).items() if name != "version"}
    assert set(seconds) == {"ours", "again", "floor", "baseline"}
    assert min(seconds["ours"], seconds["again"]) > seconds["floor"] > 0.5


@pytest.mark.engine_full
def test_a_save_tells_how_long_training_waits(tmp_path: Path) -> None:
    file, small = tmp_path / "x.json", ["demo", "data.shards=dfew", "--into", str(tmp_path)]
    CliRunner().invoke(app, ["bench", "save", *small, "--rounds", "1", "--json", str(file)], catch_exceptions=False)
    figures = json.loads(file.read_text())
    ours = figures["ours"]
    assert 0 < ours["held_seconds"] < ours["seconds"] and ours["bytes"] > 4 * 3 * 200_000, "weights and two moments"
    assert figures["floor"]["seconds"] < ours["seconds"] and figures["baseline"]["seconds"] > 0
    assert not list(tmp_path.glob("tmp*")), "nothing is left behind"
