"""``dfer eval --features``, and what a report makes of it: files, t-SNE, heat maps over errors."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index
from dfer_dist.evaluation.evaluate import load_model
from dfer_dist.evaluation.features import ClipFeatures
from dfer_dist.reporting.plots.errors_sheet import draw_confident_errors
from dfer_dist.reporting.results import load_fold
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.sync import fold_files, run_files
from tests.helpers.cli import check_refusal, invoke
from tests.helpers.paths import HELPERS
from tests.helpers.ranks.spawn import run_ranks
from tests.helpers.training.commands import predictions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stored(trained: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A copy of the run with the features of its fold 2."""
    root = tmp_path_factory.mktemp("features") / "run"
    shutil.copytree(trained.root, root)
    done = invoke("eval", root, "--features", "data.workers=0", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "features.parquet; dfer report" in done.stdout
    return RunDir(root)


def test_features_are_those_of_a_forward_pass_and_give_the_logits(
    stored: RunDir, tiny_shards: Index
) -> None:
    fold = stored.fold(2)
    found = ClipFeatures.read(fold.features)
    keys, logits = predictions(fold.predictions)
    assert found.keys == keys and found.info.fold == 2
    assert found.labels.tolist() == load_fold(fold).table.labels.tolist()
    saved = checkpoint.read(fold.checkpoints / "LATEST", weights_only=True)
    assert found.info.checkpoint == saved.path.name
    model = load_model(saved, saved.config, tiny_shards.classes)
    saved.config.data.workers = 0
    clips = all_clips(tiny_shards, tiny_shards.test_shards(2))
    with torch.no_grad():
        for batch in evaluation_loader(tiny_shards, saved.config.data, clips, batch=3):
            for key, own in zip(batch.keys, model.video_features(batch.pixels(CPU)), strict=True):
                np.testing.assert_allclose(found.values[keys.index(key)], own, atol=1e-6)
    own = found.values @ found.texts.T / model.temperature
    np.testing.assert_allclose(own, logits, atol=1e-4)
    assert pq.read_schema(fold.features).field("feature").type.list_size == found.values.shape[1]


def test_features_are_the_same_on_two_ranks(stored: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "two.parquet"
    script = HELPERS / "ranks" / "recorded_features.py"
    run_ranks(script, 2, str(stored.fold(2).checkpoints / "LATEST"), str(out))
    one, two = ClipFeatures.read(stored.fold(2).features), ClipFeatures.read(out)
    assert two.keys == one.keys and two.info == one.info
    assert np.array_equal(two.values, one.values)


def test_features_of_a_checkpoint_are_next_to_its_predictions(
    stored: RunDir, tmp_path: Path
) -> None:
    path, fold = stored.fold(2).checkpoints / "LATEST", stored.fold(2)
    settings = ["--features", "data.workers=0"]
    out = tmp_path / "mine.parquet"
    assert invoke("eval", path, "--out", out, *settings, cwd=tmp_path).returncode == 0
    own = ClipFeatures.read(tmp_path / "mine.features.parquet")
    assert np.array_equal(own.values, ClipFeatures.read(fold.features).values)
    check_refusal(invoke("eval", path, *settings, cwd=tmp_path), "give --out FILE")
    check_refusal(invoke("eval", stored.root, cwd=tmp_path), "is a run: give one of its")
    check_refusal(
        invoke("eval", stored.root, "--out", out, *settings, cwd=tmp_path), "or --features alone"
    )


def test_report_shows_features_and_errors_without_uploading_frames(
    stored: RunDir, tmp_path: Path
) -> None:
    """MLflow gets the page, which has frames with --share-frames alone."""
    done = invoke("report", stored.root, "--errors", 2, "--explain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 errors with frames of people" in done.stdout
    assert "without heat maps" not in done.stdout
    page = stored.page.read_text()
    assert "data:image/png" not in page
    assert "t-SNE" in page and "Features of clips" in stored.report.read_text()
    with Image.open(stored.mistakes) as image:
        explained = image.size
    faces = stored.mistakes.read_bytes()
    sent = {**run_files(stored), **fold_files(stored, 2)}
    contents = [x.encode() if isinstance(x, str) else x.read_bytes() for x in sent.values()]
    assert stored.page.name in sent
    for frames in (faces, base64.b64encode(faces)):
        assert not any(frames in content for content in contents)
    assert not {"features.parquet", "mistakes.png"} & sent.keys()
    # without the weights the frames are shown alone
    shutil.rmtree(stored.fold(2).checkpoints)
    sheet = draw_confident_errors(stored, 2, explain=True)
    assert "is no complete checkpoint" in sheet.fault
    with Image.open(stored.mistakes) as image:
        assert image.size != explained
    check_refusal(invoke("report", stored.root, "--explain", cwd=tmp_path), "give --errors N too")
