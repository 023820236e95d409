"""Find files of which a part is missing in containers where ffmpeg does not look for it.

A transport stream declares neither length nor duration: one that ends between two packets cannot be
distinguished from a whole one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

# of the packets of a transport stream: length, and position of the byte G at their start
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))

# of the part of an ASF header that declares the length of the file
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

# the header of an Ogg page: mark, flags, stream, number, checksum, number of segments; its flags
_OGG_PAGE = struct.Struct("<4sxB8xIIIB")
_OGG_FIRST, _OGG_LAST = 2, 4
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def find_truncation(path: str, container: str) -> str | None:
    """Return what is missing of a video file, None if nothing is known to be.

    Parameters
    ----------
    path : str
    container : str
        ffmpeg's name of its format.
    """
    check = _CHECKS.get(container)
    if check is None:
        return None
    with open(path, "rb") as file:
        return check(file, os.fstat(file.fileno()).st_size)


def _check_transport_stream(file: BinaryIO, size: int) -> str | None:
    head = file.read(1024)
    for length, mark in _TS_PACKETS:
        rest = size % length
        file.seek(size - rest + mark)
        # what else follows the last packet is no part of the stream
        if head[mark::length][:4] == b"GGGG" and rest > mark and file.read(1) == b"G":
            return "it ends within a packet (truncated?)"
    return None


def _check_asf(file: BinaryIO, size: int) -> str | None:
    head = file.read(1 << 16)
    start = head.find(_ASF_PROPERTIES)
    declared, flags = (int.from_bytes(head[start + i : start + i + 8], "little") for i in (40, 88))
    is_broadcast = flags & 1
    if start < 0 or is_broadcast or declared <= size:
        return None
    return f"the last {declared - size:,} bytes are missing"


def _check_ogg(file: BinaryIO, size: int) -> str | None:
    """Read all pages: they have checksums, those of a stream are numbered, its last one is marked.

    ffmpeg drops a damaged page without a word.
    """
    numbers: dict[int, int] = {}
    unfinished = set[int]()
    while file.tell() + _OGG_PAGE.size <= size:
        header = file.read(_OGG_PAGE.size)
        mark, flags, stream, number, checksum, count = _OGG_PAGE.unpack(header)
        sizes = file.read(count)
        # other data may follow the last page
        if mark != b"OggS" or file.tell() + sum(sizes) > size:
            break
        page = header[:22] + bytes(4) + header[26:] + sizes + file.read(sum(sizes))
        is_missing = not flags & _OGG_FIRST and number != numbers.get(stream, number - 1) + 1
        if is_missing or _ogg_checksum(page) != checksum:
            return f"its page {number} is damaged, or a part before it is missing"
        numbers[stream] = number
        unfinished.add(stream)
        if flags & _OGG_LAST:
            unfinished.remove(stream)
    return "its last page is missing (truncated?)" if unfinished else None


def _ogg_checksum(page: bytes) -> int:
    """Return the CRC32 of the bits in the other order than zlib's, without its inversions."""
    state = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{state:032b}"[::-1], 2)


_CHECKS: dict[str, Callable[[BinaryIO, int], str | None]] = {
    "mpegts": _check_transport_stream,
    "asf": _check_asf,
    "ogg": _check_ogg,
}
