"""Crops and mirror images of test clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from torchvision.transforms.v2 import functional as F

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.faces.parsing_maps import LEFT_EYE, PALETTE, RIGHT_EYE
from dfer_dist.data.loading.augmentation import SpatialView, spatial_views
from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.sources.records import ClipRecord
from tests.helpers.data.clips import write_clip
from tests.helpers.data.modalities import BOTH, augmented, make_faces

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("height", "width", "side", "boxes"),
    [
        # the shorter side, as in Non-local Networks and SlowFast
        (256, 340, 256, [(0, 0), (0, 42), (0, 84)]),
        (340, 256, 256, [(0, 0), (42, 0), (84, 0)]),
        # 224 of 256 pixels where the frame is square or nearly so
        (256, 256, 224, [(16, 0), (16, 16), (16, 32)]),
        (224, 224, 196, [(14, 0), (14, 14), (14, 28)]),
        (256, 264, 231, [(12, 0), (12, 16), (12, 33)]),
    ],
)
def test_three_crops_lie_along_the_longer_side(
    height: int, width: int, side: int, boxes: list[tuple[int, int]]
) -> None:
    params = [view.params(height, width) for view in spatial_views(3, mirror=False)]
    assert [(p.top, p.left) for p in params] == boxes
    assert {(p.height, p.width, p.flip, p.brightness, p.angle) for p in params} == {
        (side, side, False, 1, 0)
    }


def test_views_are_all_crops_and_then_all_mirrored() -> None:
    assert spatial_views(1, mirror=False) == (SpatialView(),)
    assert spatial_views(1, mirror=True) == (SpatialView(), SpatialView(mirrored=True))
    assert spatial_views(2, mirror=True) == tuple(
        SpatialView(place, flip) for flip in (False, True) for place in (0.0, 1.0)
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_loader_yields_each_batch_once_for_each_spatial_view(tmp_path: Path, ranks: int) -> None:
    """Frames of the model's size and others, against torchvision's crops."""
    records, frames = [], {}
    for i in range(7):
        folder = tmp_path / f"{i}"
        write_clip(folder, 5, i, *((40, 30), (24, 24), (24, 48))[i % 3])
        files = tuple(sorted(folder.iterdir()))
        frames[f"{i}"] = np.stack([simplejpeg.decode_jpeg(f.read_bytes()) for f in files])
        records.append(ClipRecord(f"{i}", i, "fold1", f"{i}", files))
    index = pack(records, "dfew", tmp_path / "shards", workers=1)
    data, views = DataConfig("-", num_frames=3, image_size=24, workers=0), []
    for rank in range(ranks):
        batches = evaluation_loader(
            index,
            data,
            all_clips(index, range(len(index.shards))),
            batch=3,
            rank=rank,
            world_size=ranks,
            views=2,
            crops=3,
            mirror=True,
        )
        views += [(number % 6, batch) for number, batch in enumerate(batches)]
    seen = []
    for number, batch in views:
        for key, valid, pixels in zip(batch.keys, batch.valid, batch.pixels(CPU), strict=True):
            if not valid:
                continue
            seen.append((key, number))
            chosen = frames[key][eval_frames(5, data, 2).ravel()]
            crop = spatial_views(3, mirror=True)[number].params(*chosen.shape[1:3])
            box = [int(x) for x in (crop.top, crop.left, crop.height, crop.width)]
            want = F.resized_crop(torch.from_numpy(chosen).permute(0, 3, 1, 2), *box, [24, 24])
            assert torch.equal(pixels, want.flip(-1) if number >= 3 else want)
    assert sorted(seen) == [(f"{i}", number) for i in range(7) for number in range(6)]


def test_mirrored_parsing_maps_exchange_left_and_right(tmp_path: Path) -> None:
    faces = make_faces(tmp_path)
    clips = all_clips(faces, faces.test_shards(1))
    loader = evaluation_loader(
        faces, augmented(64), clips, batch=len(clips), mirror=True, modalities=BOTH
    )
    plain, mirrored = (batch.pixels(CPU).unflatten(1, (3, -1)) for batch in loader)
    assert torch.equal(mirrored[:, 0], plain[:, 0].flip(-1))

    def at(maps: torch.Tensor, label: int) -> torch.Tensor:
        color = torch.from_numpy(PALETTE[label]).view(3, 1, 1)
        return (maps == color).all(-3)

    parsing, flipped = plain[:, 1], mirrored[:, 1].flip(-1)
    assert at(parsing, LEFT_EYE).any()
    # at the border of an eye the nearest pixel may be another one
    for eye, other in ((LEFT_EYE, RIGHT_EYE), (RIGHT_EYE, LEFT_EYE)):
        kept, exchanged = (at(parsing, eye) & at(flipped, e) for e in (eye, other))
        assert not kept.any() and exchanged.sum() > 0.8 * at(parsing, eye).sum()
