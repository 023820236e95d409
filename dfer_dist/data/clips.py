"""One clip out of a shard: enter the tar at the clip's offset, read the sampled frames only, check every byte that is used."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg

from dfer_dist.data.shards import BLOCK, Index
from dfer_dist.data.store import FetchError, Remote

_OPEN = 128  # shards kept open: well below the usual limit of 1024 files a process
_TABLES = 512  # sidecars kept in memory, some 100 kB each
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError, tarfile.TarError)  # what reading altered bytes raises
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


class ClipReader:
    """Random access to the clips of an index; keeps the shards it used last open."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._tables: dict[int, pa.Table] = {}  # both in order of use, oldest first
        self._files: dict[int, int] = {}

    def key(self, shard: int, row: int) -> str:
        return self._table(shard)["key"][row].as_py()

    def label(self, shard: int, row: int) -> int:
        return self._table(shard)["label"][row].as_py()

    def read(self, shard: int, row: int, choose: Callable[[str, int], np.ndarray], room: np.ndarray | None = None) -> Clip:
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
        clip = self._table(shard).slice(row, 1).to_pylist()[0]
        wanted = choose(clip["key"], clip["frames"]).tolist()
        try:
            return Clip(clip["key"], clip["label"], _decode(wanted, self._jpegs(shard, clip, wanted), room))
        except _DAMAGE as e:
            self._distrust(shard, e)
            raise DamagedClip(self.index.shards[shard].file, clip["key"], str(e)) from e

    def jpegs(self, shard: int, row: int, choose: Callable[[str, int], np.ndarray]) -> list[bytes]:
        """The frames of one clip as they were packed; parameters and errors as for :meth:`read`."""
        clip = self._table(shard).slice(row, 1).to_pylist()[0]
        wanted = choose(clip["key"], clip["frames"]).tolist()
        try:
            found = self._jpegs(shard, clip, wanted)
        except _DAMAGE as e:
            raise DamagedClip(self.index.shards[shard].file, clip["key"], str(e)) from e
        return [found[f] for f in wanted]

    def check(self, shard: int, row: int) -> None:
        """Hold every frame of a clip against its CRC32 and its JSON member against the sidecar, without decoding.

        Raises
        ------
        DamagedClip
            As :meth:`read`.
        """
        clip = self._table(shard).slice(row, 1).to_pylist()[0]
        try:
            starts, base = self._enter(shard, clip)
            for frame, crc in enumerate(clip["crc32"]):
                self._frame(shard, base, starts, frame, crc)
        except _DAMAGE as e:
            raise DamagedClip(self.index.shards[shard].file, clip["key"], str(e)) from e

    def _enter(self, shard: int, clip: dict[str, Any]) -> tuple[list[int], int]:
        """Byte starts of the clip's frames, and where its ``.mjpg`` member begins in the tar."""
        key, offset, size = clip["key"], clip["offset"], clip["size"]
        file = self._file(shard)
        head = os.pread(file, min(_HEAD, size), offset)
        info = _member(head[:BLOCK], f"{key}.json")
        start = BLOCK + -(-info.size // BLOCK) * BLOCK  # of the next header, within the clip
        if start + BLOCK > len(head):
            head = os.pread(file, min(start + BLOCK, size), offset)
        meta = json.loads(head[BLOCK : BLOCK + info.size])
        video = _member(head[start : start + BLOCK], f"{key}.mjpg")
        if (meta["key"], meta["label"], meta["frames"]) != (key, clip["label"], clip["frames"]):
            raise ValueError("its JSON member disagrees with the sidecar")
        starts = meta["offsets"]
        if len(starts) != clip["frames"] + 1 or starts != sorted(starts) or (starts[0], starts[-1]) != (0, video.size):
            raise ValueError("its JSON member has wrong frame offsets")
        return starts, offset + start + BLOCK

    def _jpegs(self, shard: int, clip: dict[str, Any], wanted: list[int]) -> dict[int, bytes]:
        """Checked bytes by frame number, each read once."""
        starts, base = self._enter(shard, clip)
        return {f: self._frame(shard, base, starts, f, clip["crc32"][f]) for f in dict.fromkeys(wanted)}

    def _frame(self, shard: int, base: int, starts: list[int], frame: int, crc: int) -> bytes:
        data = os.pread(self._file(shard), starts[frame + 1] - starts[frame], base + starts[frame])
        if zlib.crc32(data) != crc:
            raise ValueError(f"frame {frame} has another CRC32 than when it was packed")
        return data

    def _table(self, shard: int) -> pa.Table:
        table = self._tables.pop(shard, None)
        if table is None:
            if len(self._tables) >= _TABLES:
                del self._tables[next(iter(self._tables))]
            table = self.index.sidecar(shard)
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
                os.close(self._files.pop(gone))  # evicted: the cache's bound holds once nobody has it open
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


def _decode(wanted: list[int], jpegs: dict[int, bytes], room: np.ndarray | None) -> np.ndarray:
    """uint8 [T, H, W, 3], in ``room`` if the first frame is of its size. ValueError if the frames differ in size."""
    size = (*simplejpeg.decode_jpeg_header(jpegs[wanted[0]])[:2], 3)
    out = room if room is not None and room.shape[1:] == size else np.empty((len(wanted), *size), np.uint8)
    done: dict[int, int] = {}
    for place, frame in enumerate(wanted):
        if frame in done:
            out[place] = out[done[frame]]
            continue
        done[frame] = place
        if simplejpeg.decode_jpeg(jpegs[frame], fastdct=False, fastupsample=False, buffer=out[place]).shape != size:
            raise ValueError(f"frame {frame} has another size than frame {wanted[0]}")
    return out


def _member(header: bytes, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")  # checks the header's checksum
    if info.name != name or not info.isreg():
        raise ValueError(f"found member '{info.name}' where '{name}' should be")
    return info
