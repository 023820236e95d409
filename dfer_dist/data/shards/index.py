"""Shards: plain WebDataset tars with a parquet sidecar each, and one ``index.json`` over all of them.

A clip is two members, ``KEY.json`` (what it is, and where each frame starts) and ``KEY.mjpg`` (its frames as concatenated
JPEGs, which ffmpeg plays). A shard belongs to one split, so folds share the files and nothing is stored twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.shards.store import FetchError, Remote, open_store
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import parse_json

KEY = r"^[A-Za-z0-9_-]+$"  # of a clip: no dot, which ends a key for webdataset, and nothing that makes a path
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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
    """What ``index.json`` says: the set's name, its classes in label order, its shards, and a hash over all of it.

    ``root`` is the folder it lies in, or the server.
    """

    root: Path | Remote
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
        """A shard's file, of a set in a local folder."""
        assert isinstance(self.root, Path)
        return self.root / self.shards[shard].file

    def sidecar(self, shard: int) -> pa.Table:
        """The shard's table, a row a clip, checked against its hash.

        Raises
        ------
        UserError
            If the sidecar is missing, was changed, or cannot be that of this shard.
        """
        entry = self.shards[shard]
        name = str(sidecar_path(Path(entry.file)))
        if isinstance(self.root, Remote):
            try:
                data = self.root.read(name, entry.sidecar_sha256)
            except FetchError as e:
                raise UserError(str(e)) from e
        else:
            try:
                data = (self.root / name).read_bytes()
            except FileNotFoundError as e:
                raise UserError(
                    f"{self.root / name} is missing: copy it again or pack again"
                ) from e
            if hashlib.sha256(data).hexdigest() != entry.sidecar_sha256:
                raise UserError(
                    f"{self.root / name} differs from the index (sha256): copy it again or pack again"
                )
        try:
            # in this thread, and without pyarrow.dataset, which every loader worker would import: arrow's own threads and a fork do not mix
            table = (
                pq.ParquetFile(pa.BufferReader(data))
                .read(SIDECAR.names, use_threads=False)
                .cast(SIDECAR)
            )
        except (pa.ArrowException, ValueError, OSError) as e:
            raise UserError(f"{self.root}/{name} is no sidecar: {' '.join(str(e).split())}") from e
        self._check_made_by_a_packer(shard, table)
        return table

    def _check_made_by_a_packer(self, shard: int, table: pa.Table) -> None:
        """An index made by hand may have the right hashes of nonsense: keys that are paths, labels of no class."""
        entry, labels = self.shards[shard], table["label"].to_numpy()
        histogram = (
            np.bincount(labels, minlength=len(self.classes)).tolist()
            if not (labels < 0).any()
            else None
        )
        plain = pc.all(pc.match_substring_regex(table["key"], KEY)).as_py()
        if not plain or histogram != list(entry.histogram) or table.num_rows != entry.clips:
            raise UserError(
                f"{self.root}/{entry.file}: its sidecar has keys or labels that no packer writes"
            )


def sidecar_path(tar: Path) -> Path:
    return tar.with_suffix(".parquet")


def open_index(data: DataConfig, loss_budget: int = 0) -> Index:
    """The set that ``data.shards`` names, in a folder or at a server.

    Raises
    ------
    UserError
        As :func:`read_index`, and if the URL is none that is read or the server cannot be reached.
    """
    return read_index(open_store(data.shards, data.cache, data.cache_gb), loss_budget)


def read_index(root: Path | Remote, loss_budget: int = 0) -> Index:
    """Open a set of shards. Those of a server are looked at when they are fetched, those of a folder now.

    Raises
    ------
    UserError
        If there is no index, it was changed, or more than ``loss_budget`` clips lie in shards that are missing or have
        another size.
    """
    index = load_index(root)
    check_sizes(index, range(len(index.shards)), loss_budget)
    return index


class DamagedIndex(UserError):
    """An index that was changed, or is none of this program."""


def load_index(root: Path | Remote) -> Index:
    """The index alone: no shard is looked at.

    Raises
    ------
    UserError
        If there is none, or the server cannot be reached.
    DamagedIndex
        If it was changed or cannot be read.
    """
    file = f"{root}/index.json"
    try:
        text = root.get("index.json") if isinstance(root, Remote) else Path(file).read_bytes()
    except FetchError as e:
        raise UserError(str(e)) from e
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(
            f"{root} holds no index.json: pack a data set there with dfer pack, or give data.shards=FOLDER"
        ) from e
    try:
        raw = parse_json(text, file)
        shards = tuple(Shard(**{**s, "histogram": tuple(s["histogram"])}) for s in raw["shards"])
        index = Index(root, raw["name"], tuple(raw["classes"]), shards, raw["hash"])
        whole = content_hash(index.name, index.classes, shards) == index.hash
        odd = [s.file for s in shards if not _is_plain(s)]
    except (KeyError, TypeError) as e:
        raise DamagedIndex(f"{file} is not an index of this program: {e}") from e
    except UserError as e:
        raise DamagedIndex(str(e)) from e
    if not whole:
        raise DamagedIndex(f"{file} was changed: its hash does not match its content")
    if odd:
        raise DamagedIndex(f"{file} describes a shard '{odd[0]}' as no packer does")
    return index


def _is_plain(shard: Shard) -> bool:
    """Whether a line of the index is safe to act on: files are opened and caches filled by its names."""
    hashes = (shard.sha256, shard.sidecar_sha256)
    return (
        bool(_FILE.fullmatch(shard.file))
        and all(map(_SHA256.fullmatch, hashes))
        and min(shard.clips, shard.bytes) >= 0
    )


def check_sizes(index: Index, shards: Iterable[int], loss_budget: int | None = None) -> None:
    """Look whether shards of a folder are there in full. A missing one, or one with more bytes, counts as lost with all its clips; one that
    is copied before it is read (``file://``) in any case.

    Raises
    ------
    UserError
        If more than ``loss_budget`` clips are lost so; for a test, which may lose none, it is None.
    """
    remote = isinstance(index.root, Remote)
    root = index.root.folder if isinstance(index.root, Remote) else index.root
    if root is None:
        return
    lost, reasons = 0, []
    for i in shards:
        entry = index.shards[i]
        path = f"{root}/{entry.file}"
        try:
            size = os.stat(path).st_size
        except OSError:
            size = -1
        if size != entry.bytes:
            reasons.append(
                f"{path} {'is missing' if size < 0 else f'has {size} bytes, not {entry.bytes}'}"
            )
            in_part = 0 <= size < entry.bytes and loss_budget and not remote
            lost += _clips_beyond(index, i, size) if in_part else entry.clips
    if lost > (loss_budget or 0):
        more = f" ({len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        bound = "a test may lose none" if loss_budget is None else f"data.loss_budget={loss_budget}"
        raise UserError(f"{reasons[0]}: copy it again{more}; {lost} clips would be lost, {bound}")


def _clips_beyond(index: Index, shard: int, size: int) -> int:
    table = index.sidecar(shard)
    return int((table["offset"].to_numpy() + table["size"].to_numpy() > size).sum())


def content_hash(name: str, classes: Sequence[str], shards: Sequence[Shard]) -> str:
    """The hash of a whole set, hex sha256: over its name, classes and every shard's line."""
    body = json.dumps([name, list(classes), [vars(s) for s in shards]], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()
