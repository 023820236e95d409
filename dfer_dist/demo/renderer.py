"""Project polygons on a turning head in parallel, and render them with smooth edges.

The head is an ellipsoid, one half head height tall to either side of its centre. Lengths are in
half head heights; x runs to the right of the image, y down, z to the viewer. Frames are rendered
:data:`OVERSAMPLING` times too large and averaged down.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.floating[Any]]
Edge = tuple[Array, Array]  # x and y of points

DEPTH = 0.8  # half the head's depth
OVERSAMPLING = 4
RING = np.linspace(0, 2 * np.pi, 16, endpoint=False, dtype=np.float32)[None]


class Pose(NamedTuple):
    """Pose of the head in each frame, all [T, 1].

    Angles are in radians, centre and radius in pixels of the oversampled frame.
    """

    yaw: Array
    pitch: Array
    roll: Array
    x: Array
    y: Array
    radius: Array


def floats(values: Any) -> Array:
    """Return ``values`` as a float32 array."""
    return np.asarray(values, np.float32)


def loop(there: Any, back: Any) -> Array:
    """Join two curves to a closed one, the second backwards."""
    there, back = np.broadcast_arrays(there, back)
    return np.concatenate([there, back[..., ::-1]], -1)


def band(x: Any, top: Any, bottom: Any) -> Edge:
    """Return x and y around the area between two curves over the same ``x``."""
    return loop(x, x), loop(top, bottom)


def line(x: Any, y: Any, thick: Any) -> Edge:
    """Return x and y around a line of this thickness, thickened up and down."""
    half = np.asarray(thick) / 2
    return band(x, y - half, y + half)


def ellipse(x: Any, y: Any, width: float, height: float) -> Edge:
    """Return x and y around an ellipse of these half axes."""
    return x + width * np.cos(RING), y + height * np.sin(RING)


class Renderer:
    """Collect the polygons of all frames of one clip, back to front, then render them.

    ``parts`` has points [T, N, 2] in pixels of the oversampled frame, T colours, and in which of
    the frames the polygon is visible.
    """

    def __init__(self, pose: Pose, width: float, skin: Array) -> None:
        self.pose, self.width, self.skin = pose, width, skin
        self.parts: list[tuple[Array, list[list[int]], Array]] = []

    def on_face(self, x: Any, y: Any, lift: float = 0.0) -> Array:
        """Project points on the head's surface, ``lift`` above it, to pixels [T, N, 2]."""
        p = self.pose
        z = DEPTH * np.sqrt(np.clip(1 - (x / self.width) ** 2 - np.square(y), 0, 1)) + lift
        across = x * np.cos(p.yaw) + z * np.sin(p.yaw)
        ahead = z * np.cos(p.yaw) - x * np.sin(p.yaw)
        return self.on_plane(across, y * np.cos(p.pitch) + ahead * np.sin(p.pitch))

    def on_plane(self, x: Any, y: Any) -> Array:
        """Project points of the head's outline, which only tilts, to pixels [T, N, 2]."""
        c, s = np.cos(self.pose.roll), np.sin(self.pose.roll)
        return self.on_body(x * c - y * s, x * s + y * c)

    def on_body(self, x: Any, y: Any) -> Array:
        """Project points that only move with the head, to pixels [T, N, 2]."""
        p = self.pose
        return np.stack([p.x + p.radius * x, p.y + p.radius * y], -1).astype(np.float32)

    def add(self, points: Array, colour: Any, alpha: Any = 1.0, under: Any = None) -> None:
        """Add a polygon of ``colour`` [3], blended over ``under`` by ``alpha`` [T, 1] in 0..1.

        ``under`` is the skin by default. The polygon is hidden where ``alpha`` is close to 0.
        """
        alpha = np.clip(np.broadcast_to(alpha, (len(points), 1)), 0, 1)
        below = self.skin if under is None else under
        mixed = np.clip(alpha * colour + (1 - alpha) * below, 0, 255).astype(int).tolist()
        self.parts.append((points, mixed, alpha[:, 0] > 0.04))

    def patch(
        self, edge: Edge, colour: Any, alpha: Any = 1.0, under: Any = None, lift: float = 0.0
    ) -> None:
        """Add a polygon on the face, given as x and y of its edge; see :meth:`add`."""
        self.add(self.on_face(*edge, lift), colour, alpha, under)

    def render(self, background: Image.Image) -> NDArray[np.uint8]:
        """Return all frames, [T, size, size, 3]."""
        frames = []
        for t in range(len(self.pose.x)):
            image = background.copy()
            draw = ImageDraw.Draw(image)
            for points, colours, visible in self.parts:
                if visible[t]:
                    draw.polygon(points[t], fill=tuple(colours[t]))
            frames.append(np.asarray(image.reduce(OVERSAMPLING)))
        return np.stack(frames)
