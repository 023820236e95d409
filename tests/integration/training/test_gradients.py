"""Gradients in bf16 with real ranks."""

from __future__ import annotations

from tests.helpers.paths import HELPERS
from tests.helpers.ranks.spawn import run_ranks


def test_gradients_are_averaged_while_the_backward_pass_runs() -> None:
    """Two ranks get the bits that sending everything at the end gives.

    There are five parts of the image tower, of 216 numbers, and two of the other layer, of 72. In
    the first step their order is found, in the third one nothing writes the other layer.
    """
    seen = run_ranks(HELPERS / "ranks" / "averaging.py", 2)
    assert seen["differing"] == [[], []]
    assert seen["sent_early"] == [[0, 7, 5], [0, 5, 5]]


def test_gradients_are_those_of_the_last_step_only() -> None:
    """The second of two steps leaves a layer out, whose gradient must become zero."""
    seen = run_ranks(HELPERS / "ranks" / "kept_gradients.py", 1)
    assert min(seen["both"]) > 0 and min(seen["one"][:2]) > 0 and max(seen["one"][2:]) == 0
    assert seen["off"] < 0.01 * seen["largest"]
    assert seen["frozen"] == 0 and not seen["compiler"]
