"""Decode still images as an image viewer shows them: upright, 8 bits a channel, opaque."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

_JPEG_SIGNATURE = b"\xff\xd8\xff"

# Bytes of a JPEG: each segment begins with the first, and compressed data with the second.
_MARKER, _START_OF_SCAN = 0xFF, 0xDA

# What Git LFS stores in place of a file that was not fetched.
LFS_START, LFS_FAULT = b"version https://git-lfs", "a pointer of Git LFS: run git lfs pull"

# Above about this many Pillow warns, and above twice as many it raises an error that is no OSError.
MAX_PIXELS = 89_000_000
_TOO_LARGE = f"it has more than {MAX_PIXELS // 10**6} million pixels"
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Where JPEGs may have an orientation: Exif and XMP. Reading those of every JPEG would take as long
# as decoding a small one.
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")

# Formats that Pillow reads without another program or package. The first three are loaded at once.
_FORMATS = ("PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF", "JPEG2000")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Where a PNG has the bits of a channel.
_PNG_BITS = 24

# How the codestream of a JPEG 2000 starts, and where it has the bits of each component.
_JPEG2000_START, _JPEG2000_BITS = b"\xff\x4f\xff\x51", 42

# Tags of a TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def decode_image(data: bytes) -> tuple[np.ndarray, bool]:
    """Decode an image file of any of the usual formats, decided by its content.

    The orientation in its metadata is applied. More than 8 bits a channel are scaled to 8, and
    what is transparent is composed on black. Of several images in a file the first one is decoded.
    Colour profiles are not applied.

    Returns
    -------
    pixels : uint8 array [H, W, 3], RGB
    is_jpeg : bool
        Whether ``data`` is a JPEG that any decoder shows like this.

    Raises
    ------
    ValueError
        If it is damaged, has more than ``MAX_PIXELS``, or is no image that can be shown with 8 bits
        a channel.
    """
    if data.startswith(LFS_START):
        raise ValueError(LFS_FAULT)
    if not data.startswith(_JPEG_SIGNATURE):
        return _decode_with_pillow(data), False
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height)
    # stricter than Pillow, which does not report altered bytes
    pixels = simplejpeg.decode_jpeg(data)
    turn = find_turn(data)
    if turn is None:
        return pixels, True
    return np.asarray(Image.fromarray(pixels).transpose(turn)), False


def open_image(file: IO[bytes] | Path, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Open an image with Pillow, without decoding it.

    Raises
    ------
    ValueError
        If it has more than ``MAX_PIXELS``.
    OSError
        If it cannot be read, or is of another format.
    """
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as e:
        raise ValueError(_TOO_LARGE) from e
    _check_size(*image.size)
    return image


def find_turn(jpeg: bytes) -> Image.Transpose | None:
    """Return how the metadata of a JPEG turns or mirrors it, None if they do not."""
    header = _jpeg_header(jpeg)
    if not any(mark in header for mark in _ORIENTATION_MARKS):
        return None
    return _UPRIGHT.get(_jpeg_orientation(jpeg))


def is_still_image(file: Path) -> bool:
    """Return whether a file is an image of a usual format with a single picture, by its content.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with file.open("rb") as stream:
        if stream.read(len(_JPEG_SIGNATURE)) == _JPEG_SIGNATURE:
            return True
        try:
            with Image.open(stream, formats=_FORMATS) as image:
                return getattr(image, "n_frames", 1) == 1
        except Image.DecompressionBombError:
            return True
        except (UnidentifiedImageError, ValueError):
            return False


def compose_on_black(rgba: np.ndarray) -> np.ndarray:
    """Return RGB, uint8 [H, W, 3], of an image with transparency, uint8 [H, W, 4]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with open_image(io.BytesIO(data), _FORMATS) as image:
            # Pillow turns a TIFF upright itself while it loads it
            image.load()
            if image.format == "PNG":
                _scale_transparent_color(image, data[_PNG_BITS])
            elif image.format == "JPEG2000":
                _check_color_bits(image, data)
            shown = _scale_to_8_bits(image)
            orientation = _orientation(image)
            if orientation in _UPRIGHT:
                shown = shown.transpose(_UPRIGHT[orientation])
            if shown.has_transparency_data:
                return compose_on_black(np.asarray(shown.convert("RGBA")))
            return np.asarray(shown.convert("RGB"))
    except UnidentifiedImageError as e:
        raise ValueError("it is no image of a usual format") from e
    # Pillow raises SyntaxError, struct.error, zlib.error and more for a damaged file
    except Exception as e:
        kind = "" if isinstance(e, ValueError) else f"{type(e).__name__}: "
        raise ValueError(f"{kind}{e}") from e


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(_TOO_LARGE)


def _jpeg_header(jpeg: bytes) -> bytes:
    """Return the segments before the compressed data, or all of a JPEG that has another form."""
    start = len(_JPEG_SIGNATURE) - 1
    with suppress(IndexError):
        while jpeg[start] == _MARKER:
            if jpeg[start + 1] == _START_OF_SCAN:
                return jpeg[:start]
            if jpeg[start + 1] == _MARKER:
                # a segment may be filled up with markers
                start += 1
            else:
                start += 2 + (jpeg[start + 2] << 8) + jpeg[start + 3]
    return jpeg


def _jpeg_orientation(data: bytes) -> int:
    try:
        with open_image(io.BytesIO(data), ("JPEG",)) as image:
            return _orientation(image)
    # as in _orientation
    except Exception:
        return 1


def _orientation(image: Image.Image) -> int:
    """Return the orientation in an image's metadata, 1 to 8; 1 if there is none to be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # viewers ignore damaged metadata, for which Pillow raises many kinds of errors
    except Exception:
        return 1


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits; Pillow does so for colours, and clips grey ones."""
    is_integer = image.mode == "I" or image.mode.startswith("I;16")
    if not is_integer and image.mode != "F":
        return image
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(_BITS_PER_SAMPLE, (32 if image.mode == "F" else 16,))[0])
    if image.mode == "F" or not 8 < bits <= 16:
        raise ValueError(f"its pixels have {bits} bits: convert them to 8 or 16")
    values = np.asarray(image).astype(np.int64) >> (bits - 8)
    if values.min() < 0:
        raise ValueError("its pixels have negative values: convert them to 8 bits")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 255 - values
    if "transparency" in image.info:
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255)
        values = np.dstack([values, alpha])
    return Image.fromarray(values.astype(np.uint8))


def _check_color_bits(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG 2000 with colours of more than 8 bits: Pillow shows the brightest as black."""
    first = data.find(_JPEG2000_START) + _JPEG2000_BITS
    num_bits = [(value & 127) + 1 for value in data[first::3][: len(image.getbands())]]
    if image.mode != "I;16" and max(num_bits) > 8:
        raise ValueError(f"its colours have {max(num_bits)} bits: convert them to 8")


def _scale_transparent_color(image: Image.Image, bits: int) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow does with pixels only."""
    color = image.info.get("transparency")
    if isinstance(color, tuple) and bits > 8:
        raise ValueError(f"it has a transparent colour of {bits} bits: convert it to 8 bits")
    if isinstance(color, int) and image.mode == "L":
        image.info["transparency"] = color * 255 // (2**bits - 1)
