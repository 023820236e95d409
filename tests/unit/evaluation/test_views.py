"""Several views of a test clip become one prediction."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import DataConfig, Output, Sampling
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.evaluation.evaluate import average_views, collect, predict
from dfer_dist.utils.errors import UserError

CPU = torch.device("cpu")


def test_probabilities_are_averaged_not_logits() -> None:
    views = torch.tensor([[[2.0, 0.0, -1.0]], [[-9.0, 3.0, 0.0]]])
    averaged = average_views(views)
    assert torch.allclose(averaged.softmax(-1), views.softmax(-1).mean(0))
    assert averaged.argmax() == 1 and views.mean(0).argmax() == 1
    sure = torch.tensor(
        [[[60.0, 0.0]], [[-1.0, 1.0]], [[-1.0, 1.0]]]
    )  # one view that is very sure does not outvote two
    assert sure.mean(0).argmax() == 0 and average_views(sure).argmax() == 1
    assert torch.allclose(average_views(sure).softmax(-1), sure.softmax(-1).mean(0))


def test_probabilities_of_sigmoid_outputs_are_averaged_each_for_itself() -> None:
    views = torch.tensor([[[2.0, 0.0, -60.0]], [[-9.0, 3.0, 50.0]]])
    averaged = average_views(views, Output.sigmoid)
    assert torch.allclose(averaged.sigmoid(), views.sigmoid().mean(0))
    assert torch.equal(average_views(views[:1], Output.sigmoid), views[0])


def test_a_single_view_keeps_its_logits() -> None:
    logits = torch.randn(1, 4, 7)
    assert torch.equal(average_views(logits), logits[0])


def brightness(frames: Tensor) -> Tensor:
    """A stand-in for a model: logits that depend on every frame and on their order. [b, T, 3, S, S] -> [b, 3]."""
    assert frames.shape[1:] == (4, 3, 24, 24) and frames.dtype == torch.uint8
    means = frames.float().mean((2, 3, 4)) / 50
    return torch.stack([means[:, 0], means.mean(1), means[:, 1] - means[:, 3]], 1)


def predictions(
    index: Index, world: int, views: int, sampling: Sampling, **spatial: int
) -> tuple[list[str], np.ndarray]:
    data = DataConfig("-", num_frames=4, image_size=24, workers=0, sampling=sampling, stride=2)
    test, rows = all_clips(index, index.test_shards(2)), {}
    for rank in range(world):
        batches = evaluation_loader(
            index, data, test, batch=5, rank=rank, world_size=world, views=views, **spatial
        )
        rows |= predict(brightness, batches, CPU)
    table = collect(rows, index, test, Ranks(0, 1, 0, CPU))
    assert table is not None
    return table.keys, table.logits


@pytest.mark.parametrize("sampling", [Sampling.segments, Sampling.dense])
def test_a_clip_is_predicted_once_from_all_its_views_on_any_number_of_ranks(
    tiny_shards: Index, sampling: Sampling
) -> None:
    keys, logits = predictions(tiny_shards, 1, 3, sampling)
    assert len(keys) == len(set(keys)) == 12
    again = predictions(tiny_shards, 3, 3, sampling)
    assert again[0] == keys and np.array_equal(again[1], logits)
    assert not np.allclose(predictions(tiny_shards, 1, 1, sampling)[1], logits)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)  # logarithms of probabilities


@pytest.mark.parametrize("views", [1, 2])
def test_spatial_views_are_averaged_with_the_others(tiny_shards: Index, views: int) -> None:
    keys, logits = predictions(tiny_shards, 1, views, Sampling.segments, crops=2, mirror=True)
    again = predictions(tiny_shards, 3, views, Sampling.segments, crops=2, mirror=True)
    assert again[0] == keys and np.array_equal(again[1], logits)
    data = DataConfig("-", num_frames=4, image_size=24, workers=0)
    test, probabilities = all_clips(tiny_shards, tiny_shards.test_shards(2)), defaultdict(list)
    for batch in evaluation_loader(
        tiny_shards, data, test, batch=5, views=views, crops=2, mirror=True
    ):
        for key, pixels in zip(batch.keys, batch.pixels(CPU), strict=True):
            by_view = brightness(pixels.unflatten(0, (views, 4))).softmax(-1)
            probabilities[key] += by_view.tolist()
    for key, row in zip(keys, np.exp(logits), strict=True):
        assert len(probabilities[key]) == 4 * views
        np.testing.assert_allclose(row, np.mean(probabilities[key], 0), rtol=1e-5)


def test_views_that_would_all_be_the_same_are_refused() -> None:
    assert load_config("demo", ["data.sampling=uniform"]).eval.views == 1
    assert (
        load_config("demo", ["data.sampling=dense", "eval.views=4", "data.stride=2"]).data.stride
        == 2
    )
    with pytest.raises(UserError, match=r"eval\.views=2.*all views are the same"):
        load_config("demo", ["data.sampling=uniform", "eval.views=2"])
    for word in ("eval.views=0", "data.stride=0"):
        with pytest.raises(UserError, match=f"{word}: must be at least 1"):
            load_config("demo", [word])
