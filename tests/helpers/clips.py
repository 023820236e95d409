"""Write clips for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.data.shards.index import Index
from dfer_dist.utils.files import write_json


def write_clip(folder: Path, frames: int, seed: int, width: int = 48, height: int = 40) -> None:
    """Write a clip of JPEGs, each with another pattern."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for t in range(frames):
        tiles = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        image = np.ascontiguousarray(tiles.repeat(8, 0).repeat(8, 1)[:height, :width])
        (folder / f"{t:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=90))


def write_index(index: Index) -> None:
    """Write ``index.json`` of a set in a folder, whatever is in it."""
    body = {
        "name": index.name,
        "classes": list(index.classes),
        "shards": [vars(s) for s in index.shards],
        "hash": index.hash,
    }
    write_json(index.root / "index.json", body)


def encode_png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    """Return an RGB image, uint8 [H, W, 3], as a PNG of another mode."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()
