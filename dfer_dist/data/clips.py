"""One clip out of a shard: enter the tar at the clip's offset, read the sampled frames only, check every byte that is used."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from webdataset.gopen import gopen

from dfer_dist.data.shards import BLOCK, Index

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
    """A clip's sampled frames, each a uint8 array [H, W, 3], with its key and label."""

    key: str
    label: int
    frames: list[np.ndarray]


class ClipReader:
    """Random access to the clips of an index; keeps shards open. One per process: file positions are not shared."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._tables: dict[int, dict[str, list]] = {}
        self._files: dict[int, int] = {}

    def key(self, shard: int, row: int) -> str:
        return self._table(shard)["key"][row]

    def label(self, shard: int, row: int) -> int:
        return self._table(shard)["label"][row]

    def read(self, shard: int, row: int, choose: Callable[[str, int], np.ndarray]) -> Clip:
        """Read and decode one clip.

        Parameters
        ----------
        shard, row : int
            Which clip.
        choose : callable
            Given the key and the number of frames, the frames wanted, an integer array; a frame may come twice.

        Raises
        ------
        DamagedClip
            If a header, the JSON member or a frame differs from what the checked sidecar says.
        """
        table = self._table(shard)
        key, label, count = table["key"][row], table["label"][row], table["frames"][row]
        try:
            starts, base = self._enter(shard, table, row)
            wanted = choose(key, count)
            decoded = {int(f): self._frame(shard, base, starts, int(f), table["crc32"][row][int(f)]) for f in np.unique(wanted)}
        except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as e:
            raise DamagedClip(self.index.shards[shard].file, key, str(e)) from e
        return Clip(key, label, [decoded[int(f)] for f in wanted])

    def _enter(self, shard: int, table: dict[str, list], row: int) -> tuple[list[int], int]:
        """Byte starts of the clip's frames, and where its ``.mjpg`` member begins in the tar."""
        key, offset, size = table["key"][row], table["offset"][row], table["size"][row]
        file = self._file(shard)
        head = os.pread(file, min(_HEAD, size), offset)
        info = _member(head[:BLOCK], f"{key}.json")
        start = BLOCK + -(-info.size // BLOCK) * BLOCK  # of the next header, within the clip
        if start + BLOCK > len(head):
            head = os.pread(file, min(start + BLOCK, size), offset)
        meta = json.loads(head[BLOCK : BLOCK + info.size])
        _member(head[start : start + BLOCK], f"{key}.mjpg")
        if (meta["key"], meta["label"], meta["frames"]) != (key, table["label"][row], table["frames"][row]):
            raise ValueError("its JSON member disagrees with the sidecar")
        if len(meta["offsets"]) != meta["frames"] + 1:
            raise ValueError("its JSON member has a wrong number of frame offsets")
        return meta["offsets"], offset + start + BLOCK

    def _frame(self, shard: int, base: int, starts: list[int], frame: int, crc: int) -> np.ndarray:
        data = os.pread(self._file(shard), starts[frame + 1] - starts[frame], base + starts[frame])
        if zlib.crc32(data) != crc:
            raise ValueError(f"frame {frame} has another CRC32 than when it was packed")
        return simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False)

    def _table(self, shard: int) -> dict[str, list]:
        if shard not in self._tables:
            self._tables[shard] = self.index.sidecar(shard).to_pydict()
        return self._tables[shard]

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            # webdataset's opener, so that what it can open is found by the same name here
            with gopen(str(self.index.path(shard)), "rb") as stream:
                self._files[shard] = os.dup(stream.fileno())
        return self._files[shard]

    def __getstate__(self) -> dict[str, object]:
        return {"index": self.index, "_tables": {}, "_files": {}}  # a worker opens its own files

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


def _member(header: bytes, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")  # checks the header's checksum
    if info.name != name or not info.isreg():
        raise ValueError(f"found member '{info.name}' where '{name}' should be")
    return info
