"""A rank of a small training job: train a toy model, from a checkpoint or not, and save it.

Rank 0 prints one JSON line: the global loss of each step and a sha256 of the float32 weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.checkpoints.optimizer_state import gather, restore
from dfer_dist.config.schema import Config, Device, Optimizer, Precision
from dfer_dist.distributed.process_group import exit_process, init_distributed
from dfer_dist.models.build import model_dtype
from dfer_dist.training.engine import build_engine
from tests.helpers.training.hooks import allow_fp16_on_cpu

BATCH, FEATURES = 12, 7  # sizes that 2 and 4 do not divide are among the tensors


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(FEATURES, FEATURES)
        self.image, self.temporal, self.prompt = (
            nn.Linear(FEATURES, 11),
            nn.Linear(11, 5),
            nn.Linear(5, 3),
        )
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prompt(
            torch.tanh(self.temporal(torch.tanh(self.image(self.frozen(x)))))
        ).float()


def digest(weights: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(
        b"".join(weights[n].numpy().tobytes() for n in sorted(weights))
    ).hexdigest()


def parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--stage", type=int, default=1)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--optimizer", default="sgd")
    p.add_argument("--momentum", type=float, default=0.9)
    p.add_argument("--precision", default="fp32")
    p.add_argument("--device", type=Device, default=Device.cpu)
    p.add_argument("--offload", type=int, default=0)
    p.add_argument("--ema", type=float, default=0.0)
    p.add_argument("--resume", type=Path)
    p.add_argument(
        "--poison",
        type=int,
        nargs="*",
        default=[],
        help="steps in which one input of the last rank is a NaN",
    )
    p.add_argument(
        "--explode",
        type=int,
        nargs="*",
        default=[],
        help="steps in which the last rank's loss is infinite, its gradient not",
    )
    p.add_argument(
        "--overflow",
        type=int,
        nargs="*",
        default=[],
        help="steps in which the gradient times the loss scale is too large for float16",
    )
    p.add_argument("--window", type=int, help="steps after which the loss scale doubles")
    p.add_argument("--scale", type=float, help="first loss scale")
    return p.parse_args()


def make_config(a: argparse.Namespace) -> Config:
    config = Config()
    config.train.global_batch, config.train.zero_stage, config.train.epochs = BATCH, a.stage, 10
    config.train.precision, config.optim.name = Precision(a.precision), Optimizer(a.optimizer)
    config.optim.lr_image, config.optim.lr_temporal, config.optim.lr_prompt = 0.02, 0.03, 0.04
    config.optim.momentum = a.momentum
    config.optim.milestones, config.data.shards = [4, 6], "none"
    config.train.offload_optimizer, config.train.ema = bool(a.offload), a.ema
    return config


def random_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of all ranks."""
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(BATCH, FEATURES, generator=generator),
        torch.randint(3, (BATCH,), generator=generator),
    )


def main() -> None:
    a = parse_arguments()
    config = make_config(a)
    ranks = init_distributed(a.device)
    if ranks.device.type == "cpu":
        allow_fp16_on_cpu()
    torch.manual_seed(0)
    model = Toy()
    groups = {
        part: [(f"{part}.{n}", q) for n, q in getattr(model, part).named_parameters()]
        for part in ("temporal", "image", "prompt")
    }
    trained = {name: q for group in groups.values() for name, q in group}
    frozen = checkpoint.frozen_checksum(model, trained)
    saved = checkpoint.read(a.resume) if a.resume else None
    if saved:
        checkpoint.load_weights(model, trained, saved)
    engine = build_engine(model, groups, config, ranks, steps_per_epoch=1)
    begin = 0
    if saved:
        restore(engine, saved, config, ranks)
        engine.load_state_dict(saved.state)
        begin = saved.state["step"]
    if engine.loss_scale:
        engine.loss_scale.scale_window = a.window or engine.loss_scale.scale_window
        engine.loss_scale.next_scale = a.scale or engine.loss_scale.next_scale
    kind = model_dtype(config.train.precision)
    losses, outcomes, scales, digests, averages = [], [], [], [], []
    for step in range(begin, a.steps):
        engine.set_learning_rates(step)
        x, y = random_batch(step)
        own = slice(
            ranks.rank * BATCH // ranks.world_size, (ranks.rank + 1) * BATCH // ranks.world_size
        )
        if step in a.poison and ranks.rank == ranks.world_size - 1:
            x[-1, 0] = torch.nan
        loss = nn.functional.cross_entropy(
            engine.deepspeed(x[own].to(ranks.device, kind)), y[own].to(ranks.device)
        )
        if step in a.explode and ranks.rank == ranks.world_size - 1:
            loss = loss + torch.inf
        if step in a.overflow:
            loss = loss * 1e6
        engine.micro_step(loss)
        losses.append(ranks.all_reduce_sum([loss.item()])[0] / ranks.world_size)
        outcomes.append(engine.judge_step(losses[-1]).name)
        scales.append(engine.metrics().get("loss_scale"))
        if a.poison:
            tensors = gather(engine, config, 0, ranks)
            digests.append(digest(tensors.weights))
            averages.append(digest(tensors.ema))
    skipped = sum(outcome != "TAKEN" for outcome in outcomes)
    state = {"step": a.steps, "skipped_steps": skipped, "frozen_sha256": frozen}
    state |= engine.state_dict()
    checkpointer = AsyncCheckpointer(a.folder, config, ranks, 0, None)
    checkpointer.save(engine, state)
    checkpointer.wait()
    path = checkpoint.step_folder(a.folder, a.steps)
    if ranks.is_main:
        saved = checkpoint.read(path)
        rates = {g["name"]: g["lr"] for g in engine.deepspeed.optimizer.param_groups}
        print(
            json.dumps(
                {
                    "outcomes": outcomes,
                    "scales": scales,
                    "digests": digests,
                    "averages": averages,
                    "losses": losses,
                    "weights": digest(saved.model),
                    "average": digest(saved.ema),
                    "rates": rates,
                    "path": str(path),
                }
            )
        )
    exit_process(0)


if __name__ == "__main__":
    main()
