"""A training step with mixed clips, on stand-ins for data and engine."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.schema import Config
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.device import DevicePrefetcher
from dfer_dist.data.loading.mixing import MixParams
from dfer_dist.models.dferclip import ModelOutputs
from dfer_dist.training.losses import Objective
from dfer_dist.training.trainer import Trainer

CPU = torch.device("cpu")


class OnePixelModel:
    """Logits are the three colors of the first pixel, in tens."""

    module = SimpleNamespace(model=SimpleNamespace(drop_path=None))

    def __call__(self, pixels: torch.Tensor, **_: object) -> ModelOutputs:
        return ModelOutputs(positive=pixels[:, 0, :, 0, 0].float() / 10)


def trainer(*batches: Batch, targets: torch.Tensor | None = None) -> Trainer:
    """Return what :meth:`Trainer.train_step` uses of a trainer."""
    engine = SimpleNamespace(
        accumulation=len(batches),
        deepspeed=OnePixelModel(),
        micro_step=lambda loss: None,
        set_learning_rates=lambda step: {"image": 1e-4},
    )
    meter = MagicMock(waiting=nullcontext)
    fake: Any = SimpleNamespace(
        inputs=DevicePrefetcher(iter(batches), CPU),
        profiler=MagicMock(),
        config=Config(),
        data=SimpleNamespace(
            descriptions=None, targets=lambda b: b.labels if targets is None else targets
        ),
        engine=engine,
        meter=meter,
        objective=Objective(Config(), [], CPU),
        ranks=SimpleNamespace(device=CPU),
        state=SimpleNamespace(step=0),
        watchdog=MagicMock(),
    )
    fake._micro_step = lambda batch: Trainer._micro_step(fake, batch)
    return cast(Trainer, fake)


def batch(first: str, mix: list[MixParams]) -> Batch:
    """Four clips of one frame of one color each, of labels 0, 1, 2, 0."""
    colors = torch.tensor([[10, 0, 5], [0, 30, 10], [50, 20, 10], [7, 7, 40]], dtype=torch.uint8)
    return Batch(
        frames=colors.view(4, 1, 1, 1, 3).expand(4, 1, 4, 4, 3).contiguous(),
        labels=torch.tensor([0, 1, 2, 0]),
        valid=torch.ones(4, dtype=torch.bool),
        keys=[f"{first}{i}" for i in range(4)],
        lost=[],
        augment_params=torch.tensor([[1.0, 0, 0, 0, 4, 4, 0]] * 4),
        mix=mix,
    )


def test_step_has_soft_targets_and_names_both_clips() -> None:
    mix = [MixParams(0.6), MixParams()]
    result = Trainer.train_step(trainer(batch("a", mix), batch("b", [])), 0)
    keys, losses = zip(*result.clip_losses, strict=True)
    assert keys[:4] == (["a0", "a1"], ["a0", "a1"], ["a2"], ["a3"])
    assert keys[4:] == (["b0"], ["b1"], ["b2"], ["b3"])
    mixed = torch.tensor([[6.0, 12, 7], [4, 18, 8], [50, 20, 10], [7, 7, 40]]) / 10
    targets = torch.tensor([[0.6, 0.4, 0], [0.4, 0.6, 0], [0, 0, 1], [1, 0, 0]])
    want = F.cross_entropy(mixed, targets, reduction="none")
    assert losses[:4] == pytest.approx(want.tolist(), rel=1e-5)


def test_step_trains_towards_the_votes_of_mixed_clips() -> None:
    votes = torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [0.1, 0.2, 0.7], [1, 0, 0]])
    mix = [MixParams(0.6), MixParams()]
    result = Trainer.train_step(trainer(batch("a", mix), targets=votes), 0)
    mixed = torch.tensor([[6.0, 12, 7], [4, 18, 8], [50, 20, 10], [7, 7, 40]]) / 10
    targets = torch.tensor([[0.3, 0.3, 0.4], [0.2, 0.2, 0.6], [0.1, 0.2, 0.7], [1, 0, 0]])
    want = F.cross_entropy(mixed, targets, reduction="none")
    assert [loss for _, loss in result.clip_losses] == pytest.approx(want.tolist(), rel=1e-5)
