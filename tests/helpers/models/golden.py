"""Compare with recorded values of the authors' DFER-CLIP."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.config.schema import ModelConfig, TokenPosition
from dfer_dist.inference.official import read_official, to_ours
from dfer_dist.models.backbone import TextTower, build_clip
from dfer_dist.models.dferclip import DFERCLIP
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
    model = DFERCLIP(
        cfg,
        towers.visual,
        TextTower(towers),
        {"positive": [[text] for text in recorded["class_text"]]},
        frames,
    )
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
