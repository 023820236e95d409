"""Run a rank of the authors' recorded training through our engine, for test_parity.py.

Writes ``logits``, ``losses``, ``rates`` of each step, ``final_logits`` and the final float32
weights to an npz file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param

from dfer_dist.config.schema import Config, Device, Precision
from dfer_dist.distributed.process_group import exit_process, init_distributed
from dfer_dist.models.tuning import param_groups
from dfer_dist.training.engine import build_engine
from tests.helpers.models.golden import GOLDEN, build


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--case", required=True)
    p.add_argument("--precision", required=True)
    p.add_argument("--device", type=Device, default=Device.cpu)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    ranks = init_distributed(a.device)
    model, _, _ = build(a.case)
    data = np.load(GOLDEN / f"{a.case}_trajectory.npz")
    steps, batch = data["labels"].shape
    config = Config()  # the defaults are the published recipe
    config.train.precision, config.train.global_batch, config.train.epochs = (
        Precision(a.precision),
        batch,
        steps,
    )
    config.optim.milestones = [2, 4]  # the recording counts each step as an epoch
    engine = build_engine(model, param_groups(model), config, ranks, steps_per_epoch=1)
    own = slice(
        ranks.rank * batch // ranks.world_size, (ranks.rank + 1) * batch // ranks.world_size
    )
    logits, losses, rates = [], [], []
    for step in range(steps):
        rates.append(list(engine.set_learning_rates(step).values()))
        out = engine.deepspeed(torch.from_numpy(data["frames"][step][own]).to(ranks.device))
        loss = F.cross_entropy(out, torch.from_numpy(data["labels"][step][own]).to(ranks.device))
        engine.micro_step(loss)
        losses.append(ranks.all_reduce_sum([loss.item()])[0] / ranks.world_size)
        logits.append(_whole(out, ranks))
    engine.deepspeed.eval()
    with torch.no_grad():
        final = _whole(
            engine.deepspeed(torch.from_numpy(data["frames"][0][own]).to(ranks.device)), ranks
        )
    weights = {
        name: safe_get_full_fp32_param(p).cpu().numpy() for name, p in engine.trained.items()
    }
    if ranks.is_main:
        arrays = {
            "logits": np.stack(logits),
            "losses": np.array(losses),
            "rates": np.array(rates),
            "final_logits": final,
        }
        np.savez(a.out, **arrays, **{f"weight:{name}": value for name, value in weights.items()})
        print(json.dumps({"out": str(a.out)}))
    exit_process(0)


def _whole(part: torch.Tensor, ranks) -> np.ndarray:
    parts = ranks.gather_objects(part.detach().cpu().numpy())
    return np.concatenate(parts) if parts else np.empty(0)


if __name__ == "__main__":
    main()
