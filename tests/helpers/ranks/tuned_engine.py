"""Train a tiny model for a few steps on one rank, for test_tuned_engine.py.

With LoRA in both towers, or adapters and both polarities, or the whole image tower; optionally with
parsing maps and landmarks, on labels or descriptions. A checkpoint is saved after each of the last
two steps.

Prints, on rank 0, one JSON line: the loss of each step, peak rates by group, which float32 weights
changed, a sha256 of them, the size of the largest change of a weight that is not trained, and
whether a fresh model takes over the checkpoint that was saved. With ``train.ema`` also whether the
weights are the same to the bit after a validation with their average, which is that of a model read
for its weights only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from enum import Enum
from pathlib import Path

import torch
import yaml
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.async_checkpointer import AsyncCheckpointer
from dfer_dist.checkpoints.optimizer_state import averaged_weights, restore
from dfer_dist.config.schema import (
    ClassText,
    Config,
    Device,
    Head,
    ImageTuning,
    ModelConfig,
    Optimizer,
    Precision,
    Supervision,
    TemporalKind,
    TextPolarity,
    TextTuning,
)
from dfer_dist.distributed.process_group import exit_process, init_distributed
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP, OutputsModule
from dfer_dist.models.tokenizer import clip_tokenizer
from dfer_dist.models.tuning import param_groups
from dfer_dist.training.descriptions import ClipDescriptions
from dfer_dist.training.engine import Engine, build_engine
from dfer_dist.training.losses import Objective

BATCH, STEPS = 4, 3
CLASSES = ["happiness", "sadness", "fear"]
TEXTS = {
    "0": "The brows rise.",
    "1": "The lips part. The jaw drops and the eyes widen.",
    "3": "The nose wrinkles.",
}  # clip 2 has none


def _trained(model: DFERCLIP) -> dict[str, torch.nn.Parameter]:
    return {name: q for group in param_groups(model).values() for name, q in group}


def settings(kind: str, learning: Supervision, backbone: str) -> ModelConfig:
    m = ModelConfig(
        backbone=backbone, pretrained="none", temperature=0.07, temporal=TemporalKind.mean
    )
    m.image, m.text_tower = (
        ImageTuning[kind],
        TextTuning.frozen if kind == "all" else TextTuning[kind],
    )
    if kind == "adapters":
        m.text, m.text_polarity, m.context_tokens, m.adapter_time = (
            ClassText.person,
            TextPolarity.both,
            0,
            True,
        )
    if learning is Supervision.descriptions:
        m.text_polarity = TextPolarity.positive
    m.description_ratio = 0.1 if learning is Supervision.both else 0.0
    if backbone.startswith("timm:"):
        m.head, m.text_tower = Head.linear, TextTuning.frozen
    return m


def override(config: Config, settings: list[str]) -> None:
    """Change settings as on the command line."""
    for setting in settings:
        key, _, text = setting.partition("=")
        group, _, name = key.partition(".")
        old, value = getattr(getattr(config, group), name), yaml.safe_load(text)
        setattr(getattr(config, group), name, type(old)(value) if isinstance(old, Enum) else value)


def clips(pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and labels of the batch of each step."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, pictures, 3, 64, 64)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), torch.arange(
        BATCH
    ) % 3


def full_weights(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of the weights that forward passes use. Collective."""
    copies = {}
    for name, q in engine.trained.items():
        with GatheredParameters([q], enabled=hasattr(q, "ds_id")):
            copies[name] = q.detach().clone()
    return copies


def parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--stage", type=int, required=True)
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--kind", default="lora", choices=["lora", "adapters", "all"])
    p.add_argument("--backbone", default="tiny")
    p.add_argument("--precision", type=Precision, default=Precision.fp32)
    p.add_argument("--modalities", action="store_true")
    p.add_argument("--objective", default="labels", choices=[s.name for s in Supervision])
    p.add_argument("--optimizer", default="adamw")
    p.add_argument("--recompute", action="store_true")
    p.add_argument("--resume", type=Path)
    p.add_argument("--set", nargs="*", default=[], help="settings, such as optim.min_lr=1e-5")
    return p.parse_args()


def make_config(a: argparse.Namespace) -> Config:
    config = Config()
    config.train.global_batch, config.train.zero_stage, config.train.precision = (
        BATCH,
        a.stage,
        a.precision,
    )
    config.optim.name, config.optim.weight_decay, config.optim.lr_prompt = (
        Optimizer(a.optimizer),
        0.0,
        1e-4,
    )
    config.optim.lr_adapters, config.data.shards = 1e-3 if a.optimizer == "adamw" else 0.1, "none"
    config.train.objective = Supervision[a.objective]
    config.model = settings(a.kind, config.train.objective, a.backbone)
    config.model.checkpoint_image = a.recompute
    config.model.modalities = ["parsing", "landmarks"] if a.modalities else []
    override(config, a.set)
    return config


def main() -> None:
    a = parse_arguments()
    config = make_config(a)
    ranks = init_distributed(Device.cpu)
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, 2, 64)
    sha256 = checkpoint.frozen_checksum(model, _trained(model))
    before = {name: q.detach().clone() for name, q in model.named_parameters()}
    resumed = checkpoint.read(a.resume) if a.resume else None
    if resumed:
        checkpoint.load_weights(model, _trained(model), resumed)
    engine = build_engine(
        OutputsModule(model), param_groups(model), config, ranks, steps_per_epoch=1
    )
    if resumed:
        restore(engine, resumed, config, ranks)
    checkpointer, objective = (
        AsyncCheckpointer(a.folder, config, ranks, 0, None),
        Objective(config, [], ranks.device),
    )
    frames, labels = clips(2 * (1 + len(config.model.modalities)))
    texts = (
        ClipDescriptions(TEXTS, BATCH, clip_tokenizer())
        if config.train.objective is not Supervision.labels
        else None
    )
    own = slice(
        ranks.rank * BATCH // ranks.world_size, (ranks.rank + 1) * BATCH // ranks.world_size
    )
    losses = []
    for step in range(resumed.state["step"] if resumed else 0, STEPS):
        rates = engine.set_learning_rates(step)
        tokens, has_description = (
            texts.tokenize([str(i) for i in range(BATCH)][own]) if texts else (None, None)
        )
        if model.drop_path:
            keys = [str(i) for i in range(BATCH)][own]
            model.drop_path.sample(keys, config.train.seed, step, ranks.device)
        outputs = engine.deepspeed(frames[own], tokens=tokens, with_logits=objective.uses_labels)
        loss = objective(
            outputs, labels[own], torch.ones_like(labels[own], dtype=torch.bool), has_description
        ).mean()
        engine.micro_step(loss)
        losses.append(ranks.all_reduce_sum([loss.item()])[0] / ranks.world_size)
        if step >= STEPS - 2:
            checkpointer.save(
                engine, {"step": step + 1, "skipped_steps": 0, "frozen_sha256": sha256}
            )
            checkpointer.wait()
    weights = {name: safe_get_full_fp32_param(q) for name, q in engine.trained.items()}
    frozen = 0.0
    for name, q in model.named_parameters():
        if name not in weights:
            with GatheredParameters([q], enabled=hasattr(q, "ds_id")):
                frozen = max(frozen, (q.detach() - before[name]).abs().max().item())
    path = checkpoint.step_folder(a.folder, STEPS)
    before_test = full_weights(engine)
    with averaged_weights(engine):
        tested = full_weights(engine)
    after_test = full_weights(engine)
    if ranks.is_main:
        saved = checkpoint.read(path)
        torch.manual_seed(0)
        fresh = build_model(saved.config.model, CLASSES, 2, 64)
        checkpoint.load_weights(fresh, _trained(fresh), saved)
        taken = all(torch.equal(q, weights[name]) for name, q in _trained(fresh).items())
        changed = sorted(name for name, w in weights.items() if not torch.equal(w, before[name]))
        digest = hashlib.sha256(
            b"".join(saved.model[n].numpy().tobytes() for n in sorted(saved.model))
        ).hexdigest()
        said = {
            "losses": losses,
            "rates": rates,
            "changed": changed,
            "weights": digest,
            "frozen": frozen,
            "taken": taken,
            "swapped_back": all(torch.equal(w, after_test[n]) for n, w in before_test.items()),
            "tested": all(
                torch.equal(w.to(tested[name].dtype), tested[name])
                for name, w in checkpoint.read(path, weights_only=True).model.items()
            ),
        }
        print(json.dumps(said))
    exit_process(0)


if __name__ == "__main__":
    main()
