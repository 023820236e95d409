"""The model card of an exported model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dfer_dist.inference.model_card import _results


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"left_out": ["Happy/1", "Sad/2"]}, "**2 of 10 test clips left out when the data was "),
        ({"left_out": []}, ""),
        # by an earlier version
        ({}, ""),
    ],
)
def test_card_names_the_test_clips_that_were_lost_when_packing(
    stored: dict[str, list[str]], said: str
) -> None:
    result = {"fold": 1, "dataset": "mine", "n": 8, "uar": 50.0, "war": 60.0}
    scores = {"recall": {"Happy": 50.0, "Sad": None}, "support": {"Happy": 8, "Sad": 0}}
    info: Any = SimpleNamespace(result=result | scores | stored)
    text = _results(info)
    assert said in text and ("left out" in text) == bool(said)
    assert all(clip in text for clip in stored.get("left_out", []))
    assert "| recall of Sad | no clip | 0 |" in text
