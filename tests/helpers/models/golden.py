"""Compare with recorded values of the authors' DFER-CLIP."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.schema import ModelConfig, TokenPosition
from dfer_dist.inference.official import read_official, to_ours
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.tokenizer import clip_tokenizer
from dfer_dist.models.towers.open_clip_models import build_clip
from dfer_dist.models.towers.text import TextTower
from dfer_dist.models.towers.tower import Backbone, BackboneInfo
from dfer_dist.models.tuning import param_groups
from tests.helpers.paths import HELPERS, SHARED
from tests.helpers.ranks.spawn import run_ranks

GOLDEN = Path(os.environ.get("DFER_GOLDEN", SHARED / "golden"))
CASES = sorted(p.name.removesuffix("_init.pth") for p in GOLDEN.glob("*_init.pth"))


def build(case: str) -> tuple[DFERCLIP, dict, dict[str, torch.Tensor]]:
    """Return the model with the checkpoint's weights, the JSON, and the authors' state."""
    recorded = json.loads((GOLDEN / f"{case}.json").read_text())
    state, clip = read_official(GOLDEN / f"{case}_init.pth"), recorded["clip"]
    sizes = {
        "embed_dim": clip["embed_dim"],
        "quick_gelu": clip["activation"] == "quick_gelu",
        "vision_cfg": {
            "patch_size": clip["patch_size"],
            "width": clip["vision_width"],
            "layers": clip["vision_layers"],
            "head_width": clip["vision_width"] // clip["vision_heads"],
        },
        "text_cfg": {
            "context_length": clip["context_length"],
            "vocab_size": clip["vocab_size"],
            "width": clip["text_width"],
            "heads": clip["text_heads"],
            "layers": clip["text_layers"],
        },
    }
    cfg = ModelConfig(
        context_tokens=recorded["contexts_number"],
        class_specific=recorded["class_specific_contexts"],
        token_position=TokenPosition[recorded["class_token_position"]],
        temporal_layers=recorded["temporal_layers"],
    )
    towers = build_clip(sizes, clip["image_size"])
    frames = np.load(GOLDEN / f"{case}_trajectory.npz")["frames"].shape[2]
    info = BackboneInfo("golden", clip["image_size"], (0,) * 3, (1,) * 3, has_text=True)
    backbone = Backbone(info, towers.visual, TextTower(towers), clip_tokenizer())
    texts = {"positive": [[text] for text in recorded["class_text"]]}
    model = DFERCLIP(cfg, backbone, texts, frames)
    model.load_state_dict(to_ours(state))
    return model, recorded, state


TOLERANCE = 1e-4


ENGINE = HELPERS / "ranks" / "golden_engine.py"


golden = pytest.mark.parametrize(
    "case",
    CASES
    or [
        pytest.param(
            "",
            marks=pytest.mark.skip(
                reason=f"no golden numbers in {GOLDEN}: set DFER_GOLDEN to their folder"
            ),
        )
    ],
)


def assert_equal(ours: np.ndarray | torch.Tensor, theirs: np.ndarray, what: str) -> None:
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert ours.shape == theirs.shape
    worst = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert worst <= TOLERANCE, f"{what}: {worst:.1e}"


@dataclass(frozen=True)
class Trajectory:
    """Logits [steps, B, C] and losses [steps] of a training run."""

    logits: np.ndarray
    losses: np.ndarray


def train(model: DFERCLIP, case: str, precision: torch.dtype = torch.float32) -> Trajectory:
    """Train by plain PyTorch as recorded: under autocast unless the precision is float32."""
    data = np.load(GOLDEN / f"{case}_trajectory.npz")
    groups = [
        {"params": [p for _, p in group], "lr": 0.0} for group in param_groups(model).values()
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
    logits, losses = [], []
    for step, frames in enumerate(data["frames"]):
        for group, rate in zip(optimizer.param_groups, data["lrs"][step], strict=True):
            group["lr"] = float(rate)
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            out = model(torch.from_numpy(frames))
            loss = F.cross_entropy(out, torch.from_numpy(data["labels"][step]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logits.append(out.detach().float().numpy())
        losses.append(loss.item())
    return Trajectory(np.stack(logits), np.array(losses))


def drift(run: Trajectory, reference: Trajectory) -> Trajectory:
    """Return the largest difference of each step's logits and loss, over the largest of all."""
    return Trajectory(
        np.abs(run.logits - reference.logits).max((1, 2)) / np.abs(reference.logits).max(),
        np.abs(run.losses - reference.losses) / np.abs(reference.losses).max(),
    )


def autocast_drift(case: str, seeds: int = 5) -> Trajectory:
    """Return the largest drift of autocast to bf16 from float32, over seeds, by step.

    Each seed moves the initial weights within half a unit in the last place of bf16, so that
    they round otherwise.
    """
    drifts = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        start, _, _ = build(case)
        with torch.no_grad():
            for p in start.parameters():
                p.mul_(1 + (torch.rand_like(p) - 0.5) * 2**-8)
        runs = [
            train(copy.deepcopy(start), case, dtype) for dtype in (torch.bfloat16, torch.float32)
        ]
        drifts.append(drift(*runs))
    return Trajectory(
        np.max([d.logits for d in drifts], axis=0), np.max([d.losses for d in drifts], axis=0)
    )


def check_trajectory_through_our_engine(case: str, device: str, tmp_path: Path) -> None:
    args = [
        "--case",
        case,
        "--precision",
        "fp32",
        "--device",
        device,
        "--out",
        str(tmp_path / "out.npz"),
    ]
    run_ranks(ENGINE, 1, *args)
    recorded = json.loads((GOLDEN / f"{case}.json").read_text())
    data, ours = np.load(GOLDEN / f"{case}_trajectory.npz"), np.load(tmp_path / "out.npz")
    for name, theirs in (
        ("logits", "logits"),
        ("losses", "losses"),
        ("rates", "lrs"),
        ("final_logits", "final_logits"),
    ):
        assert_equal(ours[name], data[theirs], name)
    for name, (total, norm) in recorded["final_param_sum_and_norm"].items():
        weight = ours[f"weight:{next(iter(to_ours({name: torch.empty(0)})))}"].astype(np.float64)
        assert np.linalg.norm(weight) == pytest.approx(norm, rel=TOLERANCE, abs=1e-6), name
        assert weight.sum() == pytest.approx(total, abs=TOLERANCE * np.abs(weight).sum()), name


class Bomb:
    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple:
        return self.call
