from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.video.decode import UnsupportedVideo, Video
from tests.helpers.data.videos import write_planes

COLOR = (200, 90, 40)
# ffmpeg's numbers of colour matrices, with the weights of red and blue in the luma by the standards
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2


def to_yuv(rgb: tuple[int, ...], matrix: int, color_range: int, bits: int) -> list[int]:
    """Return a colour as Y, Cb and Cr by the standards' formulas."""
    red, green, blue = (value / 255 for value in rgb)
    of_red, of_blue = WEIGHTS[matrix]
    y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = (blue - y) / (2 - 2 * of_blue), (red - y) / (2 - 2 * of_red)
    scale, top = 1 << (bits - 8), (1 << bits) - 1
    if color_range == LIMITED:
        return [round(scale * v) for v in (16 + 219 * y, *(128 + 224 * c for c in chroma))]
    return [round(v) for v in (top * y, *(128 * scale + top * c for c in chroma))]


def difference(file: Path, expected: tuple[float, ...]) -> float:
    frames = list(Video(file))
    assert [frame.shape for frame in frames] == [(16, 32, 3)] * 2
    return float(np.abs(np.array(frames).astype(int) - expected).max())


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p10le"])
def test_matrix_range_and_depth_are_those_of_the_file(
    tmp_path: Path, matrix: int, color_range: int, pix_fmt: str
) -> None:
    planes = to_yuv(COLOR, matrix, color_range, 10 if pix_fmt.endswith("10le") else 8)
    colors = {"colorspace": matrix, "color_range": color_range}
    assert difference(write_planes(tmp_path / "a.mkv", pix_fmt, planes, **colors), COLOR) <= 3


def test_without_a_matrix_it_is_that_of_standard_definition(tmp_path: Path) -> None:
    planes = to_yuv(COLOR, 5, LIMITED, 8)
    assert difference(write_planes(tmp_path / "a.mkv", "yuv420p", planes), COLOR) <= 2


@pytest.mark.parametrize(("pix_fmt", "value"), [("gray", 77), ("gray10le", 77 * 4)])
def test_grey_video_is_shown_grey(tmp_path: Path, pix_fmt: str, value: int) -> None:
    file = write_planes(tmp_path / "a.mkv", pix_fmt, [value], color_range=FULL)
    assert difference(file, (77, 77, 77)) <= 1


@pytest.mark.parametrize("bits", [8, 10])
def test_transparent_video_is_composed_on_black(tmp_path: Path, bits: int) -> None:
    pix_fmt = "yuva444p" if bits == 8 else "yuva444p10le"
    planes = [*to_yuv(COLOR, 1, LIMITED, bits), 64 << (bits - 8)]
    file = write_planes(tmp_path / "a.mkv", pix_fmt, planes, colorspace=1, color_range=LIMITED)
    assert difference(file, tuple(value * 64 / 255 for value in COLOR)) <= 2


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        ({"color_trc": 16, "colorspace": 9}, r"it is HDR \(PQ, as in HDR10\): convert it to SDR"),
        ({"color_trc": 18, "colorspace": 9}, r"it is HDR \(HLG\): convert it to SDR"),
        ({"colorspace": 8}, r"its colour matrix \(number 8 of ffmpeg\) is not supported"),
        ({"colorspace": 14}, r"its colour matrix \(number 14 of ffmpeg\) is not supported"),
    ],
)
def test_colors_that_8_bits_cannot_show_are_refused(
    tmp_path: Path, colors: dict[str, int], message: str
) -> None:
    file = write_planes(tmp_path / "a.mkv", "yuv420p10le", [400, 512, 512], **colors)
    with pytest.raises(UnsupportedVideo, match=message) as caught:
        list(Video(file))
    assert caught.value.frames == 0
