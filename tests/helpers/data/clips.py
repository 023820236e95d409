"""Write clips for tests."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.sidecars import read_sidecar_tar
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.files import write_json

# The header of an image of more pixels than are decoded, which Pillow reads first.
HUGE_IMAGE = b"P6 20000 20000 255\n" + bytes(9)


def write_clip(folder: Path, frames: int, seed: int, width: int = 48, height: int = 40) -> None:
    """Write a clip of JPEGs, each with another pattern."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for t in range(frames):
        tiles = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        image = np.ascontiguousarray(tiles.repeat(8, 0).repeat(8, 1)[:height, :width])
        (folder / f"{t:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=90))


def encode_png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    """Return an RGB image, uint8 [H, W, 3], as a PNG of another mode."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def pack_frames(frames: Iterable[np.ndarray], folder: Path) -> Index:
    """Pack one clip, with key ``portrait``, of frames, uint8 [H, W, 3]."""
    (folder / "frames").mkdir()
    for t, frame in enumerate(frames):
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 95)
        (folder / "frames" / f"{t}.jpg").write_bytes(jpeg)
    record = ClipRecord("portrait", 0, "fold1", "portrait", folder / "frames")
    return pack([record], "dfew", folder / "shards", workers=1)


def read_members(index: Index, kind: str) -> dict[str, dict[str, bytes]]:
    """Return the members of all clips in the sidecars of a kind, by key."""
    tars = [index.path(i) for i in range(len(index.shards))]
    return {key: members for tar in tars for key, members in read_sidecar_tar(tar, kind)}


def sidecar_bytes(root: Path) -> dict[str, bytes]:
    """Return the contents of all added sidecars by file name."""
    return {f.name: f.read_bytes() for f in sorted(root.iterdir()) if f.name.count(".") > 1}


def write_index(index: Index) -> None:
    """Write ``index.json`` of a set in a folder, whatever is in it."""
    body = {
        "name": index.name,
        "classes": list(index.classes),
        "shards": [vars(s) for s in index.shards],
        "hash": index.hash,
    }
    write_json(index.root / "index.json", body)
