"""Sampling of frames: that of DFER-CLIP's released code and its alternatives."""

from __future__ import annotations

import numpy as np
import pytest

from dfer_dist.config.schema import DataConfig, Sampling
from dfer_dist.data.loading.frame_sampling import (
    eval_frames,
    sample_random,
    sample_segments,
    train_frames,
)


def rng(n: int = 0) -> np.random.Generator:
    return np.random.default_rng(n)


@pytest.mark.parametrize(
    ("frames", "wanted", "expected"),
    [  # by hand from DFER-CLIP's released code: int(tick / 2 + tick * i), tick = frames / wanted
        (144, 16, [4, 13, 22, 31, 40, 49, 58, 67, 76, 85, 94, 103, 112, 121, 130, 139]),
        (20, 16, [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19]),
        (16, 16, list(range(16))),
        (17, 16, list(range(8)) + list(range(9, 17))),
        (11, 16, [*range(11), 10, 10, 10, 10, 10]),
        (5, 2, [1, 3]),
        (7, 1, [3]),
        (1, 4, [0, 0, 0, 0]),
    ],
)
def test_sample_segments_matches_published_centres(
    frames: int, wanted: int, expected: list[int]
) -> None:
    assert sample_segments(frames, wanted).tolist() == expected


@pytest.mark.parametrize(
    ("frames", "wanted", "first", "last"),
    [  # per segment the first and last frame that may be drawn
        (144, 16, [9 * i for i in range(16)], [9 * i + 8 for i in range(16)]),
        (
            33,
            16,
            [2 * i for i in range(16)],
            [2 * i + 1 for i in range(16)],
        ),  # frame 32 is never drawn
        (
            20,
            16,
            list(range(16)),
            list(range(16)),
        ),  # segments of one frame: nothing is left to chance
        (16, 16, list(range(16)), list(range(16))),
        (11, 16, [*range(11), 10, 10, 10, 10, 10], [*range(11), 10, 10, 10, 10, 10]),
        (1, 4, [0] * 4, [0] * 4),
        (7, 1, [0], [6]),
    ],
)
def test_sample_random_fills_published_segments(
    frames: int, wanted: int, first: list[int], last: list[int]
) -> None:
    generator = rng()
    drawn = np.array([sample_random(frames, wanted, generator) for _ in range(300)])
    assert drawn.min(0).tolist() == first and drawn.max(0).tolist() == last
    for i in range(wanted):
        assert set(drawn[:, i]) == set(range(first[i], last[i] + 1))


def data(sampling: str, wanted: int = 4, stride: int = 3) -> DataConfig:
    return DataConfig("-", num_frames=wanted, sampling=Sampling[sampling], stride=stride)


def test_default_sampling_is_segments() -> None:
    plain = DataConfig("-")
    assert train_frames(144, plain, rng(3)).tolist() == sample_random(144, 16, rng(3)).tolist()
    assert eval_frames(144, plain, 1).tolist() == [sample_segments(144, 16).tolist()]


def test_eval_frames_views_are_even_within_segments() -> None:
    views = eval_frames(
        120, data("segments", 6), 2
    )  # segments of 20 frames: the middles of their halves
    assert views.tolist() == [[5, 25, 45, 65, 85, 105], [15, 35, 55, 75, 95, 115]]
    assert eval_frames(3, data("segments"), 2).tolist() == [[0, 1, 2, 2]] * 2  # too short to differ


@pytest.mark.parametrize(
    ("frames", "wanted", "expected"),
    [
        (31, 4, [0, 10, 20, 30]),
        (12, 5, [0, 2, 5, 8, 11]),
        (3, 5, [0, 0, 1, 1, 2]),
        (1, 3, [0, 0, 0]),
        (9, 1, [0]),
    ],
)
def test_uniform_frames_are_equidistant_from_first_to_last(
    frames: int, wanted: int, expected: list[int]
) -> None:
    assert eval_frames(frames, data("uniform", wanted), 1).tolist() == [expected]
    assert {tuple(train_frames(frames, data("uniform", wanted), rng(i))) for i in range(20)} == {
        tuple(expected)
    }


def test_train_frames_dense_windows_start_anywhere_in_clip() -> None:
    generator = rng()  # four frames, three apart, span ten
    drawn = np.array([train_frames(14, data("dense"), generator) for _ in range(300)])
    assert (np.diff(drawn) == 3).all()
    assert set(drawn[:, 0]) == {0, 1, 2, 3, 4} and drawn.max() == 13
    assert train_frames(10, data("dense"), rng()).tolist() == [0, 3, 6, 9]
    assert train_frames(8, data("dense"), rng()).tolist() == [0, 3, 6, 7]  # the last frame repeated


@pytest.mark.parametrize(
    ("frames", "views", "starts"),
    [
        (30, 1, [10]),
        (30, 2, [0, 20]),
        (30, 5, [0, 5, 10, 15, 20]),
        (11, 3, [0, 0, 1]),
        (10, 2, [0, 0]),
    ],
)
def test_eval_frames_dense_views_cover_the_clip(frames: int, views: int, starts: list[int]) -> None:
    windows = eval_frames(frames, data("dense"), views)
    assert windows.tolist() == [[s, s + 3, s + 6, s + 9] for s in starts]
    assert windows.max() < frames
    assert eval_frames(5, data("dense"), views).tolist() == [[0, 3, 4, 4]] * views
