"""Weights of timm's towers from files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dfer_dist.models.backbone import load_backbone
from dfer_dist.utils.errors import UserError


def test_a_file_without_the_towers_weights_is_refused(tmp_path: Path) -> None:
    """Without a classifier timm keeps random weights for what a file lacks."""
    state = timm.create_model("test_vit3", num_classes=5).state_dict()
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    tower = load_backbone("timm:test_vit3", str(file), 160).image
    loaded = tower.state_dict()
    assert all(
        torch.equal(tensor, loaded[f"trunk.{name}"])
        for name, tensor in state.items()
        if not name.startswith("head.")
    )
    del state["blocks.1.attn.qkv.weight"]
    save_file(state, file)
    level = logging.getLogger("timm.models._builder").level
    with pytest.raises(UserError, match=r"timm:test_vit3: it has no blocks\.1\.attn\.qkv\.weight$"):
        load_backbone("timm:test_vit3", str(file), 160)
    assert logging.getLogger("timm.models._builder").level == level
    save_file({"x": torch.zeros(3)}, file)
    with pytest.raises(UserError, match="it has no reg_token"):
        load_backbone("timm:test_vit3", str(file), 160)
