"""Operations of a model are those of its matrix products, counted by hand."""

from __future__ import annotations

import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.models.flops import model_flops
from dfer_dist.models.towers.open_clip_models import TINY

CLIPS, FRAMES, PATCHES = 2, 3, 16
SETTINGS = ["data.shards=x", "model.temporal=mean", f"data.num_frames={FRAMES}"]
LINEAR = [*SETTINGS, "model.head=linear"]


def by_hand(train: bool) -> int:
    """Count the image tower on each frame and the linear classifier on each clip.

    A product of m x k and k x n matrices has 2 m k n operations; its backward pass has two such
    products, for the gradients of both factors.
    """
    vision = TINY["vision_cfg"]
    width, layers, side = (vision[key] for key in ("width", "layers", "patch_size"))
    images, tokens = CLIPS * FRAMES, PATCHES + 1
    patches = 2 * images * PATCHES * 3 * side**2 * width
    # queries, keys, values and output have 4 w^2 weights, the MLP has 8 w^2
    layer = 2 * images * tokens * 12 * width**2
    attention = 2 * 2 * images * tokens**2 * width
    projection = 2 * images * width * TINY["embed_dim"]
    head = 2 * CLIPS * TINY["embed_dim"] * len(SEVEN)
    rest = layers * (layer + attention) + projection + head
    # Pixels need no gradient.
    return 2 * patches + 3 * rest if train else patches + rest


@pytest.mark.parametrize("train", [True, False])
def test_operations_are_those_counted_by_hand(train: bool) -> None:
    config = load_config("demo", LINEAR)
    assert model_flops(config, SEVEN, CLIPS, train) == by_hand(train)


def test_recomputation_does_not_count() -> None:
    config = load_config("demo", [*LINEAR, "model.checkpoint_image=true"])
    assert model_flops(config, SEVEN, CLIPS, True) == by_hand(True)


def test_descriptions_count() -> None:
    labels, both = (
        model_flops(load_config("demo", [*SETTINGS, *more]), SEVEN, CLIPS, True)
        for more in ([], ["train.objective=both", "data.descriptions=x"])
    )
    text = TINY["text_cfg"]
    forward = 2 * 77 * 12 * text["width"] ** 2 * text["layers"] * CLIPS
    assert both > labels + forward


def test_count_leaves_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model_flops(load_config("demo", LINEAR), SEVEN, CLIPS, True)
    assert torch.equal(torch.rand(3), expected)
