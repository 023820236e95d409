"""Find truncated files in containers where ffmpeg does not look for it.

A transport stream declares neither length nor duration: one that ends between two packets cannot be
distinguished from a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

# of the packets of a transport stream: length, and position of the byte G at their start
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))

# of the part of an ASF header that declares the length of the file
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

# of an Ogg page: largest length, and the flag of the last one of a stream
_OGG_MAX, _OGG_LAST = 65_307, 4


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
    # other data may follow the last page
    file.seek(max(0, size - 2 * _OGG_MAX))
    page = file.read().rpartition(b"OggS")[2]
    # version, flags, 20 bytes, number of segments, their sizes, and the segments
    flags, count = sum(page[1:2]), sum(page[22:23])
    is_whole = len(page) >= 23 + count + sum(page[23 : 23 + count])
    return None if is_whole and flags & _OGG_LAST else "its last page is missing (truncated?)"


_CHECKS: dict[str, Callable[[BinaryIO, int], str | None]] = {
    "mpegts": _check_transport_stream,
    "asf": _check_asf,
    "ogg": _check_ogg,
}
