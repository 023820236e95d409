"""Checkpoints of VideoMAE, MAE-DFER and S4D, converted, against what their authors compute."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer_dist.inference.video_checkpoint import convert_video
from dfer_dist.models.backbone import load_backbone
from dfer_dist.models.towers.videomae import SIZES
from dfer_dist.utils.errors import UserError
from tests.helpers.cli import invoke
from tests.helpers.models.video_checkpoints import (
    REGION,
    WIDTH,
    features,
    made_state,
    pretrained,
    save_checkpoint,
)

CLIPS = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ARGS: dict[str, Any] = {"input_size": 32, "num_frames": 4, "lg_region_size": list(REGION)}


@torch.no_grad()
def converted_features(path: Path, out: Path, image_size: int | None = None) -> torch.Tensor:
    tower = convert_video(path, out, image_size)
    backbone = load_backbone(tower.backbone, tower.pretrained, 32, num_frames=4)
    assert backbone.sha256 is not None
    return backbone.image(CLIPS)


@pytest.mark.parametrize("regions", [0, 4])
@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_a_fine_tuned_model_gives_the_authors_features(
    regions: int, key: str, tmp_path: Path
) -> None:
    state = made_state(regions)
    path = save_checkpoint(tmp_path / "best.pth", state, key, **ARGS)
    torch.testing.assert_close(
        converted_features(path, tmp_path / "out"), features(state, CLIPS), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("regions", [0, 4])
def test_a_pretrained_model_gives_the_authors_features(regions: int, tmp_path: Path) -> None:
    """Its norm is not read, and the norm after the mean starts anew, as in their fine-tuning."""
    state = made_state(regions)
    path = save_checkpoint(tmp_path / "checkpoint-49.pth", pretrained(state), **ARGS)
    fresh = state | {"fc_norm.weight": torch.ones(WIDTH), "fc_norm.bias": torch.zeros(WIDTH)}
    torch.testing.assert_close(
        converted_features(path, tmp_path / "out"), features(fresh, CLIPS), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "pooled"), [("region", "regions"), ("org", "patches"), ("all", "all")]
)
def test_pooled_tokens_are_read_from_the_command_line_in_the_file(
    kind: str, pooled: str, tmp_path: Path
) -> None:
    state = made_state(4)
    path = save_checkpoint(tmp_path / "a.pth", state, lg_classify_token_type=kind, **ARGS)
    torch.testing.assert_close(
        converted_features(path, tmp_path / "out"),
        features(state, CLIPS, pooled),
        rtol=0,
        atol=1e-5,
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pooled_tokens"] == pooled


def test_a_file_of_tensors_alone_needs_the_image_size(tmp_path: Path) -> None:
    """S4D's files hold no command line; wrappers of PyTorch put names before the tensors'."""
    state = made_state()
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    path = save_checkpoint(tmp_path / "a.pth", wrapped, key=None)
    with pytest.raises(UserError, match="give --image-size, which is 160 for MAE-DFER"):
        convert_video(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tower = convert_video(path, tmp_path / "out", image_size=32)
    assert tower.sizes.num_frames == 16, "as in all scripts of the authors"


def test_a_known_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "a.pth", made_state(4), **ARGS)
    sizes = convert_video(path, tmp_path / "one").sizes
    monkeypatch.setitem(SIZES, "mae_dfer", sizes)
    tower = convert_video(path, tmp_path / "two")
    assert tower.backbone == "videomae:mae_dfer"
    assert Path(tower.pretrained) == tmp_path / "two" / "model.safetensors"


def test_the_command_says_how_to_use_the_folder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", made_state(4), **ARGS)
    done = invoke("convert", "videomae", "a.pth", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 blocks of width 128, 2 heads, regions of 1 x 2 x 4 tubelets" in done.stdout
    assert "use it: model.backbone=videomae:out model.pretrained=main" in done.stdout
    done = invoke("convert", "videomae", "a.pth", "out", cwd=tmp_path)
    assert done.returncode == 2 and "out exists: give a new folder" in done.stderr


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, self.mark)

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"model": made_state(), "args": Harmful(mark)}, tmp_path / "a.pth")
    convert_video(tmp_path / "a.pth", tmp_path / "out", image_size=32)
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"model": Harmful(mark)}))
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as error:
        convert_video(tmp_path / "b.pth", tmp_path / "other")
    assert "weights_only" not in str(error.value), "no advice to execute the file"
    assert not mark.exists()


def without(name: str, regions: int = 0) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in made_state(regions).items() if key != name}


@pytest.mark.parametrize(
    ("state", "args", "message"),
    [
        (without("patch_embed.proj.weight"), {}, "no embedding of tubelets"),
        (without("blocks.0.mlp.fc1.weight"), {}, "it has no block"),
        (without("blocks.1.mlp.fc2.bias"), {}, "it has no blocks.1.mlp.fc2.bias"),
        (without("blocks.1.second_attn.kv.weight", 4), {}, "it has no blocks.1.global_attn.key"),
        (made_state() | {"pos_embed": torch.ones(1, 32, WIDTH)}, {}, "pos_embed has no place"),
        (
            made_state() | {"blocks.1.moe_layer.router.topkroute_linear.weight": torch.ones(1)},
            {},
            "a mixture of experts, which S4D adds in fine-tuning",
        ),
        (made_state(4), {"input_size": 64}, r"region_tokens is \[4, 128\], not \[16, 128\]"),
        (made_state(4), {"input_size": 48}, "cannot be cut into regions"),
        (made_state(4), {"lg_region_size": [0, 1, 1]}, "cannot be cut into regions"),
        (made_state(4), {"lg_region_size": ["a", 1, 1]}, "its sizes are not known"),
        (made_state(4), {"lg_attn_param_sharing_all": True}, "attentions share parameters"),
        ({"a": torch.ones(1)}, {}, "no embedding of tubelets"),
        ({}, {}, "it has no tensors under model, module, state_dict"),
    ],
)
def test_other_files_are_refused(
    state: dict[str, torch.Tensor], args: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "a.pth", state, **{**ARGS, **args})
    with pytest.raises(UserError, match=message) as error:
        convert_video(path, tmp_path / "out")
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists: give a new folder"):
        convert_video(tmp_path / "a.pth", tmp_path)
