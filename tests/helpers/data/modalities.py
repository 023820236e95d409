"""Clips whose frames are their own parsing maps, for tests of modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dfer_dist.config.schema import AugmentConfig, DataConfig
from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.parsing_maps import LEFT_EYE, NOSE, RIGHT_EYE, SKIN, colorize
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import ClipRecord

SIDE, CLIPS, FRAMES = 48, 12, 9
BOTH = ("parsing", "landmarks")


def face_labels(clip: int, t: int) -> np.ndarray:
    """Draw a face with its nose at another place in each clip and frame."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[4:44, 4:44] = SKIN
    labels[8:15, 8:18], labels[8:15, 30:40] = RIGHT_EYE, LEFT_EYE
    y, x = 20 + clip % 4 * 4, 12 + 2 * t + clip % 3 * 2
    labels[y : y + 8, x : x + 8] = NOSE
    return labels


def make_faces(root: Path) -> Index:
    """Pack clips, in two folds, with both modalities.

    Their frames are their parsing maps, in colours; all landmarks are at the centre of the nose.
    """
    records = []
    (root / "marks").mkdir()
    for clip in range(CLIPS):
        name, points = f"c{clip:02d}", np.empty((FRAMES, 68, 2), np.float32)
        for folder in ("frames", "maps"):
            (root / folder / name).mkdir(parents=True)
        for t in range(FRAMES):
            labels = face_labels(clip, t)
            points[t] = np.argwhere(labels == NOSE).mean(0)[::-1]
            (root / "frames" / name / f"{t}.jpg").write_bytes(
                simplejpeg.encode_jpeg(colorize(labels), 95, "RGB", "444")
            )
            Image.fromarray(labels).save(root / "maps" / name / f"{t}.png")
        np.save(root / "marks" / f"{name}.npy", points)
        fold = f"fold{clip % 2 + 1}"
        records.append(ClipRecord(name, clip % 7, fold, name, root / "frames" / name))
    index = pack(records, "dfew", root / "shards", 3, workers=1)
    request = EnrichRequest(landmarks_from=root / "marks", parsing_from=root / "maps")
    enrich(root / "shards", request, workers=1)
    return index


def augmented(size: int = 40, workers: int = 0) -> DataConfig:
    """Return settings that crop, brighten and rotate."""
    augment = replace(AugmentConfig(crop_scale=0.6, brightness=0.3, rotation=12))
    return DataConfig("-", num_frames=4, image_size=size, workers=workers, block=3, augment=augment)


def training_batches(
    index: Index, modalities: Sequence[str], data: DataConfig, world_size: int = 1
) -> list[Batch]:
    """Return the batches of four epochs of all ranks, in the order of lanes."""
    plan = EpochPlan(all_clips(index, range(len(index.shards))), 5, 0, 4, 3)
    ranks = [
        train_loader(
            index,
            data,
            plan,
            epochs=4,
            rank=rank,
            world_size=world_size,
            micro_batch=4 // world_size,
            modalities=modalities,
        )
        for rank in range(world_size)
    ]
    return [batch for part in zip(*ranks, strict=True) for batch in part]
