from __future__ import annotations

import numpy as np

from dfer_dist.data.faces.parsing_maps import (
    LEFT_BROW,
    LEFT_EYE,
    LOWER_LIP,
    RIGHT_BROW,
    RIGHT_EYE,
    SKIN,
    UPPER_LIP,
    colorize,
    draw_landmarks,
    draw_regions,
    fill_missing,
)
from dfer_dist.demo.faces import render_clip


def test_regions_match_the_rendered_face() -> None:
    """Lips are redder than skin, and brows are darker."""
    for label in range(7):
        clip = render_clip(label, 7 * label + 1, (3, label), 64)
        maps = np.stack([draw_regions(points, 64, 64) for points in clip.landmarks])
        frames = clip.frames.astype(float)
        red = frames[..., 0] / frames.sum(-1).clip(1)
        skin = maps == SKIN
        lips = np.isin(maps, (UPPER_LIP, LOWER_LIP))
        brows = np.isin(maps, (LEFT_BROW, RIGHT_BROW))
        assert red[lips].mean() > red[skin].mean() + 0.015, label
        assert frames[brows].mean() < 0.95 * frames[skin].mean(), label
        assert 0.1 < skin.mean() < 0.6
        eyes = [np.argwhere(maps == eye)[:, 2].mean() for eye in (RIGHT_EYE, LEFT_EYE)]
        assert eyes[0] + 8 < eyes[1], "the person's right eye is on the left of the image"


def test_fill_missing_interpolates_between_faces() -> None:
    points = np.full((6, 68, 2), np.nan, np.float32)
    points[1], points[4] = 10, 16
    found = np.array([False, True, False, False, True, False])
    assert fill_missing(points, found)[:, 3, 1].tolist() == [10, 10, 12, 14, 16, 16]
    assert np.isnan(fill_missing(points, np.zeros(6, bool))).all()
    assert not draw_regions(points[0], 8, 8).any() and not draw_landmarks(points[:1], 8).any()


def test_colorize_flipped_exchanges_left_and_right() -> None:
    points = (render_clip(0, 5, 2, 64).landmarks[0] + 0.5) * 4 - 0.5
    labels = draw_regions(points, 256, 256)
    eyes = [*range(45, 41, -1), 47, 46, *range(39, 35, -1), 41, 40]
    swap = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), *eyes]
    swap += [*range(54, 47, -1), *range(59, 54, -1), 64, 63, 62, 61, 60, 67, 66, 65]
    mirrored = points[swap] * [-1, 1] + [255, 0]
    again = draw_regions(mirrored, 256, 256)
    seen = colorize(labels, flipped=True)[:, ::-1]
    assert (seen == colorize(again)).all(-1).mean() > 0.985, "equal except at the edges of polygons"
    plain = colorize(labels)[:, ::-1]
    changed = (seen != plain).any(-1)
    paired = (LEFT_BROW, RIGHT_BROW, LEFT_EYE, RIGHT_EYE)
    assert np.isin(labels[:, ::-1][changed], paired).all()
    assert changed.sum() > 20


def test_draw_landmarks_matches_a_drawing_by_hand() -> None:
    points = np.array([[[2.2, 4.0], [0.0, 0.0], [np.nan, 1.0], [30.0, 3.0]]])
    (dots,) = draw_landmarks(points, 8)
    assert sorted(map(tuple, np.argwhere(dots[..., 0]).tolist())) == [
        (0, 0),
        (0, 1),
        (1, 0),
        *[(3, 2), (4, 1), (4, 2), (4, 3), (5, 2)],
    ]
    assert set(np.unique(dots)) == {0, 255}
    assert draw_landmarks(np.full((1, 1, 2), 50.0), 224).any(-1).sum() == 13
