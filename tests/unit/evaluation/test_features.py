"""Features of clips: their file, and how those of views become one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.schema import ClassText, DataConfig, Head, TextPolarity, TextTuning
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.evaluation.evaluate import collect, predict
from dfer_dist.evaluation.feature_recorder import FeatureRecorder
from dfer_dist.evaluation.features import ClipFeatures
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import FEATURES, made_features
from tests.helpers.models.tiny_models import FRAMES, tiny

CPU = torch.device("cpu")
LINEAR = {
    "head": Head.linear,
    "text_polarity": TextPolarity.positive,
    "text": ClassText.names,
    "text_tower": TextTuning.frozen,
}


def test_file_has_a_row_a_clip_and_says_what_it_is(tmp_path: Path) -> None:
    path, made = tmp_path / "features.parquet", made_features([0, 3, 3, 1, 6])
    made.write(path)
    table = pq.read_table(path)
    assert table.column_names == ["key", "fold", "label", "feature"]
    assert table.schema.field("feature").type == pa.list_(pa.float32(), made.values.shape[1])
    assert table["fold"].to_pylist() == [1] * 5
    assert np.array_equal(np.array(table["feature"].to_pylist(), np.float32), made.values)
    about = json.loads(table.schema.metadata[b"dfer_dist"])
    assert about["layer"] == FEATURES.layer
    assert about["checkpoint_sha256"] == FEATURES.checkpoint_sha256
    assert len(about["texts"]["positive"]) == len(FEATURES.classes)
    read = ClipFeatures.read(path)
    assert read.info == made.info and read.keys == made.keys
    for name in ("labels", "values", "texts"):
        assert np.array_equal(getattr(read, name), getattr(made, name))


def test_features_of_another_set_have_no_fold_and_of_a_linear_head_no_texts(
    tmp_path: Path,
) -> None:
    made = made_features([0, 1])
    replace(made, info=replace(FEATURES, fold=None, texts={})).write(tmp_path / "f.parquet")
    read = ClipFeatures.read(tmp_path / "f.parquet")
    assert read.info.fold is None and read.texts.shape == (0, made.values.shape[1])
    assert pq.read_table(tmp_path / "f.parquet")["fold"].to_pylist() == [None, None]


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.parquet"
    made_features([0, 1]).write(path)
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    with pytest.raises(UserError, match=r"missing or damaged.*eval --features"):
        ClipFeatures.read(path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="missing or damaged"):
        ClipFeatures.read(path)


def test_recorder_gives_the_logits_of_the_model_and_the_texts_of_each_polarity() -> None:
    frames = torch.randint(256, (2, FRAMES, 3, 64, 64), dtype=torch.uint8)
    for head, polarities in (({}, ["positive", "negative"]), (LINEAR, [])):
        model = tiny(**head).eval()
        recorder = FeatureRecorder(model)
        with torch.no_grad():
            text = model.text_features()
            assert torch.equal(recorder.forward(frames, text), model(frames, text))
        texts = recorder.class_texts()
        assert list(texts) == polarities
        if text is not None:
            assert np.array_equal(np.concatenate([*texts.values()]), text)


def test_features_of_views_are_averaged_and_normalized_on_any_number_of_ranks(
    tiny_shards: Index,
) -> None:
    """The logits of a view are those of its feature, so that a single forward pass has both."""
    model = tiny().eval()
    data = DataConfig("-", num_frames=4, image_size=64, workers=0)
    test = all_clips(tiny_shards, tiny_shards.test_shards(2)[:1])
    expected = {}
    with torch.no_grad():
        text = model.text_features()
        for batch in evaluation_loader(tiny_shards, data, test, batch=2, views=2, mirror=True):
            views = batch.pixels(CPU).unflatten(1, (2, 4)).unbind(1)
            for key, *rows in zip(batch.keys, *map(model.video_features, views), strict=True):
                expected[key] = [*expected.get(key, []), *rows]

    def record(world: int) -> ClipFeatures:
        recorders, rows = [FeatureRecorder(model) for _ in range(world)], {}
        for rank, recorder in enumerate(recorders):
            batches = evaluation_loader(
                tiny_shards, data, test, batch=2, rank=rank, world_size=world, views=2, mirror=True
            )
            rows |= predict(
                lambda frames, own=recorder: own.forward(frames, text), recorder.watch(batches), CPU
            )
            recorders[0]._rows |= recorder._rows
        table = collect(rows, tiny_shards, test, Ranks(0, 1, 0, CPU))
        assert table is not None
        return recorders[0].features(FEATURES, table)

    found = record(1)
    assert len(found.keys) == len(test) and len(expected[found.keys[0]]) == 4
    for key, row in zip(found.keys, found.values, strict=True):
        mean = F.normalize(torch.stack(expected[key]).mean(0), dim=-1)
        np.testing.assert_allclose(row, mean, atol=1e-6)
    again = record(2)
    assert again.keys == found.keys and np.array_equal(again.values, found.values)
