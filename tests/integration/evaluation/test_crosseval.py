"""Several runs on several sets: every cell is what ``dfer eval`` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.schema import ModelConfig, Precision, config_hash
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.evaluation import crosseval
from dfer_dist.evaluation.evaluate import evaluate_checkpoint
from dfer_dist.reporting.comparison.crosseval import CellScores, CrossEval
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.files import write_json
from tests.helpers.cli import check_refusal, invoke
from tests.helpers.models.official_checkpoints import dfer, ours
from tests.helpers.training.commands import predictions

# of tiny_shards: happiness, sadness, neutral, anger, surprise, disgust, fear
CLASSES = ("contempt", "fear", "surprise", "anger", "neutral", "sadness", "happiness")
FEW = ["data.workers=0", "train.precision=fp32", "train.device=cpu"]


class Case(NamedTuple):
    """Two runs, two sets, what the command printed, and the folder of its files."""

    runs: list[RunDir]
    sets: list[Index]
    text: str
    out: Path

    def command(self, *more: object) -> list[object]:
        sets = ",".join(str(index.root) for index in self.sets)
        return ["crosseval", *(run.root for run in self.runs), "--on", sets, *FEW, *more]

    def cell(self, run: int, index: int) -> CellScores:
        return CrossEval.read(self.out / "crosseval.json").cells[2 * run + index]


def make_run(root: Path, index: Index, folds: dict[int, int]) -> RunDir:
    """Write a run of random models, by fold and seed, tested on their own folds as training does.

    With the seeds of this file a model predicts three or four classes.
    """
    run = RunDir(root)
    for fold, seed in folds.items():
        folder = run.fold(fold).checkpoints / "step-00000007"
        folder.parent.mkdir(parents=True)
        ours(folder, ModelConfig(), index.classes)
        saved = checkpoint.read(folder)
        torch.manual_seed(seed)
        weights = {name: w + torch.randn_like(w) for name, w in saved.model.items()}
        saved.config.data.shards, saved.config.train.precision = str(index.root), Precision.fp32
        state = {**saved.state, "dataset": index.name, "index_hash": index.hash, "fold": fold}
        checkpoint.write(folder, weights, {}, saved.config, state)
        scores = evaluate_checkpoint(folder, None, FEW, run.fold(fold).predictions).scores
        result = FoldResult(
            dataset=index.name,
            fold=fold,
            **asdict(scores),
            selection="last",
            epoch=3,
            config_hash=config_hash(saved.config),
            index_hash=index.hash,
            checkpoint=str(folder.relative_to(run.fold(fold).root)),
        )
        result.write(run.fold(fold).result)
    write_json(run.run, {"folds": [1, 2]})
    return run


@pytest.fixture(scope="module")
def case(tiny_source: Path, tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Runs ``first`` (folds 1 and 2) and ``second`` (fold 2), each of its own set."""
    root = tmp_path_factory.mktemp("crosseval")
    records = read_lists("dfew", tiny_source / "frames", tiny_source / "lists")
    other = pack(records, "other", root / "other", workers=1, classes=CLASSES)
    runs = [
        make_run(root / "first", tiny_shards, {1: 8, 2: 17}),
        make_run(root / "second", other, {2: 17}),
    ]
    case = Case(runs, [tiny_shards, other], "", root / "out")
    done = invoke(*case.command("--out", case.out), cwd=root)
    assert done.returncode == 0, done.stderr
    return case._replace(text=done.stdout)


def test_cells_equal_dfer_eval_of_each_model(case: Case, tmp_path: Path) -> None:
    for i, run in enumerate(case.runs):
        for j, index in enumerate(case.sets):
            cell = case.cell(i, j)
            assert [m.fold for m in cell.models] == [[1, 2], [2]][i]
            for model in cell.models:
                table = tmp_path / f"{i}-{j}-{model.fold}.parquet"
                latest = run.fold(model.fold).checkpoints / "step-00000007"
                text = dfer("eval", latest, f"data.shards={index.root}", "--out", table, *FEW)
                assert f"{model.n} clips: UAR {model.uar:.2f} (95 % " in text
                assert f", WAR {model.war:.2f} (95 % " in text
                keys, logits = predictions(table)
                assert keys == predictions(Path(model.predictions))[0]
                assert np.array_equal(logits, predictions(Path(model.predictions))[1])
            assert cell.uar.mean == np.mean([m.uar for m in cell.models])
            assert cell.war.ci95[0] - 1e-9 <= cell.war.mean <= cell.war.ci95[1] + 1e-9


def test_own_set_is_tested_by_folds_with_the_predictions_of_the_run(case: Case) -> None:
    own, other = case.cell(0, 0), case.cell(0, 1)
    assert (own.own, own.n, own.common, own.left_out) == (True, 24, None, {})
    files = [Path(model.predictions) for model in own.models]
    assert files == [case.runs[0].fold(k).predictions for k in (1, 2)]
    assert own.uar.mean == np.mean([FoldResult.read(f.parent / "result.json").uar for f in files])
    assert not other.own and [model.n for model in other.models] == [other.n] * 2
    assert case.cell(1, 1).missing_folds == [1]
    assert "second: fold 1 missing." in case.text


def test_classes_are_matched_by_name(case: Case) -> None:
    cell, index = case.cell(0, 1), case.sets[1]
    truth = {
        row["key"]: CLASSES[row["label"]]
        for i in range(len(index.shards))
        for row in index.sidecar(i).to_pylist()
    }
    known = [key for key, name in truth.items() if name != "contempt"]
    assert cell.left_out == {"contempt": 60 - len(known)} and cell.n == len(known)
    names = list(case.sets[0].classes)
    right, right_among_common = [], []
    for model in cell.models:
        keys, logits = predictions(Path(model.predictions))
        assert sorted(keys) == sorted(known)
        for key, row in zip(keys, logits, strict=True):
            right.append(names[row.argmax()] == truth[key])
            row[names.index("disgust")] = -np.inf
            right_among_common.append(names[row.argmax()] == truth[key])
    assert cell.war.mean == pytest.approx(100 * np.mean(right))
    assert cell.common and cell.common.war == pytest.approx(100 * np.mean(right_among_common))
    assert cell.common.war != cell.war.mean
    back = case.cell(1, 0)
    assert list(back.left_out) == ["disgust"] and back.n + back.left_out["disgust"] == 60
    assert f"(contempt {60 - len(known)})" in case.text


def test_the_same_command_makes_only_what_is_missing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def spy(*arguments: Any) -> object:
        made.append(arguments[3].name)
        return evaluate_checkpoint(*arguments)

    monkeypatch.setattr(crosseval, "evaluate_checkpoint", spy)
    before = (case.out / "crosseval.json").read_text()
    gone = Path(case.cell(0, 1).models[1].predictions)
    gone.unlink()
    done = invoke(*case.command("--out", case.out), cwd=case.out)
    assert "6 tests of a model on a set, 5 of them done before" in done.stdout
    assert made == [gone.name]
    assert (case.out / "crosseval.json").read_text() == before
    # other settings are other tests, of the own sets too
    sets = [str(index.root) for index in case.sets]
    tests = crosseval.plan_tests(case.runs, sets, [*FEW, "eval.views=2"], case.out / "predictions")
    assert len(crosseval.missing_tests(tests)) == 6


def fold_of(run: RunDir) -> Path:
    return run.fold(1).checkpoints / "step-00000007"


def unfinished(case: Case, folder: Path) -> list[object]:
    write_json(folder / "run.json", {"folds": [1, 2]})
    return [folder, "--on", case.sets[0].root]


def pruned(case: Case, folder: Path) -> list[object]:
    run = make_run(folder / "run", case.sets[0], {1: 8})
    (fold_of(run) / "COMPLETE").unlink()
    return [run.root, "--on", case.sets[0].root]


def other_classes(case: Case, folder: Path) -> list[object]:
    run = make_run(folder / "run", case.sets[0], {1: 8})
    saved = checkpoint.read(fold_of(run))
    state = {**saved.state, "classes": ["anxiety", "disappointment"]}
    checkpoint.write(fold_of(run), saved.model, {}, saved.config, state)
    return [run.root, "--on", case.sets[0].root]


REFUSED: dict[str, tuple[Callable[[Case, Path], list[object]], str]] = {
    "no run": (lambda case, _: ["eval.views=2", "--on", case.sets[0].root], "no run to test"),
    "not a run": (lambda case, folder: [folder, "--on", case.sets[0].root], "is not a run"),
    "no finished fold": (unfinished, "has no finished fold"),
    "no checkpoint": (pruned, "has lost the weights"),
    "unknown set": (lambda case, _: [case.runs[0].root, "--on", "no"], "no holds no index.json"),
    "no set": (lambda case, _: [case.runs[0].root, "--on", ","], "no set to test on"),
    "no common class": (other_classes, "has no class in common with the model"),
    "modalities": (
        lambda case, _: [
            case.runs[0].root,
            "--on",
            case.sets[0].root,
            "model.modalities=[landmarks]",
        ],
        "landmarks",
    ),
    "a run twice": (
        lambda case, _: [*[case.runs[0].root] * 2, "--on", case.sets[0].root],
        "is given twice",
    ),
    "a set twice": (
        lambda case, _: [case.runs[0].root, *["--on", case.sets[0].root] * 2],
        "is given twice",
    ),
    "a set as a setting": (
        lambda case, _: [case.runs[0].root, "--on", case.sets[0].root, "data.shards=x"],
        "data.shards=x: give the sets with --on",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_refused_in_one_line(name: str, case: Case, tmp_path: Path) -> None:
    arguments, message = REFUSED[name]
    given = ["crosseval", *arguments(case, tmp_path), "--out", tmp_path / "out"]
    check_refusal(invoke(*given, cwd=tmp_path), message)
    assert not (tmp_path / "out").exists()
