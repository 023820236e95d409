"""A rank of a few steps of a tiny DFER-CLIP with LoRA in both towers and the mean over time, for test_tuning.py.

Prints, on rank 0, one JSON line: the loss of each step, peak rates by group, which float32 weights changed, the size of the
largest change of a weight that is not trained, and whether a fresh model takes over the checkpoint that was saved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param

from dfer_dist import checkpoint
from dfer_dist.config import Config, Device, ImageTuning, Optimizer, Precision, TemporalKind, TextTuning
from dfer_dist.engine import build_engine
from dfer_dist.model import DFERCLIP, build_model, param_groups
from dfer_dist.ranks import leave, start
from dfer_dist.saver import Saver

BATCH, STEPS = 4, 3
CLASSES = ["happiness", "sadness", "fear"]


def _trained(model: DFERCLIP) -> dict[str, torch.nn.Parameter]:
    return {name: q for group in param_groups(model).values() for name, q in group}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--stage", type=int, required=True)
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--recompute", action="store_true")
    a = p.parse_args()
    config = Config()
    config.train.global_batch, config.train.zero_stage, config.train.precision = BATCH, a.stage, Precision.fp32
    config.optim.name, config.optim.weight_decay, config.optim.lr_prompt = Optimizer.adamw, 0.0, 1e-4
    m = config.model
    m.backbone, m.pretrained, m.checkpoint_image = "tiny", "none", a.recompute
    m.temperature = 0.07
    m.image, m.text_tower, m.temporal = ImageTuning.lora, TextTuning.lora, TemporalKind.mean
    ranks = start(Device.cpu)
    torch.manual_seed(0)
    model = build_model(m, CLASSES, 2, 64)
    sha256 = checkpoint.frozen_checksum(model, _trained(model))
    before = {name: q.detach().clone() for name, q in model.named_parameters()}
    engine = build_engine(model, param_groups(model), config, ranks, steps_per_epoch=1)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (BATCH, 2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = torch.arange(BATCH) % 3
    own = slice(ranks.rank * BATCH // ranks.world, (ranks.rank + 1) * BATCH // ranks.world)
    losses = []
    for step in range(STEPS):
        rates = engine.set_learning_rates(step)
        loss = F.cross_entropy(engine.deepspeed(frames[own]), labels[own])
        engine.micro_step(loss)
        losses.append(ranks.sum([loss.item()])[0] / ranks.world)
    weights = {name: safe_get_full_fp32_param(q) for name, q in engine.trained.items()}
    frozen = 0.0
    for name, q in engine.model.named_parameters():
        if name not in weights:
            with GatheredParameters([q], enabled=hasattr(q, "ds_id")):
                frozen = max(frozen, (q.detach() - before[name]).abs().max().item())
    config.data.shards = "none"
    saver = Saver(a.folder, config, ranks, 0, None)
    saver.save(engine, {"step": STEPS, "skipped_steps": 0, "frozen_sha256": sha256})
    saver.settle()
    path = checkpoint.step_folder(a.folder, STEPS)
    if ranks.is_main:
        saved = checkpoint.read(path)
        torch.manual_seed(0)
        fresh = build_model(saved.config.model, CLASSES, 2, 64)
        checkpoint.load_weights(fresh, _trained(fresh), saved)
        taken = all(torch.equal(q, weights[name]) for name, q in _trained(fresh).items())
        changed = sorted(name for name, w in weights.items() if not torch.equal(w, before[name]))
        print(json.dumps({"losses": losses, "rates": rates, "changed": changed, "frozen": frozen, "taken": taken}))
    leave(0)


if __name__ == "__main__":
    main()
