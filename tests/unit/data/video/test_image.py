from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.parsing_maps import read_labels
from dfer_dist.data.video.image import decode_image, is_still_image
from tests.helpers.data.clips import HUGE_IMAGE

TILES = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
PHOTO = TILES.repeat(8, 0).repeat(8, 1)
# from black to white, and all values between
RAMP = np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(40, 48)

# Where the passes of an interlaced PNG start, and their steps: x, y, x, y.
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)

# How each value of the orientation is shown, by its definition in the Exif standard.
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """Return the bytes of an image file, without loss where the kind allows it."""
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **lossless.get(kind, {}), **options)
    return file.getvalue()


def write_png(
    pixels: np.ndarray,
    color_type: int,
    interlaced: bool = False,
    bits: int | None = None,
    transparent: tuple[int, ...] = (),
) -> bytes:
    """Return pixels [H, W, C] as a PNG, of kinds that Pillow does not write.

    They are of 8 or 16 bits; or of less ``bits``, several of which are a byte of the array.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape[:2]
    bits = bits or 8 * pixels.itemsize
    header = struct.pack(
        ">IIBBBBB", 8 * pixels.itemsize // bits * width, height, bits, color_type, 0, 0, interlaced
    )
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes()
        for x, y, width, height in passes
        for row in pixels[y::height, x::width]
    )
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    if transparent:
        chunks.insert(1, chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def patch_tiff(data: bytes, tag: int, old: int, new: int) -> bytes:
    """Return a TIFF with another value of a tag."""
    for kind in (3, 4):
        entry = struct.pack("<HHII", tag, kind, 1, old)
        if entry in data:
            return data.replace(entry, struct.pack("<HHII", tag, kind, 1, new))
    raise AssertionError(f"no tag {tag} of value {old}")


def difference(data: bytes, expected: np.ndarray) -> int:
    """Return the largest difference of a decoded image, which must have the expected size."""
    pixels, is_jpeg = decode_image(data)
    assert pixels.dtype == np.uint8 and not is_jpeg
    if expected.ndim == 2:
        expected = expected[..., None].repeat(3, 2)
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.astype(int) - expected).max())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_in_the_metadata_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encode(PHOTO, kind, exif=exif)
    assert difference(data, SHOWN[orientation](PHOTO)) <= (4 if kind == "JPEG" else 0)


def test_orientation_in_xmp_is_applied() -> None:
    xmp = b'<rdf:RDF><rdf:Description tiff:Orientation="8"/></rdf:RDF>'
    assert difference(encode(PHOTO, "JPEG", xmp=xmp), SHOWN[8](PHOTO)) <= 4


@pytest.mark.parametrize(
    "before",
    [b"", b"\xff\xff", b"\xff\xed\0\x0a\xff\xd8\xff\xda\0\x02\xff\xd9", b"\xff\xfe\0\x04\xff\xda"],
    ids=["plain", "filled", "after a thumbnail", "after a comment"],
)
def test_metadata_of_a_jpeg_is_found_wherever_it_is(before: bytes) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = encode(PHOTO, "JPEG", exif=exif)
    assert difference(data[:2] + before + data[2:], SHOWN[6](PHOTO)) <= 4


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x01\0\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
        b"Exif\0\0no metadata at all",
        b"Exif\0\0",
    ],
    ids=["none", "upright", "out of range", "damaged", "empty"],
)
def test_jpeg_without_a_turn_is_shown_as_it_is(exif: bytes) -> None:
    pixels, is_jpeg = decode_image(encode(PHOTO, "JPEG", **({"exif": exif} if exif else {})))
    assert is_jpeg
    assert np.abs(pixels.astype(int) - PHOTO).max() <= 4


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_shown_as_they_are(mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(mode)
    pixels, is_jpeg = decode_image(encode(image, "JPEG"))
    assert is_jpeg
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    assert difference(encode(RAMP, kind), RAMP / 257) <= 1


def test_16_bits_of_other_kinds_are_scaled() -> None:
    color = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], 2)
    assert difference(write_png(color, 2), color / 257) <= 1
    half = np.full((40, 48, 1), 32768, np.uint16)
    assert difference(write_png(np.dstack([color, half]), 6), color / 257 / 2) <= 1
    assert difference(write_png(np.dstack([RAMP, half]), 4), RAMP / 257 / 2) <= 1
    ten_bits = RAMP >> 6
    pgm = b"P5 48 40 1023\n" + ten_bits.astype(">u2").tobytes()
    assert difference(pgm, RAMP / 257) <= 1


def test_tiff_with_white_as_zero_is_inverted() -> None:
    data = encode(RAMP, "TIFF")
    assert difference(patch_tiff(data, tag=262, old=1, new=0), 255 - RAMP / 257) <= 1


def test_tiff_of_12_bits_is_scaled() -> None:
    # two pixels are three bytes: 72 bytes are 48 pixels
    first, second = (RAMP.ravel()[i::2] >> 4 for i in range(2))
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    data = encode(packed.astype(np.uint8).reshape(40, 72), "TIFF")
    data = patch_tiff(data, tag=256, old=72, new=48)
    data = patch_tiff(data, tag=258, old=8, new=12)
    assert difference(data, RAMP / 257) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_composed_on_black(kind: str) -> None:
    alpha = np.linspace(0, 255, 48).astype(np.uint8)[None].repeat(40, 0)
    image = Image.fromarray(np.dstack([PHOTO, alpha]))
    expected = PHOTO * (alpha[..., None] / 255)
    # WebP may change colours that nobody sees, where alpha is 0
    assert difference(encode(image, kind), expected) <= 1
    opaque = Image.fromarray(np.dstack([PHOTO, np.full_like(alpha, 255)]))
    assert difference(encode(opaque, kind), PHOTO) == 0


def test_transparent_palette_and_grey_are_composed_on_black() -> None:
    palette = Image.fromarray(PHOTO).quantize(8)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == 3] = 0
    assert difference(encode(palette, "PNG", transparency=3), expected) == 0
    grey = Image.fromarray(PHOTO).convert("L")
    grey.putalpha(128)
    assert difference(encode(grey, "PNG"), np.asarray(grey)[..., 0] * (128 / 255)) <= 1


@pytest.mark.parametrize(
    ("packed", "bits", "transparent", "shown"),
    [
        (np.array([[0, 0x8000, 0x8001, 0xFFFF]], np.uint16), 16, 0x8000, [0, 0, 128, 255]),
        (np.array([[0x08, 0xF4]], np.uint8), 4, 8, [0, 0, 255, 68]),
        (np.array([[0b00011011]], np.uint8), 2, 1, [0, 0, 170, 255]),
        (np.array([[0b01100000]], np.uint8), 1, 1, [0] * 8),
        (np.array([[7, 8, 9]], np.uint8), 8, 8, [7, 0, 9]),
    ],
)
def test_transparent_grey_value_of_any_depth_becomes_black(
    packed: np.ndarray, bits: int, transparent: int, shown: list[int]
) -> None:
    data = write_png(packed[..., None], 0, bits=bits, transparent=(transparent,))
    assert difference(data, np.array([shown])) == 0


def test_transparent_color_is_composed_or_refused() -> None:
    color = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    assert difference(write_png(color, 2, transparent=(1, 2, 3)), color * [[[0], [1]]]) == 0
    with pytest.raises(ValueError, match="a transparent colour of 16 bits: convert it to 8 bits"):
        decode_image(write_png(color.astype(np.uint16), 2, transparent=(1, 2, 3)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_bits_and_palettes_are_shown_in_color(kind: str, mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(mode)
    assert difference(encode(image, kind), np.asarray(image.convert("RGB"))) == 0


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PPM", "JPEG2000"])
def test_other_kinds_are_read_by_content(kind: str) -> None:
    assert difference(encode(PHOTO, kind), PHOTO) == 0


def test_cmyk_tiff_and_interlaced_png_are_shown() -> None:
    image = Image.fromarray(PHOTO).convert("CMYK")
    assert difference(encode(image, "TIFF"), PHOTO) == 0
    assert difference(write_png(PHOTO, 2, interlaced=True), PHOTO) == 0


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_are_refused_by_name(mode: str) -> None:
    with pytest.raises(ValueError, match=r"^its pixels have 32 bits: convert them to 8 or 16"):
        decode_image(encode(Image.new(mode, (8, 8)), "TIFF"))


def test_colors_of_many_bits_in_a_jpeg_2000_are_refused_by_name() -> None:
    """Pillow shows the brightest of them as black."""
    codec = av.CodecContext.create("jpeg2000", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 48, 40, "rgb48le", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((40, 48, 3), 65535, np.uint16), "rgb48le")
    (packet,) = [*codec.encode(frame), *codec.encode(None)]
    with pytest.raises(ValueError, match="its colours have 16 bits: convert them to 8"):
        decode_image(bytes(packet))


def test_pixels_of_a_float_map_are_refused_by_name() -> None:
    data = b"Pf\n2 1\n-1.0\n" + np.array([0, 1], "<f4").tobytes()
    with pytest.raises(ValueError, match=r"^its pixels have 32 bits: convert them to 8 or 16"):
        decode_image(data)


def test_signed_pixels_are_refused_by_name() -> None:
    # the tag of the planes, which has its default, becomes that of the format: 2 is signed
    planes = struct.pack("<HHII", 284, 3, 1, 1)
    data = encode(RAMP, "TIFF")
    assert planes in data
    signed = data.replace(planes, struct.pack("<HHII", 339, 3, 1, 2))
    with pytest.raises(ValueError, match="negative values: convert them to 8 bits"):
        decode_image(signed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_truncated_image_is_damaged(kind: str) -> None:
    data = encode(PHOTO, kind)
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_rejected(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is no image of a usual format$"):
        decode_image(content)


@pytest.mark.parametrize("size", ["20000 20000", "10000 9000"])
def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(size: str) -> None:
    """Pillow refuses the first with an error of its own, and only warns of the second."""
    data = HUGE_IMAGE.replace(b"20000 20000", size.encode())
    with pytest.raises(ValueError, match=r"^it has more than 89 million pixels$"):
        decode_image(data)
    with pytest.raises(ValueError, match="more than 89 million pixels"):
        read_labels(io.BytesIO(data))


def test_jpeg_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    size, huge = struct.pack(">HH", *PHOTO.shape[:2]), struct.pack(">HH", 20000, 20000)
    data = encode(PHOTO, "JPEG")
    assert data.count(size) == 1
    with pytest.raises(ValueError, match="more than 89 million pixels"):
        decode_image(data.replace(size, huge))


def test_image_of_too_many_pixels_is_a_still_image(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(HUGE_IMAGE)
    assert is_still_image(tmp_path / "huge")
