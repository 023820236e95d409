"""Train a tiny random tower of each family on the demo, and stop and resume each.

The table goes into ``docs/development/families.md``: ``python benchmarks/families.py``. It needs the
shards of the demo, ``data/demo/shards``, which ``dfer demo`` makes. ``python benchmarks/families.py
clip timm`` trains these alone and writes nothing.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from write import DFER, HERE, machine, table

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldStatus

DOC = HERE / "docs" / "development" / "families.md"
EPOCHS = 20
STEPS = 17  # of an epoch of the demo
STOP_AFTER = 7 * STEPS + STEPS // 2  # steps, in mid-epoch
TIMEOUT = 900.0  # seconds to that step
# SigLIP 2 (open_clip's ViT-B-16-SigLIP2) with a small image tower of timm and CLIP's vocabulary.
SIGLIP2 = {
    "embed_dim": 96,
    "custom_text": True,
    "init_logit_scale": 2.66,
    "init_logit_bias": 0.0,
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "test_vit3",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "width": 96,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
# A VideoMAE of two blocks, in the format of transformers.
VIDEOMAE = {
    "model_type": "videomae",
    "image_size": 64,
    "patch_size": 16,
    "num_frames": 8,
    "tubelet_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
# Tiny backbones, by the file that holds one.
SIZES = {"siglip2.json": SIGLIP2, "videomae.json": VIDEOMAE}
COMMON = [
    f"train.epochs={EPOCHS}",
    "train.save_epochs=20",
    "train.precision=bf16",
    "model.pretrained=none",
    "model.normalize=true",
    "optim.lr_image=1e-3",
    "optim.lr_head=1e-2",
    "eval.shuffle_frames=false",
    "tracking.enabled=false",
]
FAMILIES = {
    "clip": ("CLIP", []),
    "siglip2": ("SigLIP 2", ["model.backbone=siglip2.json"]),
    "timm": (
        "timm image tower, linear head",
        ["model.backbone=timm:test_vit2", "model.head=linear", "data.image_size=64"],
    ),
    "videomae": (
        "VideoMAE, linear head",
        ["model.backbone=videomae:videomae.json", "model.head=linear"],
    ),
    "kit": (
        "CLIP with mixup, drop path, layer decay and EMA",
        [
            "data.augment.mixup=0.8",
            "model.drop_path=0.1",
            "optim.layer_decay=0.75",
            "train.ema=0.95",
        ],
    ),
}


@dataclass(frozen=True)
class Row:
    """What training a family gave."""

    name: str
    war: float
    seconds: float
    gib: float
    resumed: str


def train(folder: Path, name: str, settings: list[str], stop_after: int | None = None) -> FoldDir:
    """Train fold 1 on two ranks; with ``stop_after`` stop it after that step and resume it."""
    command = [DFER, "train", "demo", "--fold", "1", "--nproc", "2", "--runs", str(folder)]
    command += ["--name", name, *COMMON, *settings]
    fold = RunDir(folder / name).fold(1)
    if stop_after:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT
        while len(losses(fold)) < stop_after and process.poll() is None:
            assert time.monotonic() < deadline, f"{name}: no step {stop_after}"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert not fold.result.exists(), f"{name} was done before it was stopped"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return fold


def losses(fold: FoldDir) -> list[float]:
    """Return the loss of each step that a fold has logged."""
    if not fold.metrics.exists():
        return []
    lines = fold.metrics.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["loss"] for row in rows if "loss" in row]


def compare(whole: FoldDir, resumed: FoldDir) -> str:
    """Return whether two folds have the same losses and predictions, and where the second resumed."""
    step = FoldStatus.read(resumed.status).attempts[-1].from_step
    same = losses(whole) == losses(resumed)
    same = same and whole.predictions.read_bytes() == resumed.predictions.read_bytes()
    return f"equal to the bit, from step {step}" if same else f"differs, from step {step}"


def measure(key: str, folder: Path) -> Row:
    """Train a family twice, the second time with a stop."""
    name, settings = FAMILIES[key]
    for file, content in SIZES.items():
        (folder / file).write_text(json.dumps(content))
        settings = [s.replace(file, str(folder / file)) for s in settings]
    whole = train(folder, f"{key}-whole", settings)
    resumed = train(folder, f"{key}-resumed", settings, STOP_AFTER)
    (attempt,) = FoldStatus.read(whole.status).attempts
    result = json.loads(whole.result.read_text())
    assert attempt.started and attempt.ended and attempt.peak_bytes
    started, ended = map(datetime.fromisoformat, (attempt.started, attempt.ended))
    seconds = (ended - started).total_seconds()
    return Row(name, result["war"], seconds, attempt.peak_bytes / 2**30, compare(whole, resumed))


def main() -> None:
    """Train the families that are named, or all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for key in sys.argv[1:] or FAMILIES:
            rows.append(measure(key, Path(folder)))
            print(rows[-1], flush=True)
    cells = [(r.name, f"{r.war:.1f}", f"{r.seconds:.0f}", f"{r.gib:.2f}", r.resumed) for r in rows]
    text = table(["Model", "WAR %", "seconds", "memory, GiB", "stopped and resumed"], cells)
    if not sys.argv[1:]:
        before = DOC.read_text(encoding="utf-8")
        block = re.compile(r"(<!-- families -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = f"{machine()}\n\n{text}"
        DOC.write_text(block.sub(lambda m: f"{m[1]}{text}{m[2]}", before), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
