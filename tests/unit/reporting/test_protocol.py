"""The protocol of a run as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.config.load import load_config
from dfer_dist.reporting.protocol import _model_rows
from tests.helpers.made_runs import load_made, make_fold, write_summary


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


def test_markdown_describes_views_and_frames(tmp_path: Path) -> None:
    for views, expected in (
        (1, "seen once, 8 frames a view (dense)."),
        (3, "seen in 3 views, their probabilities averaged, 8"),
    ):
        run = tmp_path / str(views)
        make_fold(run, 1, num_frames=8, sampling="dense", views=views)
        write_summary(load_made(run, [1]))
        assert expected in (run / "summary.md").read_text()
