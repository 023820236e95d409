"""Gradients in bf16 with real ranks."""

from __future__ import annotations

from tests.helpers.paths import HELPERS
from tests.helpers.ranks.spawn import run_ranks


def test_gradients_are_averaged_over_ranks_by_bucket() -> None:
    """Two ranks average 280 numbers in buckets of 100, to bf16's rounding of 0.4 %."""
    seen = run_ranks(HELPERS / "ranks" / "averaging.py", 2)
    assert 0 < seen["off"] < 0.02 < seen["largest"]


def test_gradients_are_those_of_the_last_step_only() -> None:
    """The second of two steps leaves a layer out, whose gradient must become zero."""
    seen = run_ranks(HELPERS / "ranks" / "kept_gradients.py", 1)
    assert min(seen["both"]) > 0 and min(seen["one"][:2]) > 0 and max(seen["one"][2:]) == 0
    assert seen["off"] < 0.01 * seen["largest"]
    assert seen["frozen"] == 0 and not seen["compiler"]
