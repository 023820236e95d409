"""Clips on disk for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg


def write_clip(folder: Path, frames: int, seed: int, width: int = 48, height: int = 40) -> None:
    """A clip of JPEGs, each with another pattern."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for t in range(frames):
        tiles = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        image = np.ascontiguousarray(tiles.repeat(8, 0).repeat(8, 1)[:height, :width])
        (folder / f"{t:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=90))
