"""Random clips for measured steps."""

from __future__ import annotations

from dfer_dist.config.load import load_config
from dfer_dist.planning.measure import random_clips


def test_random_clips_have_frames_and_each_modality() -> None:
    settings = ["model.image=adapters", "model.modalities=[parsing,landmarks]"]
    config = load_config("demo", ["data.num_frames=3", *settings])
    assert random_clips(config, 2).shape == (2, 9, 3, 64, 64)
