"""Reading one clip of a shard.

A reader enters the tar at the clip's offset, reads only the sampled frames and checks every byte
that is used.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg

from dfer_dist.data.shards.index import BLOCK, Index, to_numpy
from dfer_dist.data.shards.store import FetchError, Remote

_MAX_OPEN = 128  # shards kept open: well below the usual limit of 1024 files a process
_MAX_TABLES = 512  # sidecars kept in memory, some 100 kB each
# Bytes read first: a clip's JSON member and the header of its frames, for up to about 700 frames.
_HEAD = 8192
# raised by reading altered bytes
_DAMAGE = (OSError, ValueError, LookupError, TypeError, RecursionError)

# Given a clip's key and number of frames, the frames that are wanted, an integer array; a frame may
# come twice.
FrameChooser = Callable[[str, int], np.ndarray]


class DamagedClip(Exception):
    """A clip whose bytes are not what was packed.

    Names the shard, the clip's key and the reason.
    """

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(f"shard {shard}, clip {key}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # loader workers send it
        return type(self), (self.shard, self.key, self.reason)


@dataclass(frozen=True)
class Clip:
    """A clip's sampled frames, uint8 [T, H, W, 3], with its key and label."""

    key: str
    label: int
    frames: np.ndarray


class _Row(NamedTuple):
    """A clip's row of the sidecar; ``offset`` and ``size`` are those of its tar blocks, bytes."""

    key: str
    label: int
    offset: int
    size: int
    frames: int
    crc32: np.ndarray


class ClipHandle(NamedTuple):
    """A clip that :meth:`ClipReader.find` has found, and the frames of it that are wanted."""

    shard: int
    row: _Row
    wanted: list[int]
    starts: list[int]  # of each frame in the clip's video, and the video's end, bytes
    base: int  # of the video in the tar, bytes


def _make_rows(table: pa.Table) -> list[_Row]:
    """Return a sidecar as a list, whose rows are read in a tenth of the time of a table's."""
    crcs = table["crc32"].combine_chunks()
    of_clips = np.split(to_numpy(crcs.values), to_numpy(crcs.offsets)[1:-1])
    columns = table.select(["key", "label", "offset", "size", "frames"]).to_pydict().values()
    return list(map(_Row, *columns, of_clips))


class ClipReader:
    """Random access to the clips of an index; keeps the shards that it used last open."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._rows = lru_cache(_MAX_TABLES)(lambda shard: _make_rows(index.sidecar(shard)))
        # least recently used first
        self._files: dict[int, int] = {}
        # of one JPEG: the same memory for all of them stays in the processor's cache
        self._jpeg = bytearray(1 << 16)

    def key(self, shard: int, row: int) -> str:
        """Return a clip's key; ``SET/KEY`` of several sets."""
        return self.index.clip_name(shard, self._rows(shard)[row].key)

    def label(self, shard: int, row: int) -> int:
        """Return a clip's label."""
        return self._rows(shard)[row].label

    def read(
        self, shard: int, row: int, choose: FrameChooser, buffer: np.ndarray | None = None
    ) -> Clip:
        """Read and decode one clip.

        Parameters
        ----------
        shard, row : int
            Which clip.
        choose : callable
            Given the key and the number of frames, returns the wanted ones, an integer array; a
            frame may come twice.
        buffer : uint8 array [T, H, W, 3], optional
            Where to decode to if the frames have this size; ``clip.frames is buffer`` tells whether
            they had.

        Raises
        ------
        DamagedClip
            If a header, the JSON member or a frame differs from the checked sidecar, or the wanted
            frames differ in size.
        """
        return self.decode(self.find(shard, row, choose), buffer)

    def find(self, shard: int, row: int, choose: FrameChooser) -> ClipHandle:
        """Do the first half of :meth:`read`: read and check a clip's headers, but no frame."""
        entry = self._rows(shard)[row]
        with self._name_damaged(shard, entry):
            starts, base = self._read_headers(shard, entry)
        return ClipHandle(shard, entry, choose(entry.key, entry.frames).tolist(), starts, base)

    def decode(self, clip: ClipHandle, buffer: np.ndarray | None = None) -> Clip:
        """Do the second half of :meth:`read`."""
        with self._name_damaged(clip.shard, clip.row):
            frames = _decode(clip.wanted, self._frames(clip, dict.fromkeys(clip.wanted)), buffer)
        return Clip(clip.row.key, clip.row.label, frames)

    def jpegs(self, shard: int, row: int, choose: FrameChooser | None = None) -> list[bytes]:
        """Return frames of a clip as they were packed: those that ``choose`` wants, or all.

        Arguments and errors are those of :meth:`read`.
        """
        return list(self.iterate_jpegs(shard, row, choose))

    def iterate_jpegs(
        self, shard: int, row: int, choose: FrameChooser | None = None
    ) -> Iterator[bytes]:
        """Yield what :meth:`jpegs` returns, one frame in memory at a time."""
        clip = self.find(shard, row, choose or (lambda _, count: np.arange(count)))
        with self._name_damaged(shard, clip.row):
            for _, data in self._frames(clip, clip.wanted):
                yield bytes(data)

    def _read_headers(self, shard: int, row: _Row) -> tuple[list[int], int]:
        """Return where frames start in the ``.mjpg`` member, and its data in the tar, bytes."""
        file = self._file(shard)
        head = os.pread(file, min(_HEAD, row.size), row.offset)
        size = _member_size(head[:BLOCK], f"{row.key}.json")
        # of the next header, within the clip
        start = BLOCK + -(-size // BLOCK) * BLOCK
        if start + BLOCK > len(head):
            head = os.pread(file, min(start + BLOCK, row.size), row.offset)
        meta = json.loads(head[BLOCK : BLOCK + size])
        label = self.index.label(shard, meta["label"])
        if (meta["key"], label, meta["frames"]) != (row.key, row.label, row.frames):
            raise ValueError("its JSON member disagrees with the sidecar")
        starts = meta["offsets"]
        size = _member_size(head[start : start + BLOCK], f"{row.key}.mjpg")
        ascending = len(starts) == row.frames + 1 and starts == sorted(starts)
        if not ascending or (starts[0], starts[-1]) != (0, size):
            raise ValueError("its JSON member has wrong frame offsets")
        return starts, row.offset + start + BLOCK

    def _frames(self, clip: ClipHandle, wanted: Iterable[int]) -> Iterator[tuple[int, memoryview]]:
        """Yield frame numbers with their checked bytes, which are valid until the next frame."""
        starts, crcs, file = clip.starts, clip.row.crc32, self._file(clip.shard)
        for frame in wanted:
            size = starts[frame + 1] - starts[frame]
            if size > len(self._jpeg):
                self._jpeg = bytearray(size)
            data = memoryview(self._jpeg)[:size]
            read = os.preadv(file, [data], clip.base + starts[frame])
            if read != size or zlib.crc32(data) != crcs[frame]:
                raise ValueError(f"frame {frame} has another CRC32 than when it was packed")
            yield frame, data

    def _file(self, shard: int) -> int:
        file = self._files.pop(shard, None)
        if file is None:
            if len(self._files) >= _MAX_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            file = self._open(shard)
        self._files[shard] = file
        return file

    def _open(self, shard: int) -> int:
        root, entry = self.index.store(shard), self.index.shards[shard]
        if isinstance(root, Remote):
            # close evicted files: the cache's limit holds once no process has them open
            for gone in [s for s, file in self._files.items() if not os.fstat(file).st_nlink]:
                os.close(self._files.pop(gone))
            return root.open(entry.file, entry.sha256, entry.bytes)
        from dfer_dist.data.shards.webdataset_files import gopen

        # webdataset's opener, so that names mean the same here; an absolute path, so that the name
        # of a folder is never taken for the scheme of a URL or for a command
        with gopen(str(self.index.path(shard).absolute()), "rb") as stream:
            return os.dup(stream.fileno())

    @contextmanager
    def _name_damaged(self, shard: int, row: _Row) -> Iterator[None]:
        """Turn errors of altered bytes into a DamagedClip, and drop the shard from the cache.

        It was intact when it came into the cache, and is fetched again when it is next opened.
        """
        try:
            yield
        except _DAMAGE as e:
            root, entry = self.index.store(shard), self.index.shards[shard]
            fetched = not isinstance(e, FetchError) and shard in self._files
            if isinstance(root, Remote) and fetched:
                os.close(self._files.pop(shard))
                root.cache.drop(f"{entry.sha256}.tar")
            raise DamagedClip(self.index.shard_name(shard), row.key, str(e)) from e

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


def _decode(
    wanted: list[int], jpegs: Iterable[tuple[int, memoryview]], buffer: np.ndarray | None
) -> np.ndarray:
    """Return uint8 [T, H, W, 3], in ``buffer`` if the frames have its size.

    ValueError if they differ in size.
    """
    out, positions = buffer, dict[int, int]()
    for frame, data in jpegs:
        if not positions:
            size = (*simplejpeg.decode_jpeg_header(data)[:2], 3)
            if out is None or out.shape[1:] != size:
                out = np.empty((len(wanted), *size), np.uint8)
        assert out is not None
        positions[frame] = wanted.index(frame)
        target = out[positions[frame]]
        decoded = simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, buffer=target)
        if decoded.shape != size:
            raise ValueError(f"frame {frame} has another size than frame {wanted[0]}")
    assert out is not None, "at least one frame is wanted"
    if len(positions) < len(wanted):
        out[:] = out[[positions[frame] for frame in wanted]]
    return out


def _member_size(header: bytes, name: str) -> int:
    """Return the size of the member ``name`` by its tar header.

    ValueError if the header is another member's or damaged. Reads what POSIX calls ustar, for plain
    files with names of up to 100 bytes, and GNU's sizes over 8 GiB: all that a packer writes.
    ``tarfile`` takes three times as long.
    """
    # the checksum counts its own field as spaces
    checksum = sum(header) - sum(header[148:156]) + 8 * 32
    if len(header) != BLOCK or checksum != int(header[148:156].rstrip(b"\0 "), 8):
        raise ValueError(f"the header of member '{name}' is damaged")
    found, kind, prefix = header[:100].rstrip(b"\0"), header[156:157], header[345]
    if found != name.encode() or kind not in (b"0", b"\0") or prefix:
        actual = found.decode(errors="replace")
        raise ValueError(f"found member '{actual}' where '{name}' should be")
    if header[124] == 0o200:
        return int.from_bytes(header[125:136], "big")
    return int(header[124:136].rstrip(b"\0 "), 8)
