"""Video towers through the command line: training on real ranks, resuming, export, refusals."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.evaluation.zero_shot import zero_shot
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import CARD, load
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from tests.helpers.cli import invoke
from tests.helpers.data.videos import encode
from tests.helpers.models.small_backbones import write_small_video
from tests.helpers.training.commands import (
    close,
    dfer,
    one_epoch,
    predictions,
    start_slow,
    wait_for,
)

SETTINGS = [
    "model.pretrained=none",
    "model.head=linear",
    "model.normalize=true",
    "model.drop_path=0.3",
    "optim.layer_decay=0.75",
    "optim.lr_head=1e-2",
    "train.epochs=2",
]


def command(index: Index, runs: Path, name: str, ranks: int, *more: str) -> list[str]:
    backbone = f"model.backbone=videomae:{runs / 'tower'}"
    arguments = one_epoch(index, runs, *SETTINGS, backbone, *more)
    return ["train", "demo", "--fold", "2", "--nproc", str(ranks), "--name", name, *arguments]


def losses(run: RunDir) -> list[float]:
    lines = map(json.loads, run.fold(2).metrics.read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def one_rank(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A tower with regions, trained on one rank under ZeRO-1."""
    runs = tmp_path_factory.mktemp("video")
    write_small_video(runs / "tower", region_size=(1, 2, 4))
    dfer(*command(tiny_shards, runs, "one", 1))
    return RunDir(runs / "one")


@pytest.mark.engine_full
def test_two_ranks_under_zero_3_resume_after_sigterm(one_rank: RunDir, tiny_shards: Index) -> None:
    """Losses are those of one rank under ZeRO-1, with recomputed activations too."""
    runs = one_rank.root.parent
    run = RunDir(runs / "two")
    arguments = command(
        tiny_shards, runs, "two", 2, "train.zero_stage=3", "model.checkpoint_image=true"
    )
    first = start_slow(*arguments)
    wait_for(run.fold(2).metrics, '"step": 3,')
    first.send_signal(signal.SIGTERM)
    assert first.wait(120).returncode == 75
    begun = len(losses(run))
    dfer(*arguments)
    assert 3 <= begun < len(losses(run)) == 12
    assert losses(run) == pytest.approx(losses(one_rank), rel=1e-5)
    keys, logits = predictions(run.fold(2).predictions)
    want_keys, want = predictions(one_rank.fold(2).predictions)
    assert keys == want_keys and close(logits, want, 1e-3)


def test_an_exported_model_needs_no_folder_of_the_backbone(
    one_rank: RunDir, tiny_shards: Index, tmp_path: Path
) -> None:
    tower = one_rank.root.parent / "tower"
    export(one_rank.fold(2).checkpoints / "LATEST", tmp_path / "model", [])
    assert "a video tower and a linear classifier" in (tmp_path / "model" / CARD).read_text()
    video = tmp_path / "a.mp4"
    encode(video, np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8))
    tower.rename(tmp_path / "gone")
    try:
        model = load(tmp_path / "model", "cpu", "fp32")
        done = invoke("predict", "model", video, cwd=tmp_path)
    finally:
        shutil.move(tmp_path / "gone", tower)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions" / "a.mp4.csv").is_file()
    assert model.text_features is None
    reader, (keys, wanted) = ClipReader(tiny_shards), predictions(one_rank.fold(2).predictions)
    shard = tiny_shards.test_shards(2)[0]
    clip = reader.read(shard, 0, lambda _, n: np.arange(n))
    assert close(model.logits(clip.frames[None]), wanted[keys.index(clip.key)][None], 1e-4)
    with safe_open(tmp_path / "model" / "model.safetensors", "np") as weights:
        assert "image.trunk.region_tokens" in weights.keys()  # noqa: SIM118


def test_zero_shot_is_refused(one_rank: RunDir) -> None:
    with pytest.raises(UserError, match=r"model\.head=linear of .* reads none"):
        zero_shot(one_rank.fold(2).checkpoints / "LATEST", None, [], None)
