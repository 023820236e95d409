"""Shards on disk: plain WebDataset tars with a parquet sidecar each, and one ``index.json`` over all of them.

A clip is two members, ``KEY.json`` (what it is, and where each frame starts) and ``KEY.mjpg`` (its frames as concatenated
JPEGs, which ffmpeg plays). A shard belongs to one split, so folds share the files and nothing is stored twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist import UserError
from dfer_dist.rundir import read_json

BLOCK = 512  # a tar's unit, bytes: a header is one block, data is padded to whole blocks

SIDECAR = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("offset", pa.int64()),  # of the clip's first tar header, bytes
        ("size", pa.int64()),  # of the clip's tar blocks, bytes
        ("frames", pa.int32()),
        ("crc32", pa.list_(pa.uint32())),  # of each frame's JPEG bytes
    ]
)


@dataclass(frozen=True)
class Shard:
    """One line of the index. ``histogram`` counts clips by label; hashes are hex sha256."""

    file: str
    split: str
    clips: int
    bytes: int
    histogram: tuple[int, ...]
    sha256: str
    sidecar_sha256: str


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says: the set's name, its classes in label order, its shards, and a hash over all of it."""

    root: Path
    name: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    hash: str

    @cached_property
    def splits(self) -> list[str]:
        return sorted({s.split for s in self.shards})

    @cached_property
    def folds(self) -> list[int]:
        """Folds of a cross-validation: 1 to K, or just 1 for a set with one training and one test split."""
        return list(range(1, len(self.splits) + 1)) if "fold1" in self.splits else [1]

    def test_shards(self, fold: int) -> list[int]:
        """Positions in ``shards`` of what fold ``fold`` is tested on."""
        name = f"fold{fold}" if "fold1" in self.splits else "test"
        return [i for i, s in enumerate(self.shards) if s.split == name]

    def train_shards(self, fold: int) -> list[int]:
        """Positions in ``shards`` of what fold ``fold`` is trained on: everything else."""
        test = set(self.test_shards(fold))
        return [i for i in range(len(self.shards)) if i not in test]

    def path(self, shard: int) -> Path:
        return self.root / self.shards[shard].file

    def sidecar(self, shard: int) -> pa.Table:
        """The shard's table, a row a clip, checked against its hash.

        Raises
        ------
        UserError
            If the sidecar is missing or was changed.
        """
        path = sidecar_path(self.path(shard))
        if not path.is_file():
            raise UserError(f"{path} is missing: copy it again or pack again")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.shards[shard].sidecar_sha256:
            raise UserError(f"{path} differs from the index (sha256): copy it again or pack again")
        return pq.read_table(pa.BufferReader(data), schema=SIDECAR)


def sidecar_path(tar: Path) -> Path:
    return tar.with_suffix(".parquet")


def read_index(root: Path) -> Index:
    """Open a folder of shards.

    Raises
    ------
    UserError
        If there is no index, it was changed, or a shard is missing or has another size.
    """
    file = root / "index.json"
    if not file.is_file():
        raise UserError(f"{root} holds no index.json: pack a data set there with dfer pack, or give data.shards=FOLDER")
    raw = read_json(file)
    try:
        shards = tuple(Shard(**{**s, "histogram": tuple(s["histogram"])}) for s in raw["shards"])
        index = Index(root, raw["name"], tuple(raw["classes"]), shards, raw["hash"])
    except (KeyError, TypeError) as e:
        raise UserError(f"{file} is not an index of this program: {e}") from e
    if content_hash(index.name, index.classes, shards) != index.hash:
        raise UserError(f"{file} was changed: its hash does not match its content")
    for i, shard in enumerate(shards):
        path = index.path(i)
        size = path.stat().st_size if path.is_file() else -1
        if size != shard.bytes:
            raise UserError(f"{path} {'is missing' if size < 0 else f'has {size} bytes, not {shard.bytes}'}: copy it again")
    return index


def content_hash(name: str, classes: Sequence[str], shards: Sequence[Shard]) -> str:
    """The hash of a whole set, hex sha256: over its name, classes and every shard's line."""
    body = json.dumps([name, list(classes), [asdict(s) for s in shards]], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()
