"""One clip out of a shard: enter the tar at the clip's offset, read the sampled frames only, check every byte that is used."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg

from dfer_dist.data.shards.index import BLOCK, Index
from dfer_dist.data.shards.store import FetchError, Remote

_OPEN = 128  # shards kept open: well below the usual limit of 1024 files a process
_TABLES = 512  # sidecars kept in memory, some 100 kB each
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RecursionError,
)  # what reading altered bytes raises
_HEAD = 8192  # bytes read first: a clip's JSON member and the header of its frames, for up to about 700 frames


class DamagedClip(Exception):
    """A clip whose bytes are not what was packed; names the shard, the key and what is wrong."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(f"shard {shard}, clip {key}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.shard, self.key, self.reason)  # it crosses from loader workers


@dataclass(frozen=True)
class Clip:
    """A clip's sampled frames, uint8 [T, H, W, 3], with its key and label."""

    key: str
    label: int
    frames: np.ndarray


class _Row(NamedTuple):
    """What the sidecar says of a clip; ``offset`` and ``size`` in bytes, of its blocks in the tar."""

    key: str
    label: int
    offset: int
    size: int
    frames: int
    crc32: list[int]


class ClipHandle(NamedTuple):
    """A clip that :meth:`ClipReader.find` has entered, and the frames of it that are wanted."""

    shard: int
    clip: _Row
    wanted: list[int]
    starts: list[int]  # of each frame in the clip's video, and its end, bytes
    base: int  # of that video in the tar


class _Rows:
    """A sidecar as lists, which hand out a row in a tenth of a table's time."""

    def __init__(self, table: pa.Table) -> None:
        columns = (table[name].to_pylist() for name in ("key", "label", "offset", "size", "frames"))
        self.keys, self.labels, self.offsets, self.sizes, self.frames = columns
        crcs = table["crc32"].combine_chunks()
        self.crcs, self.ends = crcs.values.to_numpy(), crcs.offsets.to_numpy()

    def row(self, row: int) -> _Row:
        crc32 = self.crcs[self.ends[row] : self.ends[row + 1]].tolist()
        return _Row(
            self.keys[row],
            self.labels[row],
            self.offsets[row],
            self.sizes[row],
            self.frames[row],
            crc32,
        )


class ClipReader:
    """Random access to the clips of an index; keeps the shards it used last open."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._tables: dict[int, _Rows] = {}  # both in order of use, oldest first
        self._files: dict[int, int] = {}
        self._bytes = bytearray(
            1 << 16
        )  # of the frame in hand: the same memory for all stays in the processor's cache

    def key(self, shard: int, row: int) -> str:
        return self._table(shard).keys[row]

    def label(self, shard: int, row: int) -> int:
        return self._table(shard).labels[row]

    def read(
        self,
        shard: int,
        row: int,
        choose: Callable[[str, int], np.ndarray],
        buffer: np.ndarray | None = None,
    ) -> Clip:
        """Read and decode one clip.

        Parameters
        ----------
        shard, row : int
            Which clip.
        choose : callable
            Given the key and the number of frames, the frames wanted, an integer array; a frame may come twice.
        room : uint8 array [T, H, W, 3], optional
            Where to decode to, if the frames are of this size; whether they were is seen by ``clip.frames is room``.

        Raises
        ------
        DamagedClip
            If a header, the JSON member or a frame differs from what the checked sidecar says, or the frames wanted differ
            in size.
        """
        return self.decode(self.find(shard, row, choose), buffer)

    def find(self, shard: int, row: int, choose: Callable[[str, int], np.ndarray]) -> ClipHandle:
        """The first half of :meth:`read`: a clip's headers are read and checked, none of its frames."""
        clip = self._table(shard).row(row)
        try:
            starts, base = self._enter(shard, clip)
        except _DAMAGE as e:
            raise self._damaged(shard, clip, e) from e
        return ClipHandle(shard, clip, choose(clip.key, clip.frames).tolist(), starts, base)

    def decode(self, found: ClipHandle, buffer: np.ndarray | None = None) -> Clip:
        """The second half of :meth:`read`."""
        try:
            frames = _decode(found.wanted, self._frames(found, dict.fromkeys(found.wanted)), buffer)
        except _DAMAGE as e:
            raise self._damaged(found.shard, found.clip, e) from e
        return Clip(found.clip.key, found.clip.label, frames)

    def _damaged(self, shard: int, clip: _Row, fault: BaseException) -> DamagedClip:
        self._distrust(shard, fault)
        return DamagedClip(self.index.shards[shard].file, clip.key, str(fault))

    def jpegs(
        self, shard: int, row: int, choose: Callable[[str, int], np.ndarray] | None = None
    ) -> list[bytes]:
        """Frames of one clip as they were packed: those that ``choose`` wants, or all. Arguments and errors as for :meth:`read`."""
        found = self.find(shard, row, choose or (lambda _, count: np.arange(count)))
        try:
            return [bytes(data) for _, data in self._frames(found, found.wanted)]
        except _DAMAGE as e:
            raise self._damaged(shard, found.clip, e) from e

    def check(self, shard: int, row: int) -> None:
        """Hold every frame of a clip against its CRC32 and its JSON member against the sidecar, without decoding.

        Raises
        ------
        DamagedClip
            As :meth:`read`.
        """
        self.jpegs(shard, row)

    def _enter(self, shard: int, clip: _Row) -> tuple[list[int], int]:
        """Byte starts of the clip's frames, and where its ``.mjpg`` member begins in the tar."""
        file = self._file(shard)
        head = os.pread(file, min(_HEAD, clip.size), clip.offset)
        size = _member(head[:BLOCK], f"{clip.key}.json")
        start = BLOCK + -(-size // BLOCK) * BLOCK  # of the next header, within the clip
        if start + BLOCK > len(head):
            head = os.pread(file, min(start + BLOCK, clip.size), clip.offset)
        meta = json.loads(head[BLOCK : BLOCK + size])
        if (meta["key"], meta["label"], meta["frames"]) != (clip.key, clip.label, clip.frames):
            raise ValueError("its JSON member disagrees with the sidecar")
        starts, size = meta["offsets"], _member(head[start : start + BLOCK], f"{clip.key}.mjpg")
        if (
            len(starts) != clip.frames + 1
            or starts != sorted(starts)
            or (starts[0], starts[-1]) != (0, size)
        ):
            raise ValueError("its JSON member has wrong frame offsets")
        return starts, clip.offset + start + BLOCK

    def _frames(self, found: ClipHandle, wanted: Iterable[int]) -> Iterator[tuple[int, memoryview]]:
        """Frame numbers with their checked bytes, which hold until the next is asked for."""
        starts, base, crcs, file = (
            found.starts,
            found.base,
            found.clip.crc32,
            self._file(found.shard),
        )
        for frame in wanted:
            size = starts[frame + 1] - starts[frame]
            if size > len(self._bytes):
                self._bytes = bytearray(size)
            data = memoryview(self._bytes)[:size]
            if (
                os.preadv(file, [data], base + starts[frame]) != size
                or zlib.crc32(data) != crcs[frame]
            ):
                raise ValueError(f"frame {frame} has another CRC32 than when it was packed")
            yield frame, data

    def _table(self, shard: int) -> _Rows:
        table = self._tables.pop(shard, None)
        if table is None:
            if len(self._tables) >= _TABLES:
                del self._tables[next(iter(self._tables))]
            table = _Rows(self.index.sidecar(shard))
        self._tables[shard] = table
        return table

    def _file(self, shard: int) -> int:
        file = self._files.pop(shard, None)
        if file is None:
            if len(self._files) >= _OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            file = self._open(shard)
        self._files[shard] = file
        return file

    def _open(self, shard: int) -> int:
        root, entry = self.index.root, self.index.shards[shard]
        if isinstance(root, Remote):
            for gone in [s for s, file in self._files.items() if not os.fstat(file).st_nlink]:
                os.close(
                    self._files.pop(gone)
                )  # evicted: the cache's bound holds once nobody has it open
            return root.open(entry.file, entry.sha256, entry.bytes)
        from webdataset.gopen import gopen  # it imports torch, which dfer verify must not wait for

        # webdataset's opener, so that what it can open is found by the same name here; absolute, so that a folder's
        # name is never taken for a URL's scheme or a command
        with gopen(str(self.index.path(shard).absolute()), "rb") as stream:
            return os.dup(stream.fileno())

    def _distrust(self, shard: int, fault: BaseException) -> None:
        """A shard that was whole when it came into the cache and is not now: have it fetched again when it is next opened."""
        root = self.index.root
        if isinstance(root, Remote) and not isinstance(fault, FetchError) and shard in self._files:
            os.close(self._files.pop(shard))
            root.cache.drop(f"{self.index.shards[shard].sha256}.tar")

    def __reduce__(self) -> tuple[type, tuple[Index]]:
        return type(self), (self.index,)  # another process opens its own files

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


def _decode(
    wanted: list[int], jpegs: Iterable[tuple[int, memoryview]], buffer: np.ndarray | None
) -> np.ndarray:
    """uint8 [T, H, W, 3], in ``buffer`` if the frames are of its size. ValueError if they differ in size."""
    out, places = buffer, dict[int, int]()
    for frame, data in jpegs:
        if not places:
            size = (*simplejpeg.decode_jpeg_header(data)[:2], 3)
        if out is None or (not places and out.shape[1:] != size):
            out = np.empty((len(wanted), *size), np.uint8)
        places[frame] = place = wanted.index(frame)
        if (
            simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, buffer=out[place]).shape
            != size
        ):
            raise ValueError(f"frame {frame} has another size than frame {wanted[0]}")
    assert out is not None, "some frame is wanted"
    if len(places) < len(wanted):
        out[:] = out[[places[frame] for frame in wanted]]
    return out


def _member(header: bytes, name: str) -> int:
    """Size of the member ``name`` by its tar header. ValueError if the header is another's or damaged.

    What POSIX calls ustar, for plain files with names of up to 100 bytes: all that a packer writes. ``tarfile`` reads a
    header too, in three times the time.
    """
    sum_of_bytes = (
        sum(header) - sum(header[148:156]) + 8 * 32
    )  # with the checksum itself taken for spaces
    if len(header) != BLOCK or sum_of_bytes != int(header[148:156].rstrip(b"\0 "), 8):
        raise ValueError(f"the header of member '{name}' is damaged")
    found, kind, prefix = header[:100].rstrip(b"\0"), header[156:157], header[345]
    if found != name.encode() or kind not in (b"0", b"\0") or prefix:
        raise ValueError(
            f"found member '{found.decode(errors='replace')}' where '{name}' should be"
        )
    return int(header[124:136].rstrip(b"\0 "), 8)
