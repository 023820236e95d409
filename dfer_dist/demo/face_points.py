"""The 68 landmarks (iBUG 300-W) of a drawn face, from its geometry."""

from __future__ import annotations

import numpy as np

from dfer_dist.demo.face_parts import (
    AUS,
    EYE_LEVEL,
    Identity,
    brow_curve,
    eye_lids,
    eye_place,
    head_outline,
    mouth_curves,
    nose_shape,
)
from dfer_dist.demo.renderer import OVERSAMPLING, Array, Pose, Renderer, floats

# Heights over the head's surface.
_LIFT_NOSE, _LIFT_MOUTH = 0.14, 0.03


def face_points(aus: Array, who: Identity, pose: Pose) -> Array:
    """Return the landmarks of a clip.

    Parameters
    ----------
    aus
        Intensities of the action units [T, len(AUS)], as :func:`~dfer_dist.demo.face_parts.build`
        takes them.
    pose
        In pixels of the oversampled frames.

    Returns
    -------
    float32 [T, 68, 2]
        Pixels of the finished frames, the centre of the upper left one at (0, 0).
    """
    au = {name: aus[:, i : i + 1] for i, name in enumerate(AUS)}
    p = Renderer(pose, who.width, who.skin)
    parts = [
        p.on_plane(
            *head_outline(
                au, who, np.linspace(1.5 * np.pi, 0.5 * np.pi, 17, dtype=np.float32)[None]
            )
        ),
        *(_brow(p, au, who, side) for side in (-1, 1)),
        *_nose(p, au, who),
        *(_eye(p, au, who, side) for side in (-1, 1)),
        *_mouth(p, au, who),
    ]
    return ((np.concatenate(parts, 1) - (OVERSAMPLING - 1) / 2) / OVERSAMPLING).astype(np.float32)


def _brow(p: Renderer, au: dict[str, Array], who: Identity, side: int) -> Array:
    """Return points of the upper edge, from the left of the image to the right."""
    x, y, thick = brow_curve(au, who, side, np.linspace(0, 1, 5, dtype=np.float32)[None, ::side])
    return p.on_face(x, y - thick / 2, 0.03)


def _nose(p: Renderer, au: dict[str, Array], who: Identity) -> list[Array]:
    tip, wide = nose_shape(au, who)
    along = np.linspace(0, 1, 4, dtype=np.float32)[None]
    ridge = p.on_face(np.zeros_like(along), -0.16 + (tip - 0.04 + 0.16) * along, _LIFT_NOSE)
    across = np.linspace(-1, 1, 5, dtype=np.float32)[None]
    return [ridge, p.on_face(0.12 * wide * across, tip + 0.05 - 0.03 * across**2, 0.10)]


def _eye(p: Renderer, au: dict[str, Array], who: Identity, side: int) -> Array:
    """Return points around the eye, clockwise from the left corner."""
    x0, half = eye_place(who, side)
    there = floats([[x0 - half / 2, x0 + half / 2]])
    upper, _ = eye_lids(au, who, side, there)
    _, lower = eye_lids(au, who, side, there[:, ::-1])
    ones = np.ones_like(upper[:, :1])
    x = np.concatenate(
        [(x0 - half) * ones, there * ones, (x0 + half) * ones, there[:, ::-1] * ones], 1
    )
    y = np.concatenate([EYE_LEVEL * ones, upper, EYE_LEVEL * ones, lower], 1)
    return p.on_face(x, y)


def _mouth(p: Renderer, au: dict[str, Array], who: Identity) -> list[Array]:
    """Return points of the outer and inner edge of the lips, clockwise from the left corner."""
    outer = mouth_curves(au, who, np.linspace(-1, 1, 7, dtype=np.float32)[None])
    x = np.concatenate([outer.x, outer.x[:, 5:0:-1]], 1)
    y = np.concatenate([outer.upper - outer.lip_up, (outer.lower + outer.lip_down)[:, 5:0:-1]], 1)
    inner = mouth_curves(au, who, np.linspace(-0.8, 0.8, 5, dtype=np.float32)[None])
    inner_x = np.concatenate([inner.x, inner.x[:, 3:0:-1]], 1)
    inner_y = np.concatenate([inner.upper, inner.lower[:, 3:0:-1]], 1)
    return [p.on_face(x, y, _LIFT_MOUTH), p.on_face(inner_x, inner_y, _LIFT_MOUTH)]
