"""Checkpoints in the format of the authors' DFER-CLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from typer.testing import CliRunner

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.schema import Config, ModelConfig, TokenPosition
from dfer_dist.data.sources.records import ELEVEN, SEVEN
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.tuning import param_groups
from launch.cli import app

SIZES = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 128, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
}


OTHERS = [
    (ModelConfig(token_position=TokenPosition.front, context_tokens=5), SEVEN),
    (ModelConfig(token_position=TokenPosition.middle, temporal_layers=2), ELEVEN),
    (
        ModelConfig(
            class_specific=False,
            context_tokens=3,
            temporal_layers=3,
            temporal_heads=2,
            temporal_mlp=48,
        ),
        SEVEN,
    ),
]


def dfer(*args: object) -> str:
    """What a command prints, run in this process."""
    done = CliRunner().invoke(app, [str(w) for w in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def ours(folder: Path, settings: ModelConfig, classes: tuple[str, ...]) -> DFERCLIP:
    """Write a checkpoint folder of a random model, as training does, and return the model."""
    (folder.parent / "sizes.json").write_text(json.dumps(SIZES))
    model = replace(settings, backbone=str(folder.parent / "sizes.json"), pretrained="none")
    config = Config(model=model)
    config.data.shards, config.data.num_frames, config.data.image_size = "none", 4, 48
    torch.manual_seed(config.train.seed)
    built = build_model(model, classes, 4, 48)
    trained = {name: p for group in param_groups(built).values() for name, p in group}
    checksum = checkpoint.frozen_checksum(built, trained)
    with torch.no_grad():
        for p in trained.values():
            p += 0.05 * torch.randn_like(p)
    state = {
        "step": 7,
        "epoch": 3,
        "skipped_steps": 0,
        "fold": 2,
        "classes": list(classes),
        "frozen_sha256": checksum,
    }
    checkpoint.write(folder, {n: p.detach().clone() for n, p in trained.items()}, {}, config, state)
    return built.eval()
