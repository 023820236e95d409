"""``dfer plan --measure``: the plan against real steps on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.cli import dfer

# ViT-B/32 with a third of its layers
SIZES = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 768, "layers": 4},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 4,
    },
}


# its attention keeps no scores on the CPU either; with them the plan would be larger by half
TIMM = ["model.backbone=timm:vit_tiny_patch16_224", "model.head=linear", "data.image_size=320"]


@pytest.mark.parametrize(
    "backbone", ["open_clip", pytest.param("timm", marks=pytest.mark.engine_full)]
)
def test_planned_memory_is_that_of_real_steps(backbone: str, tmp_path: Path) -> None:
    """In a new process, with its own settings of malloc."""
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(SIZES))
    small = ["train.global_batch=2", "data.num_frames=4", "model.pretrained=none"]
    small += TIMM if backbone == "timm" else [f"model.backbone={sizes}"]
    done = dfer("plan", "dfew_vitb32", "--measure", *small, cwd=tmp_path, forks_ranks=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"planned (\S+) GiB,\s+measured (\S+) GiB", done.stdout)
    assert found, done.stdout
    planned, measured = map(float, found.groups())
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.engine_full
def test_planned_bytes_are_those_of_real_ranks(tmp_path: Path) -> None:
    given = ["data.shards=dfew", "train.global_batch=8", "--scale", "1,2,4", "--measure"]
    done = dfer("plan", "demo", *given, cwd=tmp_path)
    lines = [line.strip() for line in done.stdout.splitlines()]
    rows = [line.split() for line in lines if line[:2] in ("1 ", "2 ", "4 ")]
    assert [row[0] for row in rows] == ["1", "2", "4"], done.stderr
    for row in rows[1:]:
        formula, counted = float(row[7]), float(row[8])
        assert formula > 0.5
        assert 0.98 * formula <= counted <= 1.1 * formula
