"""Files that hold no weights, by each family: what was given, and nothing is executed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dfer_dist.models.backbone import describe_backbone, load_backbone
from dfer_dist.utils.errors import UserError

TOWERS = (("tiny", 64), ("timm:test_vit3", 160), ("videomae:tiny", 64))


class Harmful:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(("name", "size"), TOWERS)
@pytest.mark.parametrize("content", ["harmful", "list"])
def test_is_refused_with_a_plain_reason(name: str, size: int, content: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    held = {"harmful": {"w": Harmful(str(touched))}, "list": [torch.zeros(1)]}[content]
    torch.save(held, path)
    with pytest.raises(UserError) as error:
        load_backbone(name, str(path), size, num_frames=8)
    said = {"harmful": "which is never unpickled", "list": "it holds no tensors by name"}[content]
    text = str(error.value)
    assert said in text and str(path) in text
    assert "weights_only" not in text and not touched.exists()


@pytest.mark.parametrize("name", ["Timm:vit_tiny_patch16_224", "VideoMAE:tiny"])
def test_family_in_other_case_is_named(name: str) -> None:
    meant = name.partition(":")[0].lower() + ":" + name.partition(":")[2]
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        describe_backbone(name)
