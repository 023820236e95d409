"""Modalities of the loaders: of the same frames, transformed alike, in the same order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.config.schema import AugmentConfig, DataConfig
from dfer_dist.data.faces.parsing_maps import LEFT_EYE, NOSE, PALETTE, RIGHT_EYE, colorize
from dfer_dist.data.loading.augmentation import AugmentParams, apply, sample_params, stack_params
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.modalities import resample_labels, transform_points
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index, open_index, read_index
from dfer_dist.data.shards.sidecars import describe_modalities, sidecar_tar_path
from dfer_dist.utils.errors import UserError
from tests.helpers.data.modalities import BOTH, SIDE, augmented, make_faces, training_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_faces(tmp_path_factory.mktemp("modalities"))


def split_modalities(batch: Batch, modalities: int = 2) -> tuple[np.ndarray, ...]:
    """Frames and modalities of a training batch, uint8 [b, T, S, S, 3] each."""
    pixels = batch.pixels(CPU)
    assert pixels.dtype == torch.uint8 and pixels.shape[1] == (1 + modalities) * 4
    return tuple(x.permute(0, 1, 3, 4, 2).numpy() for x in pixels.chunk(1 + modalities, 1))


def middle(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)[::-1]


def near(pixels: np.ndarray, label: int) -> np.ndarray:
    """Where pixels have the hue of a label, whatever their brightness."""
    hue = pixels / np.maximum(pixels.max(-1, keepdims=True), 1)
    return (np.abs(hue - PALETTE[label] / PALETTE[label].max()).max(-1) < 0.25) & (
        pixels.max(-1) > 40
    )


@pytest.mark.parametrize("size", [40, SIDE])
def test_modalities_show_what_the_frames_show(faces: Index, size: int) -> None:
    """Nose and landmarks stay together, and labels of left and right fit, flipped or not."""
    mirrored, seen = 0, 0
    for batch in training_batches(faces, BOTH, augmented(size)):
        for video, parsing, dots in zip(*split_modalities(batch), strict=True):
            for frame, labels, marks in zip(video, parsing, dots, strict=True):
                assert {tuple(c) for c in labels.reshape(-1, 3).tolist()} <= {
                    tuple(c) for c in PALETTE.tolist()
                }
                assert set(np.unique(marks)) <= {0, 255}
                noses = [near(x, NOSE) for x in (frame, labels)]
                if min(n.sum() for n in noses) > size and marks.any():
                    assert (noses[0] & noses[1]).sum() > 0.55 * (noses[0] | noses[1]).sum()
                    assert middle(marks[..., 0] > 0) == pytest.approx(middle(noses[1]), abs=2.5)
                    seen += 1
                eyes = [[near(x, eye) for eye in (RIGHT_EYE, LEFT_EYE)] for x in (frame, labels)]
                if min(e.sum() for own in eyes for e in own) > size / 2:
                    at = [[middle(e)[0] for e in own] for own in eyes]
                    assert at[1][0] < at[1][1], (
                        "in the map, the person's right eye is at the left also in a mirror"
                    )
                    mirrored += at[0][0] > at[0][1]
    assert seen > 80 and mirrored > 20


def test_modalities_are_independent_of_ranks(faces: Index) -> None:
    want = torch.cat([b.pixels(CPU) for b in training_batches(faces, BOTH, augmented())])
    for world_size in (2, 4):
        batches = training_batches(faces, BOTH, augmented(), world_size)
        assert torch.equal(torch.cat([b.pixels(CPU) for b in batches]), want)


@pytest.mark.parametrize("modalities", [BOTH, ("landmarks",)])
def test_frames_and_order_are_independent_of_modalities(
    faces: Index, modalities: tuple[str, ...]
) -> None:
    plain, more = (training_batches(faces, own, augmented(40)) for own in ((), modalities))
    assert len(plain) == len(more) == 12
    for a, b in zip(plain, more, strict=True):
        assert a.keys == b.keys and torch.equal(a.labels, b.labels)
        assert torch.equal(a.pixels(CPU), b.pixels(CPU)[:, :4])


def test_evaluation_loader_has_modalities_of_each_view(faces: Index) -> None:
    clips = all_clips(faces, faces.test_shards(1))

    def seen(views: int, modalities: tuple[str, ...] = BOTH) -> Iterator[Batch]:
        return evaluation_loader(
            faces, augmented(64), clips, batch=4, views=views, modalities=modalities
        )

    for batch, plain in zip(seen(2), seen(2, ()), strict=True):
        pixels = batch.pixels(CPU).unflatten(1, (2, 3, 4))
        assert torch.equal(pixels[:, :, 0].flatten(1, 2), plain.pixels(CPU))
        for i, key in enumerate(batch.keys):
            if not key:
                assert not pixels[i].any()
                continue
            for view in range(2):
                for video, parsing, dots in zip(
                    *pixels[i, view].permute(0, 1, 3, 4, 2).numpy(), strict=True
                ):
                    assert middle(near(video, NOSE)) == pytest.approx(
                        middle(near(parsing, NOSE)), abs=0.5
                    )
                    assert middle(dots[..., 0] > 0) == pytest.approx(
                        middle(near(parsing, NOSE)), abs=1
                    )


@pytest.mark.parametrize("seed", range(6))
def test_points_and_labels_transform_as_pixels(seed: int) -> None:
    """A small square and its centre through augment.apply, whatever is drawn."""
    rng = np.random.default_rng(seed)
    height, width = 48, 64
    labels = np.zeros((1, height, width), np.uint8)
    labels[0, 18:27, 30:39] = NOSE
    params = sample_params(height, width, AugmentConfig(crop_scale=0.7, rotation=30), rng)
    for own in (
        params,
        params._replace(flip=not params.flip),
        params._replace(brightness=1, angle=0),
        AugmentParams.identity(height, width),
    ):
        out = (
            apply(
                torch.from_numpy(colorize(labels))[None],
                stack_params([own]),
                80,
            )[0, 0]
            .permute(1, 2, 0)
            .numpy()
        )
        square = out[..., 1] > 100
        (point,) = transform_points(np.array([[[34.0, 22.0]]]), (height, width), own, 80)
        assert middle(square) == pytest.approx(point[0], abs=1.0)
        for maps in (labels, labels.repeat(2, 1).repeat(2, 2)):  # a map may be finer than its frame
            picked = resample_labels(maps, (height, width), own, 80)[0] == NOSE
            assert (picked & square).sum() > 0.85 * (picked | square).sum()


def test_damaged_modality_loses_the_clip_and_missing_stops(faces: Index, tmp_path: Path) -> None:
    root = Path(shutil.copytree(str(faces.root), tmp_path / "shards"))
    index, before = read_index(root), describe_modalities(faces, BOTH)
    assert before is not None and before["made"] == {"parsing": ["import"], "landmarks": ["import"]}
    assert (
        describe_modalities(index, BOTH) == before != describe_modalities(index, ("landmarks",))
        and describe_modalities(index, ()) is None
    )
    tar = sidecar_tar_path(index.path(0), "landmarks")
    data = bytearray(tar.read_bytes())
    data[3000] ^= 1
    tar.write_bytes(data)
    batches = training_batches(index, BOTH, augmented())
    lost = {line for b in batches for line in b.lost}
    (one,) = {line.split(", clip ")[1].split(":")[0] for line in lost}
    assert all("landmarks: landmarks.npy has another CRC32" in line for line in lost)
    for b in batches:
        for key, valid, pixels in zip(b.keys, b.valid.tolist(), b.pixels(CPU), strict=True):
            assert valid == (key != one) and pixels.any() == valid
    tar.with_suffix(".json").unlink()
    for run in (
        lambda: training_batches(index, BOTH, augmented()),
        lambda: describe_modalities(index, BOTH),
    ):
        with pytest.raises(
            UserError,
            match=r"model\.modalities has landmarks, but .*json is missing"
            r".*dfer enrich SHARDS --landmarks",
        ):
            run()


def test_modalities_of_file_url_come_through_the_cache(faces: Index, tmp_path: Path) -> None:
    data = DataConfig(f"file://{faces.root}", cache=str(tmp_path / "cache"))
    remote = open_index(data)
    assert remote.hash == faces.hash and describe_modalities(remote, BOTH) == describe_modalities(
        faces, BOTH
    )
    want, got = (
        torch.cat([b.pixels(CPU) for b in training_batches(index, BOTH, augmented())])
        for index in (faces, remote)
    )
    assert torch.equal(want, got)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3 * len(faces.shards)
