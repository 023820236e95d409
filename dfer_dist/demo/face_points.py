"""The 68 landmarks (iBUG 300-W) of a drawn face, from its geometry."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from dfer_dist.demo import face_parts as parts
from dfer_dist.demo.identity import Identity
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
    au, p = parts.by_name(aus), Renderer(pose, who.width, who.skin)
    around = np.linspace(1.5 * np.pi, 0.5 * np.pi, 17, dtype=np.float32)[None]
    points = [
        p.on_plane(*parts.head_outline(au, who, around)),
        *(_brow(p, au, who, side) for side in (-1, 1)),
        *_nose(p, au, who),
        *(_eye(p, au, who, side) for side in (-1, 1)),
        *_mouth(p, au, who),
    ]
    return ((np.concatenate(points, 1) - (OVERSAMPLING - 1) / 2) / OVERSAMPLING).astype(np.float32)


def _brow(p: Renderer, au: SimpleNamespace, who: Identity, side: int) -> Array:
    """Return points of the upper edge, from the left of the image to the right."""
    along = np.linspace(0, 1, 5, dtype=np.float32)[None, ::side]
    x, y, thick = parts.brow_curve(au, who, side, along)
    return p.on_face(x, y - thick / 2, 0.03)


def _nose(p: Renderer, au: SimpleNamespace, who: Identity) -> list[Array]:
    tip, wide = parts.nose_shape(au, who)
    along = np.linspace(0, 1, 4, dtype=np.float32)[None]
    ridge = p.on_face(np.zeros_like(along), -0.16 + (tip - 0.04 + 0.16) * along, _LIFT_NOSE)
    across = np.linspace(-1, 1, 5, dtype=np.float32)[None]
    return [ridge, p.on_face(0.12 * wide * across, tip + 0.05 - 0.03 * across**2, 0.10)]


def _eye(p: Renderer, au: SimpleNamespace, who: Identity, side: int) -> Array:
    """Return points around the eye, clockwise from the left corner."""
    x0, half = parts.eye_place(who, side)
    steps = (-half, -half / 2, half / 2, half, half / 2, -half / 2)
    x = floats([[x0 + step for step in steps]])
    upper, lower = parts.eye_lids(au, who, side, x)
    corner = np.full_like(upper[:, :1], parts.EYE_LEVEL)
    return p.on_face(x, np.concatenate([corner, upper[:, 1:3], corner, lower[:, 4:]], 1))


def _mouth(p: Renderer, au: SimpleNamespace, who: Identity) -> list[Array]:
    """Return points of the outer and inner edge of the lips, clockwise from the left corner."""
    outer = parts.mouth_curves(au, who, np.linspace(-1, 1, 7, dtype=np.float32)[None])
    x = np.concatenate([outer.x, outer.x[:, 5:0:-1]], 1)
    y = np.concatenate([outer.upper - outer.lip_up, (outer.lower + outer.lip_down)[:, 5:0:-1]], 1)
    inner = parts.mouth_curves(au, who, np.linspace(-0.8, 0.8, 5, dtype=np.float32)[None])
    inner_x = np.concatenate([inner.x, inner.x[:, 3:0:-1]], 1)
    inner_y = np.concatenate([inner.upper, inner.lower[:, 3:0:-1]], 1)
    return [p.on_face(x, y, _LIFT_MOUTH), p.on_face(inner_x, inner_y, _LIFT_MOUTH)]
