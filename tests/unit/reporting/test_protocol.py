"""The protocol of a run as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dfer_dist.config.load import load_config
from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.protocol import _model_rows, _optimizer_rows, _training_rows, protocol_rows
from dfer_dist.reporting.results import load_run
from tests.helpers.data.folds import fold_overlay
from tests.helpers.made_runs import load_made, make_fold, make_run, write_summary


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.image=adapters"],
            "adapters in the image tower, temporal transformer, learned prompts",
        ),
        (
            [
                "model.image=adapters",
                "model.adapter_time=true",
                "model.text_tower=adapters",
                "model.temporal=mean",
                "model.context_tokens=0",
            ],
            "adapters in the image tower, along time too, adapters in the text tower",
        ),
        (["model.image=none", "model.temporal=mean", "model.context_tokens=0"], "nothing"),
        (
            ["model.image=lora", "model.text_tower=lora"],
            "LoRA of rank 8 in the image tower, LoRA of rank 8 in the text tower, temporal transformer, learned prompts",
        ),
    ],
)
def test_model_rows_name_trained_parts(overrides: list[str], expected: str) -> None:
    rows = _model_rows(load_config("demo", ["data.shards=x", *overrides]))
    assert rows["Trained"] == expected


def test_model_rows_name_stochastic_depth_and_the_pool() -> None:
    config = load_config("demo", ["data.shards=x"])
    plain = _model_rows(config)
    config = load_config(
        "demo", ["data.shards=x", "model.drop_path=0.1", "model.temporal_pool=mean"]
    )
    rows = _model_rows(config)
    assert not plain["Stochastic depth"] and rows["Stochastic depth"].endswith("of up to 0.1")
    assert rows["Over time"] == f"{plain['Over time']}, mean of the frames' outputs"


def test_optimizer_rows_name_what_differs_by_parameter() -> None:
    config = load_config("demo", ["data.shards=x"])
    optim = config.optim
    assert _optimizer_rows(config) == {
        "Optimiser": "AdamW, betas 0.9 and 0.999, weight decay 0.01",
        "Learning rates": "image 0.0003, temporal 0.001, prompt 0.01; half a cosine to 0, "
        "warm-up over 1 epoch",
    }
    optim.layer_decay, optim.decay_all, optim.min_lr = 0.75, False, 1e-6
    rows = _optimizer_rows(config)
    assert rows["Optimiser"].endswith(
        "none of norms, biases, positions, class tokens and layer scales"
    )
    assert rows["Learning rates"].startswith(
        "image 0.0003 times 0.75 for each block nearer to the input, temporal"
    )
    assert "half a cosine to 1e-06" in rows["Learning rates"]


@pytest.mark.parametrize(("count", "size"), [(1, "1 epoch, 1 clip a"), (2, "2 epochs, 2 clips a")])
def test_training_row_has_singular_and_plural(count: int, size: str) -> None:
    overrides = [f"train.epochs={count}", f"train.global_batch={count}"]
    rows = _training_rows(load_config("demo", ["data.shards=x", *overrides]))
    assert any(text.startswith(size) for text in rows.values())


def test_markdown_describes_views_and_frames(tmp_path: Path) -> None:
    for number, (views, expected) in enumerate(
        (
            ({"views": 1}, "seen once, 8 frames a view (dense)."),
            ({"views": 3}, "seen in 3 views, their probabilities averaged, 8"),
            ({"views": 1, "mirror": True}, "in 2 views (mirrored too), their probabilities"),
            ({"views": 2, "crops": 3, "mirror": True}, "in 12 views (3 crops, mirrored too), "),
        )
    ):
        run = tmp_path / str(number)
        make_fold(run, 1, num_frames=8, sampling="dense", **views)
        write_summary(load_made(run, [1]))
        assert expected in (run / "summary.md").read_text()


def test_protocol_names_the_folds_of_a_file(tiny_shards: Index, tmp_path: Path) -> None:
    overlay = replace(fold_overlay(tiny_shards, 3), group_of={"00000": "a", "00001": "b"}).signed()
    run = make_run(tmp_path / "a", folds_hash=overlay.hash)

    def row() -> str:
        return dict(protocol_rows(load_run(run)))["Folds"]

    assert row() == f"other ones than the set's own, hash {overlay.hash}"
    overlay.write(run.folds)
    assert row() == (
        "turns, not the set's own; made by file: 2 groups, none in two folds; hash "
        f"{overlay.hash[:12]}"
    )
    assert "Folds" not in dict(protocol_rows(load_run(make_run(tmp_path / "b"))))
