"""A recipe on real ranks: layer-wise rates, decay by kind, averaged weights, drop path."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dfer_dist.config.schema import Supervision
from dfer_dist.data.shards.index import Index
from dfer_dist.evaluation.evaluate import evaluate_checkpoint
from dfer_dist.models.build import build_model
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.files import read_json
from tests.helpers.models.tiny_models import ENGINE
from tests.helpers.ranks.spawn import run_ranks
from tests.helpers.ranks.tuned_engine import CLASSES, STEPS, clips, settings
from tests.helpers.training.commands import close, dfer, one_epoch, predictions

LAYERS, DECAY, LAYER_DECAY, EMA = 2, 0.1, 0.5, 0.6
PEAK = {"image": 3e-3, "prompt": 1e-2}
LOWEST, DROP_PATH = 1e-3, 0.6
RECIPE = [
    "optim.schedule=cosine",
    f"train.epochs={STEPS}",
    f"optim.lr_image={PEAK['image']}",
    f"optim.lr_prompt={PEAK['prompt']}",
    f"optim.min_lr={LOWEST}",
    "optim.betas=[0.8,0.95]",
    f"optim.weight_decay={DECAY}",
    "optim.decay_all=false",
    f"optim.layer_decay={LAYER_DECAY}",
    f"train.ema={EMA}",
    f"model.drop_path={DROP_PATH}",
]


def train(folder: Path, ranks: int, stage: int, *options: str) -> dict:
    return run_ranks(
        ENGINE,
        ranks,
        *("--kind", "all", "--stage", str(stage), "--folder", str(folder)),
        *("--set", *RECIPE, *options),
    )


def layer(name: str) -> int:
    """Layers of the tiny tower, from the input."""
    if "resblocks" in name:
        return int(name.split(".")[3]) + 1
    before = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
    return 0 if name.split(".")[1] in before else LAYERS + 1


def plain() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and averaged weights of a plain loop."""
    torch.manual_seed(0)
    cfg = settings("all", Supervision.labels, "tiny")
    cfg.drop_path = DROP_PATH
    model = build_model(cfg, CLASSES, 2, 64)
    frames, labels = clips(2)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in weights.items()}
    groups = [
        {
            "params": [p],
            "part": name.split(".")[0],
            "scale": LAYER_DECAY ** (LAYERS + 1 - layer(name)) if "image" in name else 1,
            "weight_decay": DECAY if p.ndim > 1 and "positional" not in name else 0.0,
        }
        for name, p in weights.items()
    ]
    optimizer, losses = torch.optim.AdamW(groups, betas=(0.8, 0.95)), []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
            group["lr"] = (LOWEST + (PEAK[group["part"]] - LOWEST) * cosine) * group["scale"]
        model.drop_path.sample([str(i) for i in range(len(labels))], 0, step, frames.device)
        loss = F.cross_entropy(model(frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, p in weights.items():
            average[name] = EMA * average[name] + (1 - EMA) * p.detach()
    return losses, average


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 2), (4, 3)])
def test_recipe_is_that_of_a_plain_loop(tmp_path: Path, ranks: int, stage: int) -> None:
    seen = train(tmp_path, ranks, stage)
    losses, average = plain()
    assert seen["losses"] == pytest.approx(losses, rel=1e-5)
    assert seen["rates"]["image"] == pytest.approx(LOWEST + (PEAK["image"] - LOWEST) / 4)
    assert seen["swapped_back"] and seen["tested"] and seen["taken"]
    before, last = (tmp_path / f"step-{step:08d}" for step in (STEPS - 1, STEPS))
    old, weights = load_file(before / "ema.safetensors"), load_file(last / "model.safetensors")
    saved = load_file(last / "ema.safetensors")
    assert saved.keys() == weights.keys() == average.keys()
    for name, value in saved.items():
        assert torch.equal(value, old[name].lerp(weights[name], 1 - EMA)), name
        # AdamW scales up gradients that are zero up to rounding, such as those of keys' biases.
        error = 0 if "in_proj_bias" in name else (value - average[name]).abs().mean()
        assert error < 1e-3 * PEAK["image"], name


@pytest.mark.parametrize(("ranks", "stage"), [(2, 1), (2, 3)])
def test_recipe_resumes_to_the_bit_in_bf16(tmp_path: Path, ranks: int, stage: int) -> None:
    half = ["--precision", "bf16"]
    whole = train(tmp_path / "whole", ranks, stage, *half)
    middle = tmp_path / "whole" / f"step-{STEPS - 1:08d}"
    again = train(tmp_path / "again", ranks, stage, *half, "--resume", str(middle))
    assert again["losses"] == whole["losses"][-1:] and again["weights"] == whole["weights"]
    assert whole["swapped_back"] and whole["tested"]
    last = f"step-{STEPS:08d}/ema.safetensors"
    assert (tmp_path / "again" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def losses_of(fold: FoldDir) -> list[float]:
    lines = map(json.loads, fold.metrics.read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def evaluate(checkpoint: Path, folder: Path) -> np.ndarray:
    """Logits of a checkpoint in this process."""
    evaluate_checkpoint(checkpoint, None, [], folder / "evaluated")
    return predictions(folder / "evaluated")[1]


def test_fold_is_validated_and_tested_with_averaged_weights(
    tiny_shards: Index, tmp_path: Path
) -> None:
    """Validating with the average in mid-training must not change the training by a bit."""
    runs = {}
    for selection in ("last", "best_test"):
        name = selection.replace("_", "-")
        options = one_epoch(tiny_shards, tmp_path, "train.epochs=2", "train.micro_batch=2")
        options += ["train.ema=0.8", f"train.selection={selection}", "train.precision=bf16"]
        command = ["train", "demo", "--fold", "2", "--nproc", "2", "--name", name]
        dfer(*command, *options)
        runs[selection] = RunDir(tmp_path / name).fold(2)
        assert read_json(runs[selection].result)["ema"] == 0.8
    fold = runs["best_test"]
    assert losses_of(fold) == losses_of(runs["last"]) and len(losses_of(fold)) == 12
    checkpoint = fold.root / read_json(fold.result)["checkpoint"]
    assert "ema.safetensors" in read_json(checkpoint / "COMPLETE")["sha256"]
    assert "moving average with decay 0.8" in (fold.root.parent / "summary.md").read_text()
    for fold in runs.values():
        checkpoint = fold.root / read_json(fold.result)["checkpoint"]
        logits = predictions(fold.predictions)[1]
        assert close(evaluate(checkpoint, tmp_path), logits, 1e-2)
    # Without the average, the weights themselves are tested.
    hashes = read_json(checkpoint / "COMPLETE")
    del hashes["sha256"]["ema.safetensors"]
    (checkpoint / "ema.safetensors").unlink()
    (checkpoint / "COMPLETE").write_text(json.dumps(hashes))
    assert not close(evaluate(checkpoint, tmp_path), logits, 5e-2)


def test_recipe_of_a_fold_is_the_same_on_other_ranks_and_after_a_restart(
    trained: RunDir, tiny_shards: Index, tmp_path: Path
) -> None:
    """With one micro batch a step on one rank, and two on each of two ranks."""
    recipe = ["model.drop_path=0.5", "optim.layer_decay=0.7", "optim.decay_all=false"]
    recipe += ["train.ema=0.8", "optim.min_lr=1e-5", "train.save_steps=3"]

    def train_fold(name: str, ranks: int, *options: str) -> FoldDir:
        command = ["train", "demo", "--fold", "2", "--nproc", str(ranks), "--name", name]
        dfer(*command, *one_epoch(tiny_shards, tmp_path, *recipe, *options))
        return RunDir(tmp_path / name).fold(2)

    one, fold = train_fold("one", 1), train_fold("two", 2, "train.micro_batch=2")
    assert losses_of(fold) == pytest.approx(losses_of(one), rel=1e-4)
    # The first losses differ by the branches that are dropped alone.
    assert losses_of(one)[0] != losses_of(trained.fold(2))[0]

    last, whole = fold.checkpoints / "step-00000006", losses_of(fold)
    stored = {file.name: file.read_bytes() for file in last.glob("*.safetensors")}
    assert len(stored) == 3
    shutil.rmtree(last)
    fold.result.unlink()
    train_fold("two", 2, "train.micro_batch=2")
    assert read_json(fold.status)["attempts"][-1]["from_step"] == 3
    assert losses_of(fold) == whole
    for name, data in stored.items():
        assert (last / name).read_bytes() == data, name
