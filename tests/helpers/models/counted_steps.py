"""Steps counted once for each model, since counting one takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dfer_dist.config.schema import Config
from dfer_dist.planning import estimate
from dfer_dist.planning.step_costs import StepCosts, count_step
from tests.helpers.paths import ROOT

# A ViT-B/32 with half its layers and one for texts, which is counted three times as fast.
FEW_LAYERS = f"model.backbone={ROOT / 'tests' / 'fixtures' / 'b32_six_layers.json'}"
_counted: dict[str, StepCosts] = {}


def count_once(config: Config, classes: Sequence[str], fused_attention: bool) -> StepCosts:
    """Stand for :func:`count_step`."""
    data, train = config.data, config.train
    key = repr((config.model, data.num_frames, data.image_size, train, classes, fused_attention))
    if key not in _counted:
        _counted[key] = count_step(config, classes, fused_attention)
    return _counted[key]


@pytest.fixture(autouse=True)
def counted_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan with steps that are counted once."""
    monkeypatch.setattr(estimate, "count_step", count_once)
