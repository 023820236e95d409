"""Drawn faces: polygons on an ellipsoid head that move with facial action units (AUs).

The units are those of Ekman & Friesen, Facial Action Coding System, 1978; how far each moves a
point is chosen to be legible on 64 pixels, so it is stronger than in life. Nothing here is learned
from, or resembles, a real person.

Lengths without another unit are in half head heights; x runs to the right of the image, y down.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from dfer_dist.demo.identity import Identity
from dfer_dist.demo.renderer import RING, Array, Pose, Renderer, band, ellipse, floats, line, loop

# FACS numbers: 1 inner brow raiser, 2 outer brow raiser, 4 brow lowerer, 5 upper lid raiser, 6
# cheek raiser, 7 lid tightener, 9 nose wrinkler, 10 upper lip raiser, 12 lip corner puller, 15 lip
# corner depressor, 17 chin raiser, 20 lip stretcher, 23 lip tightener, 25 lips part, 26 jaw drop,
# 43 eyes closed. Tears are no AU, but are driven like one.
AUS = (*(f"AU{n}" for n in (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 25, 26, 43)), "tears")


S = np.linspace(-1, 1, 13, dtype=np.float32)[None]  # along a feature, [1, 13]
DARK, GLASSES = floats((38, 20, 22)), floats((44, 44, 52))


def by_name(aus: Array) -> SimpleNamespace:
    """Return the intensity [T, 1] of each unit by its name, of ``aus`` [T, len(AUS)]."""
    return SimpleNamespace(**dict(zip(AUS, np.split(aus, len(AUS), axis=1), strict=True)))


def build(aus: Array, who: Identity, pose: Pose) -> Renderer:
    """Build the polygons of a clip, back to front, for intensities ``aus`` [T, len(AUS)]."""
    au, renderer = by_name(aus), Renderer(pose, who.width, who.skin)
    _head(renderer, au, who)
    _folds(renderer, au, who)
    _nose(renderer, au, who)
    _mouth(renderer, au, who)
    for side in (-1, 1):
        _eye(renderer, au, who, side)
    _fringe(renderer, who)
    for side in (-1, 1):
        _brow(renderer, au, who, side)
        _tear(renderer, au, who, side)
    return renderer


def _head(p: Renderer, au: SimpleNamespace, who: Identity) -> None:
    shade = who.skin * 0.78
    if not np.isnan(who.hairline):
        angle = np.linspace(-2.6, 2.6, 28, dtype=np.float32)[None]
        x, y = np.sin(angle), -np.cos(angle)
        wide = np.where(y > 0, np.sign(x) * (0.5 + 0.5 * np.abs(x)), x)
        high = np.where(y > 0, y * max(who.hair_end, 0), y)
        hair = p.on_plane(wide * who.width * who.hair_volume * 1.04, who.hair_volume * high)
        p.add(hair, who.hair * 0.8)
    p.add(p.on_body(floats([[-0.34, 0.34, 0.36, -0.36]]), floats([[0.6, 0.6, 1.22, 1.22]])), shade)
    across = floats([[-1.5, -1.1, -0.3, 0.3, 1.1, 1.5]])
    p.add(p.on_body(across, floats([[2.2, 1.32, 1.12, 1.12, 1.32, 2.2]])), who.shirt)
    for side in (-1, 1):
        p.add(p.on_plane(side * who.width + 0.10 * np.sin(RING), 0.02 + 0.19 * np.cos(RING)), shade)
    around = np.linspace(0, 2 * np.pi, 40, endpoint=False, dtype=np.float32)[None]
    outline = p.on_plane(*head_outline(au, who, around))
    p.add(outline, who.skin)
    if who.beard:
        along = np.linspace(-1, 1, 19, dtype=np.float32)[None]
        x = 0.84 * who.width * along + 0.3 * np.sin(p.pose.yaw) * (1 - along**2)
        inner = p.on_plane(x, 0.15 + 0.53 * np.sqrt(1 - along**2) + _chin_drop(au))
        # 11..29: from ear to ear along the chin
        p.add(np.concatenate([outline[:, 11:30], inner], 1), who.hair, who.beard)


def head_outline(au: SimpleNamespace, who: Identity, around: Array) -> tuple[Array, Array]:
    """Return x and y of the head's outline, [T, N] each.

    At angles ``around`` [1, N], clockwise from the top.
    """
    x, y = np.sin(around), -np.cos(around)
    low = np.clip(y, 0, 1)
    return who.width * x * (1 - who.jaw * low**1.5), y + _chin_drop(au) * low


def _chin_drop(au: SimpleNamespace) -> Array:
    return 0.16 * au.AU26 - 0.03 * au.AU17


def _folds(p: Renderer, au: SimpleNamespace, who: Identity) -> None:
    """Blush, and the furrows that the units draw into the skin."""
    dark, red = who.skin * 0.60, np.clip(who.skin * floats((1.02, 0.74, 0.72)), 0, 255)
    up = np.sqrt(au.AU1 * au.AU2)
    sneer = np.maximum(au.AU9, 0.8 * au.AU10)
    for y in (-0.62, -0.72):
        p.patch(line(0.36 * S, y - 0.05 * up + 0.03 * S**2, 0.03), dark, 0.8 * up)
    for side in (-1, 1):
        p.patch(ellipse(side * 0.46, 0.20 - 0.05 * au.AU6, 0.17, 0.12), red, 0.8 * au.AU6)
        t = (S + 1) / 2
        smile = np.maximum(0.85 * au.AU12, 0.9 * sneer)
        x = side * (0.17 + 0.05 * sneer + (0.16 + 0.08 * au.AU12) * t**1.5)
        fold = line(x, 0.20 - 0.04 * sneer + 0.30 * t, 0.045)
        p.patch(fold, dark, np.maximum(smile, who.lines))
        x = side * floats([[0.025, 0.055, 0.075, 0.045]])  # the furrow between the brows
        p.patch((x, floats([[-0.46, -0.46, -0.24, -0.24]])), dark, 0.95 * au.AU4)
    if not who.beard:
        p.patch(line(0.15 * S, 0.80 - 0.05 * (1 - S**2), 0.04), dark, 0.7 * au.AU17)


def nose_shape(au: SimpleNamespace, who: Identity) -> tuple[Array, Array]:
    """Return y of the tip of the nose, and its width relative to a plain one, [T, 1] each."""
    up, wide = 0.06 * au.AU9 + 0.02 * au.AU10, who.nose_width * (1 + 0.25 * au.AU9)
    return 0.24 * who.nose_length - up, wide


def _nose(p: Renderer, au: SimpleNamespace, who: Identity) -> None:
    tip, wide = nose_shape(au, who)
    root = np.full_like(tip, 0.05)
    x = np.concatenate([-root, root, 0.14 * wide, 0.06 * wide, -0.06 * wide, -0.14 * wide], 1)
    y = np.concatenate([-3 * root, -3 * root, tip - 0.02, tip + 0.03, tip + 0.03, tip - 0.02], 1)
    p.patch((x, y), who.skin * 0.87, lift=0.08)
    x = np.concatenate([-0.6 * root, 0.6 * root, 0.05 * wide, -0.05 * wide], 1)
    y = np.concatenate([-3.5 * root, -3.5 * root, tip - 0.03, tip - 0.03], 1)
    p.patch((x, y), np.clip(who.skin * 1.07, 0, 255), lift=0.14)
    for y0 in (-0.10, -0.01, 0.08):
        fold = line(0.11 * S, y0 + 0.03 * S**2, 0.035)
        p.patch(fold, who.skin * 0.55, 0.9 * au.AU9, lift=0.12)
    for side in (-1, 1):
        nostril = ellipse(side * 0.075 * wide, tip + 0.02, 0.04, 0.025)
        p.patch(nostril, who.skin * 0.42, lift=0.10)


class Mouth(NamedTuple):
    """Curves of the mouth over the same ``x``, [T, N] each.

    ``meeting`` is where the lips meet, ``upper`` and ``lower`` are their inner edges, ``lip_up``
    and ``lip_down`` their thickness; ``bow`` is 0 in the corners.
    """

    x: Array
    meeting: Array
    upper: Array
    lower: Array
    lip_up: Array
    lip_down: Array
    bow: Array


def mouth_curves(au: SimpleNamespace, who: Identity, s: Array) -> Mouth:
    """Return the mouth at positions ``s`` [1, N], from -1 at its left corner to 1 at the right."""
    wider = 0.42 * au.AU12 + 0.25 * au.AU20 - 0.36 * au.AU26 - 0.28 * au.AU23 - 0.12 * au.AU17
    x = 0.27 * who.mouth_width * (1 + wider) * s
    corner = -0.19 * au.AU12 + 0.17 * au.AU15 + 0.03 * au.AU20
    middle = 0.53 + who.mouth_height + 0.05 * au.AU12
    middle = middle - 0.05 * au.AU17 - 0.04 * au.AU10 + 0.02 * au.AU26
    meeting = middle + corner * np.abs(s) ** 1.6
    bow, square = (1 - s**2) ** 0.6, (1 - s**4) ** 0.7
    gap_up = 0.015 * au.AU25 * bow + 0.10 * au.AU10 * square
    gap_down = (0.07 * au.AU25 + 0.40 * au.AU26) * bow + 0.05 * au.AU10 * square
    thin = 1 - 0.55 * au.AU23
    lip_up = (0.055 * who.lips * thin + 0.012) * bow
    lip_down = (0.075 * who.lips * thin + 0.012 + 0.03 * au.AU17) * bow
    return Mouth(x, meeting, meeting - gap_up, meeting + gap_down, lip_up, lip_down, bow)


def _mouth(p: Renderer, au: SimpleNamespace, who: Identity) -> None:
    x, meeting, upper, lower, lip_up, lip_down, bow = mouth_curves(au, who, S)
    red = 0.45 * who.skin * floats((0.95, 0.62, 0.62)) + 0.55 * floats((168, 52, 62))
    lip, gap = np.clip(red, 0, 255), lower - upper
    widest = gap.max(1, keepdims=True)
    is_open = np.clip(widest * 30, 0, 1)
    if who.moustache:
        hair = band(x, upper - lip_up - 0.09 * bow, meeting)
        p.patch(hair, who.hair, max(who.beard, 0.6), lift=0.03)
    p.patch(band(x, upper - lip_up, lower + lip_down), lip, lift=0.03)
    p.patch(band(x, upper, lower), DARK, is_open, lip, 0.03)
    teeth = band(x, upper, upper + np.minimum(0.5 * gap, 0.085))
    p.patch(teeth, floats((244, 240, 230)), is_open, lip, 0.03)
    tongue = band(x, lower - 0.3 * gap * bow, lower)
    p.patch(tongue, floats((176, 74, 80)), np.clip((widest - 0.18) * 8, 0, 1), DARK, 0.03)
    p.patch(line(x, meeting, 0.022), lip * 0.45, 1 - is_open, lip, 0.03)


EYE_LEVEL = -0.09


def eye_place(who: Identity, side: int) -> tuple[float, float]:
    """Return x of an eye's centre, and half its width; ``side`` is -1 for the left in the image."""
    return side * 0.35 * who.eye_gap, 0.19 * who.eye_width


def eye_lids(au: SimpleNamespace, who: Identity, side: int, x: Array) -> tuple[Array, Array]:
    """Return y of the upper and the lower lid of an eye over ``x`` [1, N], [T, N] each."""
    (x0, half), y0, shut = eye_place(who, side), EYE_LEVEL, 1 - au.AU43
    raised = np.clip(1 + 0.85 * au.AU5 - 0.40 * au.AU7 - 0.20 * au.AU6, 0, 2)
    up = 0.115 * who.eye_open * shut * raised
    lowered = 1 + 0.5 * au.AU5 - 0.55 * au.AU7 - 1.1 * au.AU6
    down = 0.08 * who.eye_open * shut * lowered + 0.05 * au.AU43
    inside = np.clip(1 - np.square((x - x0) / half), 0, 1) ** 0.7
    low = y0 + down * inside
    return np.minimum(y0 - (up - 0.05 * au.AU43) * inside, low - 0.004), low


def _eye(p: Renderer, au: SimpleNamespace, who: Identity, side: int) -> None:
    (x0, half), y0, shut = eye_place(who, side), EYE_LEVEL, 1 - au.AU43
    x = x0 + half * S
    top, low = eye_lids(au, who, side, x)
    p.patch(line(x, top - 0.055, 0.03), who.skin * 0.7, 0.9 * shut)
    p.patch(band(x, top, low), floats((246, 244, 240)))
    for size, colour in ((0.105, who.iris), (0.055, floats((14, 12, 12)))):
        ring_x, ring_y = ellipse(x0, y0, size, size)
        p.patch((ring_x, np.clip(ring_y, *eye_lids(au, who, side, ring_x))), colour)
    p.patch(line(x, top - 0.01, 0.045), floats((34, 24, 24)))
    p.patch(line(x, low + 0.008, 0.02), who.skin * 0.55)
    if who.glasses:
        ring = np.append(RING, 2 * np.pi)[None]
        x, y = (loop(0.275 * wave(ring), 0.31 * wave(ring)) for wave in (np.cos, np.sin))
        p.patch((x0 + x, 0.86 * y - 0.06), GLASSES, lift=0.05)
        bridge = line(side * (0.035 + 0.035 * S), np.full_like(S, -0.09), 0.035)
        p.patch(bridge, GLASSES, lift=0.06)


def _fringe(p: Renderer, who: Identity) -> None:
    """Hair in front of the forehead."""
    if np.isnan(who.hairline):
        return
    angle = np.linspace(-1.35, 1.35, 17, dtype=np.float32)[None]
    top = p.on_plane(who.width * who.hair_volume * np.sin(angle), -who.hair_volume * np.cos(angle))
    low = np.clip(who.hairline - who.parting * S + 0.35 * S**4, -0.9, -0.35)
    p.add(np.concatenate([top, p.on_face(-0.8 * who.width * S, low)], 1), who.hair)


def brow_curve(
    au: SimpleNamespace, who: Identity, side: int, t: Array
) -> tuple[Array, Array, Array]:
    """Return x and y of a brow's middle line, [T, N] each, and its thickness.

    At positions ``t`` [1, N], 0 at the nose, 1 at the outer end.
    """
    x = side * (0.14 - 0.06 * au.AU4 * (1 - t) + 0.45 * t)
    rest = -0.36 - who.brow_height - who.brow_arch * np.sin(np.pi * t)
    lifted = -0.19 * au.AU1 * (1 - t) ** 1.2 - 0.19 * au.AU2 * np.sqrt(t) + 0.03 * au.AU9
    lowered = au.AU4 * (0.03 + 0.14 * (1 - t)) * (1 - 0.75 * au.AU1)
    return x, rest + lifted + lowered, 0.085 * who.brow_thick * (1 - 0.45 * t)


def _brow(p: Renderer, au: SimpleNamespace, who: Identity, side: int) -> None:
    colour = np.minimum(who.hair * 0.6, who.skin * 0.38)
    p.patch(line(*brow_curve(au, who, side, (S + 1) / 2)), colour, lift=0.03)


def _tear(p: Renderer, au: SimpleNamespace, who: Identity, side: int) -> None:
    t = (S + 1) / 2
    x, half = side * 0.36 * who.eye_gap + side * 0.04 * t, 0.022 + 0.022 * t
    y = 0.02 + (0.10 + 0.38 * au.tears) * t
    drop = loop(x - half, x + half), loop(y, y)
    p.patch(drop, floats((196, 228, 255)), 0.9 * np.sqrt(au.tears), lift=0.02)
