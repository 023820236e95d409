"""Settings that a benchmark of a step refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.bench.step import measure
from dfer_dist.config.load import load_config
from dfer_dist.utils.errors import UserError


def test_measure_refuses_modalities_that_generated_clips_lack(tmp_path: Path) -> None:
    config = load_config("demo", ["model.image=adapters", "model.modalities=[parsing]"])
    with pytest.raises(UserError, match=r"add model\.modalities=\[\]"):
        measure(config, ["train"], 1, tmp_path, lambda done, total: None)
