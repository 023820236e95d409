"""Settings with several seeds: matched by seed, fold and clip, compared, and written as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.config.load import dump_config, read_config
from dfer_dist.reporting.comparison.paired import load_runs
from dfer_dist.reporting.comparison.seed_sections import analyse, seeds_verdict
from dfer_dist.reporting.comparison.seeds import (
    Setting,
    by_setting,
    compare_seeds,
    has_seeds,
    seeds_block,
)
from dfer_dist.reporting.files import write_comparison, write_sweep
from dfer_dist.runs.layout import RunDir
from tests.helpers.made_runs import make_run

EPOCHS = {"short": 3, "long": 30}


def make(runs: Path, setting: str, seed: int, folds: tuple[int, ...] = (1, 2, 3)) -> RunDir:
    """Write a run of a setting whose predictions depend on its seed."""
    sure = {"short": 1.0, "long": 1.6}[setting] + 0.1 * seed
    run = make_run(runs / f"demo-{setting}-seed{seed}", folds, 3, False, sure=sure)
    config = read_config(run.config)
    config.train.epochs, config.train.seed = EPOCHS[setting], seed
    config.train.keep = 5 + seed
    run.config.write_text(dump_config(config))
    return run


def settings_of(runs: list[RunDir]) -> list[Setting]:
    return by_setting(load_runs(runs))


@pytest.fixture
def four(tmp_path: Path) -> list[RunDir]:
    """Two settings with two seeds each."""
    return [make(tmp_path, setting, seed) for seed in (1, 0) for setting in ("short", "long")]


def test_runs_are_grouped_by_their_settings(four: list[RunDir]) -> None:
    """The seed and settings that change no result do not count."""
    found = settings_of(four)
    assert [(s.name, list(s.runs)) for s in found] == [
        ("train.epochs=3", [0, 1]),
        ("train.epochs=30", [0, 1]),
    ]
    assert found[0].runs[1].run == four[0]
    assert has_seeds(found) and not has_seeds(settings_of(four[:2]))
    assert settings_of(four[::2])[0].name == "demo-short-seed1"


def test_same_settings_and_seeds_again_are_another_setting(tmp_path: Path) -> None:
    runs = [make(tmp_path / code, "short", seed) for code in ("old", "new") for seed in (0, 1)]
    found = settings_of(runs)
    assert [s.name for s in found] == ["old/demo-short-seed0", "new/demo-short-seed0"]
    assert [s.first.run for s in found] == [runs[0], runs[2]]


def test_scores_and_differences_are_those_of_the_runs(four: list[RunDir]) -> None:
    short, long = settings_of(four)
    block = seeds_block(short)
    assert block and (block.seeds, block.folds, block.clips) == ([0, 1], [1, 2, 3], 600)
    compared = compare_seeds(short, long)
    assert compared.block and compared.warnings == []
    for metric in ("uar", "war"):
        scores = [
            [[getattr(run.folds[k].result, metric) for k in (1, 2, 3)] for run in s.runs.values()]
            for s in (short, long)
        ]
        np.testing.assert_allclose(block.scores[metric], scores[0])
        difference = np.subtract(scores[1], scores[0])
        np.testing.assert_allclose(compared.block.scores[metric], difference)
        mean = compared.block.mean[metric]
        assert mean.interval.value == pytest.approx(difference.mean())
        assert mean.interval.low > 0 and mean.p is not None and mean.p < 0.05


def test_only_seeds_and_folds_without_a_gap_count(tmp_path: Path) -> None:
    runs = [make(tmp_path, "short", seed) for seed in (0, 1)]
    runs += [make(tmp_path, "short", 2, (1,)), make(tmp_path, "long", 0), make(tmp_path, "long", 2)]
    short, long = settings_of(runs)
    block = seeds_block(short)
    assert block and (block.seeds, block.folds) == ([0, 1], [1, 2, 3])
    assert block.warnings == [
        "Only seeds 0, 1 with folds 1, 2, 3 are complete: the others are left out."
    ]
    compared = compare_seeds(short, long).block
    assert compared and (compared.seeds, compared.folds) == ([0, 2], [1])
    assert compared.components("uar").fold is None
    sentence = seeds_verdict(analyse([short, long])).sentences[0]
    assert "is better" not in sentence and "Only fold 1 tested" in sentence


def test_a_common_seed_alone_is_not_compared(tmp_path: Path) -> None:
    runs = [make(tmp_path, "short", seed) for seed in (0, 1)] + [make(tmp_path, "long", 1)]
    analysis = analyse(settings_of(runs))
    assert analysis.comparisons[0].block is None
    sentences = seeds_verdict(analysis).sentences
    assert "not compared. They have fewer than two seeds with a fold in common." in sentences[0]


def test_comparison_of_seeds_is_written(tmp_path: Path, four: list[RunDir]) -> None:
    report = write_comparison(four, tmp_path / "out")
    first, varies = report.verdict.sentences
    assert first.startswith("train.epochs=30 minus train.epochs=3: UAR +")
    assert "train.epochs=30 is better" in first and "2 seeds and 3 folds, 600 clips" in first
    assert varies.startswith("UAR of one training of train.epochs=3 on one fold varies by ")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert (
        "| train.epochs=3 | UAR | " in text
        and "| 2 × 3 |" in text
        and "Choice of test clips" in text
    )
    assert "| demo-long-seed1 |" in text
    values = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (pair,) = values["comparisons"]
    assert np.shape(pair["paired"]["uar"]["by_seed_and_fold"]) == (2, 3)
    assert values["settings"][0]["runs"] == {"0": "demo-short-seed0", "1": "demo-short-seed1"}
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert (
        "What varies" in page and r"\toprule" in (tmp_path / "out" / "comparison.tex").read_text()
    )


def test_sweep_lists_runs_without_a_result(tmp_path: Path) -> None:
    runs = [make(tmp_path, "short", 0), make(tmp_path, "long", 0, ())]
    report = write_sweep(runs, tmp_path / "demo.sweep")
    assert report.verdict.sentences == []
    text = (tmp_path / "demo.sweep" / "comparison.md").read_text()
    assert "| demo-long-seed0 | missing | missing | 0 of 3 | train.epochs=30" in text
    assert f"| demo-short-seed0 | {load_runs(runs[:1])[0].summary.uar.mean:.2f} ± " in text
