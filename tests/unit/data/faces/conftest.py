from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.faces.crop import FaceClip, find_face
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.video.decode import Video
from dfer_dist.demo.dataset import render_demo
from tests.helpers.data.videos import draw, encode, two_heads


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered data set of 35 clips; read only."""
    return render_demo(tmp_path_factory.mktemp("source"), clips=35, size=32, workers=1)


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Index:
    """The rendered data set in ten shards."""
    listing = read_dataset("demo", source / "frames", source / "lists")
    return pack(listing.records, "demo", tmp_path / "shards", 4, workers=1)


@pytest.fixture(scope="session")
def moving_video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    """50 frames of a moving head, absent in frames 22 to 33, and of a small one."""
    return Video(encode(tmp_path_factory.mktemp("videos") / "moving.mp4", draw(two_heads())))


@pytest.fixture(scope="session")
def moving_clip(moving_video: Video) -> FaceClip:
    return find_face(moving_video)
