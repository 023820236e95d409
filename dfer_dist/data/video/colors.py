"""Convert decoded frames to RGB as a player shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.data.video.image import compose_on_black

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

# By ffmpeg's numbers of colour transfers. Their brightness cannot be shown without tone mapping.
_HDR = {16: "PQ, as in HDR10", 18: "HLG"}

# ffmpeg's numbers of the colour matrices that swscale converts: RGB, BT.709, unspecified (which is
# taken for BT.601), reserved, FCC, BT.470, SMPTE 170M and 240M, BT.2020.
_MATRICES = frozenset((0, 1, 2, 3, 4, 5, 6, 7, 9))


_SIDE_DATA_KINDS = 64  # more than ffmpeg has


class UnsupportedColors(Exception):
    """Colours that cannot be shown with 8 bits a channel; says which and what to do."""


def to_upright_rgb(frames: Iterable[VideoFrame], stream: VideoStream) -> Iterator[np.ndarray]:
    """Yield RGB arrays as a player shows the frames, all of the size of the first one.

    Raises
    ------
    UnsupportedColors
        If a frame is HDR, or has a colour matrix that ffmpeg does not convert.
    """
    from av.video.reformatter import Interpolation

    # bit-exact: the same bytes on every processor
    interpolation = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    size: tuple[int, int] | None = None
    for frame in frames:
        _check_colors(frame)
        if size is None:
            pixel_aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            width = round(frame.width * max(1.0, pixel_aspect))
            size = width, round(frame.height * max(1.0, 1 / pixel_aspect))
        has_alpha = any(component.is_alpha for component in frame.format.components)
        pixel_format = "rgba" if has_alpha else "rgb24"
        rgb = frame.reformat(*size, format=pixel_format, interpolation=interpolation, threads=1)
        pixels = np.asarray(rgb.to_ndarray())
        if has_alpha:
            pixels = compose_on_black(pixels)
        yield _apply_display_matrix(pixels, frame)


def _check_colors(frame: VideoFrame) -> None:
    if frame.color_trc in _HDR:
        raise UnsupportedColors(f"it is HDR ({_HDR[frame.color_trc]}): convert it to SDR")
    if frame.colorspace not in _MATRICES:
        raise UnsupportedColors(
            f"its colour matrix (number {frame.colorspace} of ffmpeg) is not supported: "
            "convert it to BT.709"
        )


def _apply_display_matrix(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Rotate or mirror an image as the display matrix of its frame says.

    The matrix [[a, b, u], [c, d, v], [x, y, w]] shows a point (p, q) at (a p + c q, b p + d q).
    Only quarter turns and mirror images are applied; other matrices are rounded to these.
    """
    from av.sidedata.sidedata import Type

    # PyAV 18 raises ValueError for the kinds of side data that its ffmpeg has since, such as Exif's
    kinds: dict[int, Any] = vars(Type)["_value2member_map_"]
    for kind in range(_SIDE_DATA_KINDS):
        kinds.setdefault(kind, kind)
    # the stubs of PyAV have another type for it
    side_data: Any = frame.side_data
    if Type.DISPLAYMATRIX not in side_data:
        return image
    matrix = np.frombuffer(bytes(side_data[Type.DISPLAYMATRIX]), np.int32).tolist()
    a, b, _, c, d = matrix[:5]
    right, down = a, d
    if abs(b) > abs(a):
        image = image.swapaxes(0, 1)
        right, down = c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])
