"""MAFW's compound form as 43 classes, and as sets of the 11 with sigmoid outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfer_dist.data.loading.sampler import SampleRef
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.compound import membership
from dfer_dist.data.sources.records import CLASSES, ELEVEN
from dfer_dist.evaluation.evaluate import evaluate_checkpoint
from dfer_dist.evaluation.multilabel import indicator, label_sets
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import load
from dfer_dist.reporting.files import run_report
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.tables import markdown
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from tests.helpers.data.compound import COMPOUND_CLIPS, pack_compound
from tests.helpers.training.commands import dfer, one_epoch

MAFW = CLASSES["mafw-compound"]
SIZES = ["data.num_frames=2", "train.global_batch=24", "eval.batch=43"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return pack_compound(tmp_path_factory.mktemp("compound"))


def train(index: Index, runs: Path, output: str, *more: str) -> RunDir:
    arguments = one_epoch(index, runs, *SIZES, f"model.output={output}", *more)
    dfer("train", "demo", "--fold", "1", "--name", output, *arguments)
    return RunDir(runs / output)


@pytest.fixture(scope="module")
def runs(shards: Index, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("runs")
    return {output: train(shards, folder, output) for output in ("softmax", "sigmoid")}


def test_packed_set_has_the_classes_and_labels_it_was_made_of(shards: Index) -> None:
    assert shards.classes == MAFW and shards.extras == ("labels",)
    assert sum(s.clips for s in shards.shards) == len(COMPOUND_CLIPS) == 300
    assert {s.split: s.clips for s in shards.shards} == {
        **{f"fold{k}": 43 for k in (3, 4, 5)},
        "fold1": 86,
        "fold2": 85,
    }
    made = {clip.source: clip.label for clip in COMPOUND_CLIPS}
    for i, shard in enumerate(shards.shards):
        table = shards.sidecar(i)
        labels = [made[key] for key in table["key"].to_pylist()]
        assert table["label"].to_pylist() == labels
        sets = label_sets(shards, [SampleRef(i, row, 0) for row in range(shard.clips)])
        assert np.array_equal(indicator(sets, MAFW), membership(MAFW)[labels])


@pytest.mark.engine_full
def test_both_forms_are_scored_alike_and_in_the_report(runs: dict[str, RunDir]) -> None:
    for output, run in runs.items():
        result = FoldResult.read(run.fold(1).result)
        assert (result.output, result.n, result.classes) == (output, 86, list(MAFW))
        assert result.multilabel is not None and result.mean_ap and result.auc
        lines = [json.loads(x) for x in run.fold(1).metrics.read_text().splitlines()]
        assert lines[-1]["test_multilabel_mean_ap"] == result.multilabel.mean_ap
        assert lines[-1]["test_macro_f1"] == result.macro_f1
        columns = pq.read_schema(run.fold(1).predictions).names
        assert ("labels" in columns) == (output == "sigmoid")
        loaded = load_run(run)
        (section,) = [s for s in run_report(loaded).sections if s.key == "multilabel"]
        text = markdown(section.tables[0])
        assert f"| {result.multilabel.exact_match:.2f} |" in text and "mAP" in text
        assert ("at least 0.5" in section.text[0]) == (output == "sigmoid")


@pytest.mark.engine_full
def test_exported_model_of_sigmoid_outputs_has_the_single_classes(
    runs: dict[str, RunDir], tmp_path: Path
) -> None:
    checkpoint = runs["sigmoid"].fold(1).checkpoints / "LATEST"
    result = FoldResult.read(runs["sigmoid"].fold(1).result)
    assert evaluate_checkpoint(checkpoint, None, [], None).scores == result.scores
    info = export(checkpoint, tmp_path / "model", [])
    assert (info.classes, info.output) == (list(ELEVEN), "sigmoid")
    model = load(tmp_path / "model")
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3)).astype(np.uint8)
    logits = model.logits(frames)
    assert model.probabilities(frames) == pytest.approx(1 / (1 + np.exp(-logits)))
    assert "do not exclude each other" in (tmp_path / "model" / "README.md").read_text()
