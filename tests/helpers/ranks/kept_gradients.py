"""One rank trains a toy model, whose second step leaves a layer out.

It prints the largest float32 gradients of both steps, and what the start of DeepSpeed left behind.
"""

from __future__ import annotations

import gc
import json
import sys

import torch
from torch import Tensor, nn

from dfer_dist.config.schema import Config
from dfer_dist.distributed.process_group import exit_process, init_distributed
from dfer_dist.training.engine import build_engine


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.temporal = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        return self.image(x).square() + (self.temporal(x) if both else 0)


if __name__ == "__main__":
    config = Config()
    config.data.shards, config.train.global_batch, config.train.micro_batch = "none", 4, 2
    config.optim.lr_image = config.optim.lr_temporal = 0.0
    ranks = init_distributed(config.train.device)
    torch.manual_seed(0)
    model = Toy()
    groups = {part: list(getattr(model, part).named_parameters()) for part in ("image", "temporal")}
    engine = build_engine(model, groups, config, ranks, 1)
    # Two micro batches a step.
    x = torch.randn(2, 2, 8, dtype=torch.bfloat16)
    seen = []
    for both in (True, False):
        engine.set_learning_rates(0)
        for micro in x:
            engine.micro_step(engine.deepspeed(micro, both).mean())
        kept = engine.deepspeed.optimizer.fp32_groups_gradients
        seen.append([g.abs().max().item() for group in kept for g in group])
    model = engine.deepspeed.module
    model.zero_grad(set_to_none=True)
    wanted = torch.autograd.grad(model(x, False).mean(), list(model.image.parameters()))
    off = max(
        (g - w.flatten()).abs().max().item()
        for g, w in zip(map(torch.flatten, kept[0]), wanted, strict=True)
    )
    if ranks.is_main:
        start_up = {
            "frozen": gc.get_freeze_count(),
            "compiler": "torch._inductor.compile_fx" in sys.modules,
        }
        largest = max(w.abs().max().item() for w in wanted)
        print(
            json.dumps(
                {"both": seen[0], "one": seen[1], "off": off, "largest": largest, **start_up}
            )
        )
    exit_process(0)
