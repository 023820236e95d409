"""Training, exporting and predicting with parsing maps and landmarks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.schema import ModelConfig
from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.sidecars import describe_modalities, sidecar_tar_path
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.demo.dataset import render_demo
from dfer_dist.evaluation.evaluate import evaluate_checkpoint, predict
from dfer_dist.inference import export, exported
from dfer_dist.inference.predict import predict_video
from dfer_dist.runs.layout import RunDir
from dfer_dist.training.build import check_same_data
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from launch.runs import open_run
from tests.helpers.data.videos import Pose, draw, encode
from tests.helpers.models.official_checkpoints import ours
from tests.helpers.models.tiny_models import CLASSES, FINE
from tests.helpers.training.commands import ONE_EPOCH, SMALL, dfer

BOTH = ["parsing", "landmarks"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("faces")
    render_demo(root, clips=35, size=32, workers=1)
    listing = read_dataset("demo", root / "frames", root / "lists")
    index = pack(listing.records, "demo", root / "shards", 64, workers=1)
    enrich(
        root / "shards", EnrichRequest(landmarks_from=root / "landmarks", parsing=True), workers=1
    )
    return index


@pytest.mark.engine_full
def test_fold_with_modalities_trains_and_exports(faces: Index, tmp_path: Path) -> None:
    """Train, evaluate, export; refuse to resume with other parsing maps."""
    args = [
        "train",
        "demo",
        "--fold",
        "1",
        "--name",
        "modalities",
        "--runs",
        str(tmp_path),
        f"data.shards={faces.root}",
        *SMALL,
        *ONE_EPOCH,
    ]
    args += ["model.image=adapters", "model.modalities=[parsing,landmarks]"]
    dfer(*args)
    fold = RunDir(tmp_path / "modalities").fold(1)
    result = read_json(fold.result)
    assert result["levels"] == BOTH and result["n"] == 7
    scores = evaluate_checkpoint(fold.checkpoints / "LATEST", None, [], None).scores
    assert (scores.war, scores.uar) == (result["war"], result["uar"])
    assert (
        "| Other modalities | parsing maps and landmarks, learned weights |"
        in (tmp_path / "modalities" / "summary.md").read_text()
    )
    info = export.export(fold.checkpoints / "LATEST", tmp_path / "model", [])
    assert info.modalities is not None
    assert info.modalities["made"] == {"parsing": ["regions"], "landmarks": ["import"]}
    assert info.modalities["hash"] == result["levels_hash"]
    assert (
        "adapters and parsing and landmarks of FineCLIPER"
        in (tmp_path / "model" / exported.CARD).read_text()
    )
    saved = checkpoint.read(fold.checkpoints / "LATEST")
    check_same_data(saved, saved.info)
    assert saved.info.modalities == describe_modalities(faces, BOTH)
    for shard in range(len(faces.shards)):
        sidecar_tar_path(faces.path(shard), "parsing").unlink()
    with pytest.raises(UserError, match=r"model\.modalities has parsing, but .* is missing"):
        evaluate_checkpoint(fold.checkpoints / "LATEST", None, [], None)
    with pytest.raises(UserError, match=r"model\.modalities has parsing, but .* is missing"):
        open_run(tmp_path, "other", "demo", args[8:], (), None, 1)
    assert not (tmp_path / "other").exists(), "refused before anything is made"
    blank = np.zeros((4, 4), np.uint8)
    for shard in range(len(faces.shards)):
        table = faces.sidecar(shard).to_pydict()
        for key, frames in zip(table["key"], table["frames"], strict=True):
            (tmp_path / "maps" / key).mkdir(parents=True)
            for t in range(frames):
                Image.fromarray(blank).save(tmp_path / "maps" / key / f"{t}.png")
    enrich(Path(str(faces.root)), EnrichRequest(parsing_from=tmp_path / "maps"), workers=1)
    with pytest.raises(UserError, match="trained on other parsing maps or landmarks"):
        check_same_data(saved, replace(saved.info, modalities=describe_modalities(faces, BOTH)))


@pytest.mark.parametrize("crops", [False, True])
def test_video_prediction_equals_evaluation_of_shards(tmp_path: Path, crops: bool) -> None:
    settings = ModelConfig(**FINE, modalities=BOTH, adapter_time=True)  # type: ignore[arg-type]
    ours(tmp_path / "ours", settings, tuple(CLASSES))
    export.export(tmp_path / "ours", tmp_path / "out", [])
    model = exported.load(tmp_path / "out", device="cpu", precision="fp32")
    for i, name in enumerate(("Happy", "Sad")):
        (tmp_path / "videos" / name).mkdir(parents=True)
        heads = [[] if t == 4 else [Pose(110 + 4 * t, 100 - 10 * i, 1.0, 3 * t)] for t in range(7)]
        encode(tmp_path / "videos" / name / f"{name}.mp4", draw(heads, 320, 240))
    listing = read_dataset("folder", tmp_path / "videos", folds=2, prefer_videos=True)
    index = pack(
        listing.records,
        "mine",
        tmp_path / "shards",
        workers=1,
        classes=listing.classes,
        faces=crops,
    )
    enrich(tmp_path / "shards", EnrichRequest(landmarks=True, parsing=True), workers=1)
    clips = all_clips(index, range(len(index.shards)))
    batches = evaluation_loader(index, model.config.data, clips, batch=2, modalities=BOTH)
    rows = predict(lambda frames: model.model(frames, model.text_features), batches, model.device)
    for key, (_, logits) in rows.items():
        name = key.partition("_")[0]
        course = predict_video(
            model, tmp_path / "videos" / name / f"{name}.mp4", math.inf, faces=crops
        )
        np.testing.assert_allclose(course.logits[0], logits, rtol=1e-4, atol=1e-4)
    made = {"parsing": ["parser"], "landmarks": ["dlib"]}
    model = replace(model, info=replace(model.info, modalities={"made": made}))
    for refused in (
        lambda: model.logits(np.zeros((1, 4, 8, 8, 3), np.uint8)),
        lambda: predict_video(model, tmp_path / "x.mp4"),
    ):
        with pytest.raises(UserError, match=r"parsing maps of another source \(parser\)"):
            refused()
