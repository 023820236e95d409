"""Clips of drawn faces for the demo data set: seven classes that differ in apex and timing.

**A construction, not a claim about people.** Three classes are recognized by their apex: happiness,
sadness (both come and go smoothly) and neutral (slight movements of single units). The other four
form two pairs that share one apex and differ in the direction of time alone: surprise and disgust
appear abruptly and fade slowly; fear and anger build up slowly and vanish abruptly. With the same
random samples, a clip of fear is one of surprise played backwards, and one of anger is one of
disgust, so the frames of both have the same distribution and a model that ignores their order
cannot tell them apart. Real surprise and fear, or disgust and anger, differ in their action units.

Frames are aligned crops, as DFEW's are: the middle of the face stays near the middle of the frame
while the head turns. Turns, light and camera vary by :class:`Ranges`, people by
:class:`~dfer_dist.demo.identity.Identity`; background and shirt have any colour. Movements of the
head are as likely forwards as backwards in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dfer_dist.demo.face_parts import AUS, build
from dfer_dist.demo.face_points import face_points
from dfer_dist.demo.identity import Identity
from dfer_dist.demo.renderer import DEPTH, OVERSAMPLING, Array, Pose, floats

RENDERER = 2  # goes up when the same arguments give other files
FRAMES = (12, 60)  # of a clip, fewest and most
BACKWARDS = {3: 5, 6: 4}  # label -> the label of which it is the reverse in time

_ALARM = {
    "AU1": (0.75, 1),
    "AU2": (0.75, 1),
    "AU5": (0.7, 1),
    "AU20": (0, 0.4),
    "AU25": (0.5, 1),
    "AU26": (0.6, 1),
}
_AVERSION = {"AU4": (0.8, 1), "AU7": (0.6, 1), "AU9": (0.75, 1), "AU10": (0.7, 1), "AU23": (0, 0.5)}
# Bounds of the intensity of each unit at the apex.
APEX: dict[int, dict[str, tuple[float, float]]] = {
    0: {"AU6": (0.7, 1), "AU12": (0.8, 1), "AU25": (0.5, 1), "AU26": (0.15, 0.35)},
    1: {
        "AU1": (0.7, 1),
        "AU4": (0.4, 0.8),
        "AU15": (0.8, 1),
        "AU17": (0.4, 1),
        "AU43": (0.1, 0.5),
        "tears": (0.4, 1),
    },
    2: {},
    3: _AVERSION,
    4: _ALARM,
    5: _AVERSION,
    6: _ALARM,
}


@dataclass(frozen=True)
class Ranges:
    """What varies from clip to clip.

    Pairs are bounds of a uniform distribution; single numbers bound a symmetric triangular one
    (+-).
    """

    yaw: float = 22.0  # head turned left or right, degrees
    pitch: float = 12.0  # head bowed or raised, degrees
    roll: float = 10.0  # head tilted, degrees
    turn_drift: float = 5.0  # largest slow swing of each of the three within a clip, degrees
    scale: float = 0.10  # size of the head, relative
    shift: float = 0.03  # place of the middle of the face, share of the frame
    shift_drift: float = 0.01  # largest slow swing of that place within a clip, share of the frame
    gain: tuple[float, float] = (0.7, 1.25)  # brightness of the light, relative
    # fall of the light across half a frame, relative; any direction
    slope: tuple[float, float] = (0.0, 0.4)
    flicker: float = 0.02  # brightness from frame to frame, standard deviation, relative
    tint: float = 0.06  # colour of the light, each of red and blue, relative
    blur: tuple[float, float] = (0.0, 0.7)  # standard deviation, pixels of a 64-pixel frame
    noise: tuple[float, float] = (1.0, 7.0)  # of the sensor, standard deviation, grey values of 255


RANGES = Ranges()

# People of the demo, from number 0; the pretraining of its CLIP has those after them.
IDENTITIES = 70


class Clip(NamedTuple):
    """A drawn clip.

    Frames are uint8 [T, size, size, 3] in RGB, the intensity of the expression is [T] in 0..1,
    landmarks are [T, 68, 2] in pixels.
    """

    frames: NDArray[np.uint8]
    intensity: Array
    landmarks: Array


def render_clip(label: int, identity: int, seed: int | Sequence[int], size: int = 64) -> Clip:
    """Draw one clip. The same arguments give the same bytes.

    Parameters
    ----------
    label
        Class, 0..6 in the order of :data:`~dfer_dist.data.sources.records.SEVEN`.
    identity
        Number of the person, 0 or more.
    seed
        Seeds what varies from clip to clip.
    size
        Side of the frames, pixels.
    """
    aus, intensity, rng = clip_track(label, seed)
    pixels, points = render_units(aus, identity, rng, size)
    return Clip(pixels, intensity, points)


def clip_track(label: int, seed: int | Sequence[int]) -> tuple[Array, Array, np.random.Generator]:
    """Return :func:`draw_track` of a clip, and the generator for the rest of the clip."""
    rng = np.random.default_rng(seed)
    frames = FRAMES[0] + round((FRAMES[1] - FRAMES[0]) * rng.beta(1.5, 2.5))
    return *draw_track(label, frames, rng), rng


def render_units(
    aus: Array, identity: int, rng: np.random.Generator, size: int, ranges: Ranges = RANGES
) -> tuple[NDArray[np.uint8], Array]:
    """Draw a face with action units ``aus`` [T, len(AUS)] in 0..1.

    ``rng`` samples the rest within ``ranges``.

    Returns
    -------
    uint8 [T, size, size, 3]
        Frames.
    float32 [T, 68, 2]
        Landmarks (:func:`~dfer_dist.demo.face_points.face_points`).
    """
    who = Identity(identity)
    canvas = size * OVERSAMPLING
    pose = _draw_pose(len(aus), canvas, ranges, rng)
    painted = build(aus, who, pose).render(_background(canvas, rng))
    return _expose(painted, pose, ranges, rng), face_points(aus, who, pose)


def draw_track(label: int, frames: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw intensities of action units [frames, len(AUS)] and of the expression [frames].

    For the same state of ``rng``, a label in :data:`BACKWARDS` gives exactly the reverse in time of
    its partner.
    """
    t = np.linspace(0, 1, frames)
    if label in (0, 1, 2):
        rise, hold, fall = rng.uniform((0.2, 0.1, 0.2), (0.32, 0.3, 0.32))
        start = rng.uniform(0.02, 0.98 - rise - hold - fall)
    else:
        rise, hold, fall = rng.uniform((0.04, 0, 0.5), (0.10, 0.05, 0.7))
        start = rng.uniform(0.02, 0.13)
    intensity = _ramp((t - start) / rise) * (1 - _ramp((t - start - rise - hold) / fall))
    aus = np.zeros((frames, len(AUS)))
    for name, (low, high) in APEX[label].items():
        aus[:, AUS.index(name)] = intensity * rng.uniform(low, high)
    if not APEX[label]:
        intensity *= 0.3
        busy = rng.choice(len(AUS) - 2, 3, replace=False)  # not closed eyes, not tears
        aus[:, busy] += intensity[:, None] * rng.random(3)
    for column in range(len(AUS) - 2):
        wave = np.sin(2 * np.pi * (rng.uniform(0.3, 2) * t + rng.random()))
        aus[:, column] += 0.06 * (1 + wave) * rng.random()
    blinks = rng.random() < 0.4
    distance = np.arange(frames) - rng.uniform(0, frames)
    aus[:, AUS.index("AU43")] += blinks * np.exp(-(distance**2))
    track = np.clip(aus, 0, 1).astype(np.float32)
    return (track[::-1].copy(), intensity[::-1]) if label in BACKWARDS else (track, intensity)


def _ramp(u: Array) -> Array:
    """0 before 0, 1 after 1, smooth between."""
    u = np.clip(u, 0, 1)
    return u * u * (3 - 2 * u)


def _swing(frames: int, size: float, rng: np.random.Generator) -> Array:
    """Draw a slow movement within +-``size``, [T, 1], without a direction of time."""
    t = np.linspace(0, 1, frames)[:, None]
    waves = [
        rng.uniform(0, 0.5) * np.sin(2 * np.pi * (rng.uniform(0.3, 1.2) * t + rng.random()))
        for _ in range(2)
    ]
    return floats(size * sum(waves))


def _draw_pose(frames: int, canvas: int, r: Ranges, rng: np.random.Generator) -> Pose:
    def around(half: float, drift: float) -> Array:
        return np.float32(rng.triangular(-half, 0, half)) + _swing(frames, drift, rng)

    yaw, pitch, roll = (np.radians(around(half, r.turn_drift)) for half in (r.yaw, r.pitch, r.roll))
    radius = canvas * np.float32(0.45) * (1 + around(r.scale, 0.02))
    x, y = (canvas * (0.5 + around(r.shift, r.shift_drift)) for _ in range(2))
    # As in aligned crops, not the head but the middle of the face, which a turn moves on the head,
    # is near the frame's middle.
    across, down = DEPTH * np.sin(yaw), 0.12 + DEPTH * np.cos(yaw) * np.sin(pitch)
    x = x - radius * (across * np.cos(roll) - down * np.sin(roll))
    y = y - radius * (across * np.sin(roll) + down * np.cos(roll))
    return Pose(yaw, pitch, roll, x, y, radius)


def _background(canvas: int, rng: np.random.Generator) -> Image.Image:
    """Soft blotches of colour with a few hard-edged things in them."""
    colours = rng.uniform(50, 205) + rng.uniform(-45, 45, 3) + rng.normal(0, 18, (5, 5, 3))
    blotches = np.clip(colours, 0, 255).astype(np.uint8)
    image = Image.fromarray(blotches).resize((canvas, canvas), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 5)):
        colour = tuple(rng.integers(30, 225, 3).tolist())
        centre, half = rng.uniform(0, canvas, 2), rng.uniform(0.05, 0.25, 2) * canvas
        draw.rectangle([*(centre - half), *(centre + half)], fill=colour)
    return image


def _expose(
    painted: NDArray[np.uint8], pose: Pose, r: Ranges, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Light, blur and noise of one clip, on frames [T, size, size, 3]."""
    frames, size = painted.shape[:2]
    x = np.linspace(-1, 1, size, dtype=np.float32)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(*r.slope)
    across = floats(np.cos(angle)) * x + floats(np.sin(angle)) * x[:, None]
    fall = 1 + np.float32(slope) * across
    tint = floats([1 + rng.uniform(-r.tint, r.tint), 1, 1 + rng.uniform(-r.tint, r.tint)])
    flicker = rng.uniform(*r.gain) * (1 + rng.normal(0, r.flicker, frames))
    cx, cy, radius = (
        (v / OVERSAMPLING).astype(np.float32)[..., None] for v in (pose.x, pose.y, pose.radius)
    )
    pixel = np.arange(size, dtype=np.float32)
    edge = np.minimum(((pixel - cx) / radius) ** 2 + ((pixel[:, None] - cy) / radius) ** 2, 1)
    light = fall * (1.05 - 0.2 * edge) * floats(flicker)[:, None, None]
    out = painted * (light[..., None] * tint)
    sigma = rng.uniform(*r.blur) * size / 64
    if sigma > 0.2:
        side = floats(np.exp(-0.5 / sigma**2))
        for axis in (1, 2):
            ahead, behind = (np.roll(out, step, axis) for step in (1, -1))
            out = (out + side * (ahead + behind)) / (1 + 2 * side)
    out += np.float32(rng.uniform(*r.noise)) * rng.standard_normal(out.shape, np.float32)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)
