"""Ranks train a toy model in two micro batches a step; rank 0 prints how gradients were averaged.

The layer ``temporal`` is left out of the second micro batch of rank 1 in step 2, and of all of
step 3.
"""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dfer_dist.config.schema import Config
from dfer_dist.distributed.process_group import Ranks, exit_process, init_distributed
from dfer_dist.training import bf16_gradients
from dfer_dist.training.engine import Engine, build_engine

STEPS, MICRO_BATCHES, FEATURES = 3, 2, 8


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(*[nn.Linear(FEATURES, FEATURES) for _ in range(3)])
        self.temporal = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        return (self.temporal(x) if both else 0) + self.image(x).square()


def inputs(rank: int, step: int, micro: int) -> tuple[Tensor, bool]:
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + micro)
    x = torch.randn(2, FEATURES, generator=generator, dtype=torch.bfloat16)
    return x, step < 2 if step != 1 else (rank, micro) != (1, 1)


def averaged_afterwards(engine: Engine, ranks: Ranks, step: int) -> dict[str, Tensor]:
    """The plain way: add float32 gradients up, send all of them in bf16, divide."""
    model, trained = engine.deepspeed.module, engine.trained
    total = {name: torch.zeros(p.shape) for name, p in trained.items()}
    for micro in range(MICRO_BATCHES):
        x, both = inputs(ranks.rank, step, micro)
        loss = model(x, both).mean() / MICRO_BATCHES
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            total[name] += 0 if gradient is None else gradient
    for name, own in total.items():
        half = own.to(torch.bfloat16)
        dist.all_reduce(half)
        total[name] = (half / ranks.world_size).float()
    return total


def main() -> None:
    config = Config()
    config.data.shards, config.train.micro_batch = "none", 2
    config.optim.lr_image = config.optim.lr_temporal = 0.0
    ranks = init_distributed(config.train.device)
    config.train.global_batch = 2 * MICRO_BATCHES * ranks.world_size
    bf16_gradients.PART = 50
    torch.manual_seed(0)
    model = Toy()
    groups = {
        part: list(getattr(model, part).named_parameters(part)) for part in ("image", "temporal")
    }
    engine = build_engine(model, groups, config, ranks, 1)
    averager, sent_early, differing = engine.averager, [], []
    assert averager
    finish = averager.finish

    def count_and_finish() -> None:
        sent_early.append(averager._num_sent)
        finish()

    averager.finish = count_and_finish  # type: ignore[method-assign]
    for step in range(STEPS):
        engine.set_learning_rates(0)
        wanted = averaged_afterwards(engine, ranks, step)
        for micro in range(MICRO_BATCHES):
            x, both = inputs(ranks.rank, step, micro)
            engine.micro_step(engine.deepspeed(x, both).mean())
        kept = engine.deepspeed.optimizer.fp32_groups_gradients
        seen = dict(zip(engine.trained, (g for group in kept for g in group), strict=True))
        differing += [n for n, g in seen.items() if not g.view_as(wanted[n]).equal(wanted[n])]
    of_all = ranks.gather_objects((sent_early, differing))
    if ranks.is_main:
        print(
            json.dumps({"sent_early": [s for s, _ in of_all], "differing": [d for _, d in of_all]})
        )
    exit_process(0)


if __name__ == "__main__":
    main()
