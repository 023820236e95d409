"""The temporal transformer."""

from __future__ import annotations

import pytest
import torch

from dfer_dist.config.schema import ModelConfig, TemporalPool
from dfer_dist.models.temporal import TemporalTransformer


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pool", TemporalPool)
def test_feature_of_a_clip_is_that_of_its_pool(pool: TemporalPool, recompute: bool) -> None:
    torch.manual_seed(0)
    cfg = ModelConfig(temporal_layers=2, temporal_heads=2, temporal_head_dim=4, temporal_mlp=8)
    cfg.temporal_pool, cfg.checkpoint_temporal = pool, recompute
    model, frames = TemporalTransformer(8, 3, cfg), torch.randn(2, 3, 8)
    tokens = torch.cat([model.cls.expand(2, 1, 8), frames], 1) + model.pos
    for block in model.blocks:
        tokens = block(tokens)
    expected = {TemporalPool.cls: tokens[:, 0], TemporalPool.mean: tokens[:, 1:].sum(1) / 3}
    torch.testing.assert_close(model(frames), expected[pool])
    assert not torch.allclose(expected[TemporalPool.cls], expected[TemporalPool.mean])
