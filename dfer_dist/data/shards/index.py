"""The index of a set of shards: WebDataset tars with a parquet sidecar each.

A clip is two members, ``KEY.json`` (label, source and frame offsets) and ``KEY.mjpg`` (its frames
as concatenated JPEGs, which ffmpeg plays). A shard belongs to one split, so folds share the files
and nothing is stored twice. ``index.json`` lists all shards with their hashes.
"""

from __future__ import annotations

import hashlib
import json
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
from dfer_dist.data.shards.store import Remote, open_store
from dfer_dist.data.sources.records import AMBIGUOUS
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import parse_json

# A clip's key: no dot, which ends a key for webdataset, and nothing that makes a path.
KEY = r"^[A-Za-z0-9_-]+$"
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
_FOLD = re.compile(r"fold[0-9]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
BLOCK = 512  # bytes: a tar header is one block, data is padded to whole blocks
# Largest size in a tar header, bytes: 11 octal digits. GNU's format has larger ones in base 256.
MAX_OCTAL_SIZE = 8**11 - 1

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
# Columns of a set that has such a thing; in label order, and of each clip's own label at least.
EXTRAS = {
    "group": pa.string(),  # empty if unknown
    "votes": pa.list_(pa.float32()),  # of annotators for each class; empty if unknown
    "labels": pa.list_(pa.int32()),  # all classes of the clip, ascending
}


def sidecar_schema(extras: Sequence[str] = ()) -> pa.Schema:
    """Return the columns of the sidecars of a set, those of :data:`EXTRAS` last."""
    return pa.schema([*SIDECAR, *((name, EXTRAS[name]) for name in extras)])


@dataclass(frozen=True)
class Shard:
    """A shard's entry in the index.

    ``histogram`` counts clips by label, ``bytes`` is the size of the tar, hashes are hex sha256.
    """

    file: str
    split: str
    clips: int
    bytes: int
    histogram: tuple[int, ...]
    sha256: str
    sidecar_sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A listed clip that is in no shard, with its split and the kind of its fault."""

    clip: str
    split: str
    kind: str


@dataclass(frozen=True)
class Index:
    """The content of ``index.json``.

    Attributes
    ----------
    root : Path or Remote
        The folder or the server that it was read from.
    name : str
        Of the data set.
    classes : tuple of str
        In label order.
    shards : tuple of Shard
    hash : str
        Hex sha256 of all the rest.
    left_out : tuple of LeftOut
        Clips lost when the set was packed; not recorded by earlier versions.
    extras : tuple of str
        The columns of :data:`EXTRAS` that the sidecars have.
    """

    root: Path | Remote
    name: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    hash: str
    left_out: tuple[LeftOut, ...] = ()
    extras: tuple[str, ...] = ()

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted({s.split for s in self.shards})

    @cached_property
    def folds(self) -> list[int]:
        """Folds of a cross-validation, 1 to K; only 1 for a set with one test split."""
        count = sum(bool(_FOLD.fullmatch(split)) for split in self.splits)
        return list(range(1, count + 1)) if "fold1" in self.splits else [1]

    def test_shards(self, fold: int) -> list[int]:
        """Return the positions in ``shards`` of the test shards of a fold."""
        return [i for i, s in enumerate(self.shards) if s.split == self._test_split(fold)]

    def lost_test_clips(self, fold: int) -> list[str]:
        """Return the clips that the test split of a fold lost when the set was packed."""
        return [lost.clip for lost in self.left_out if lost.split == self._test_split(fold)]

    def _test_split(self, fold: int) -> str:
        return f"fold{fold}" if "fold1" in self.splits else "test"

    @cached_property
    def val_shards(self) -> list[int]:
        """Positions in ``shards`` of the validation shards of a set with such a split."""
        return [i for i, s in enumerate(self.shards) if s.split == "val"]

    @cached_property
    def ambiguous_shards(self) -> list[int]:
        """Positions in ``shards`` of clips without a majority, in no fold."""
        return [i for i, s in enumerate(self.shards) if s.split == AMBIGUOUS]

    def train_shards(self, fold: int) -> list[int]:
        """Return the positions in ``shards`` of the training shards of a fold.

        These are all others but those of ambiguous clips.
        """
        others = {*self.test_shards(fold), *self.val_shards, *self.ambiguous_shards}
        return sorted(set(range(len(self.shards))) - others)

    def store(self, shard: int) -> Path | Remote:
        """Return the folder or the server that a shard is in."""
        return self.root

    def label(self, shard: int, stored: int) -> int:
        """Return the label of a clip whose JSON member has the label ``stored``."""
        return stored

    def clip_name(self, shard: int, key: str) -> str:
        """Return the name of a clip that no other clip of the index has."""
        return key

    def shard_name(self, shard: int) -> str:
        """Return the name of a shard that no other shard of the index has."""
        return self.shards[shard].file

    def path(self, shard: int) -> Path:
        """Return a shard's file; only for a set in a local folder."""
        assert isinstance(self.root, Path)
        return self.root / self.shards[shard].file

    def sidecar(self, shard: int) -> pa.Table:
        """Read a shard's parquet table, one row for each clip, checked against its hash.

        Raises
        ------
        UserError
            If the sidecar is missing, was changed, or cannot be that of this shard.
        """
        data = self._sidecar_bytes(shard)
        name, schema = sidecar_path(Path(self.shards[shard].file)), sidecar_schema(self.extras)
        try:
            # In this thread and without pyarrow.dataset, which every loader worker would import:
            # arrow's threads do not survive a fork.
            file = pq.ParquetFile(pa.BufferReader(data))
            table = file.read(schema.names, use_threads=False).cast(schema)
            labels, entry = to_numpy(table["label"].combine_chunks()), self.shards[shard]
        except (pa.ArrowException, ValueError, OSError) as e:
            reason = " ".join(str(e).split())
            raise UserError(f"{self.root}/{name} is no sidecar: {reason}") from e
        # a forged index may have the right hash of keys that are paths and labels of no class
        plain = pc.all(pc.match_substring_regex(table["key"], KEY)).as_py()
        same_labels = not (labels < 0).any() and np.array_equal(
            np.bincount(labels, minlength=len(self.classes)), entry.histogram
        )
        same_labels = same_labels and _are_of_classes(table, len(self.classes))
        if not plain or not same_labels or table.num_rows != entry.clips:
            raise UserError(f"{self.root}/{name} has keys or labels that no packer writes")
        return table

    def _sidecar_bytes(self, shard: int) -> bytes:
        entry = self.shards[shard]
        name = str(sidecar_path(Path(entry.file)))
        if isinstance(self.root, Remote):
            return self.root.read(name, entry.sidecar_sha256)
        path = self.root / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as e:
            raise UserError(f"{path} is missing: copy it again or pack again") from e
        if hashlib.sha256(data).hexdigest() != entry.sidecar_sha256:
            raise UserError(f"{path} differs from the index (sha256): copy it again or pack again")
        return data


def _are_of_classes(table: pa.Table, num_classes: int) -> bool:
    """Return whether votes, if any, are of so many classes, and labels of these."""
    if "votes" in table.column_names:
        counts = set(pc.unique(pc.list_value_length(table["votes"])).to_pylist())
        if not counts <= {0, num_classes}:
            return False
    if "labels" in table.column_names:
        limits = pc.min_max(pc.list_flatten(table["labels"])).as_py()
        return limits["min"] >= 0 and limits["max"] < num_classes
    return True


def to_numpy(column: pa.Array) -> np.ndarray:
    """Return an arrow array of numbers without nulls as numpy's.

    Arrow's own conversion imports pandas, which takes each loader worker 0.1 s and 30 MB.
    """
    return np.from_dlpack(column)


def sidecar_path(tar: Path) -> Path:
    """Return the parquet sidecar of a shard's tar."""
    return tar.with_suffix(".parquet")


def open_index(data: DataConfig, loss_budget: int = 0) -> Index:
    """Open the set that ``data.shards`` names, in a folder or at a server; the first of several.

    Raises
    ------
    UserError
        As :func:`read_index`, and if the URL is not supported or the server cannot be reached.
    """
    return read_index(open_store(data.locations[0], data.cache, data.cache_gb), loss_budget)


def read_index(root: Path | Remote, loss_budget: int = 0) -> Index:
    """Open a set of shards.

    Shards of a folder are checked for their size now, those of a server when they are fetched.

    Raises
    ------
    UserError
        If there is no index, it was changed, or more than ``loss_budget`` clips are in shards that
        are missing or have another size.
    """
    index = load_index(root)
    check_sizes(index, range(len(index.shards)), loss_budget)
    return index


class DamagedIndex(UserError):
    """An index that was changed, or was not written by this program."""


def load_index(root: Path | Remote) -> Index:
    """Read the index alone, without looking at shards.

    Raises
    ------
    UserError
        If there is no index, or the server cannot be reached.
    DamagedIndex
        If it was changed or cannot be read.
    """
    file = f"{root}/index.json"
    try:
        text = root.get("index.json") if isinstance(root, Remote) else Path(file).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(
            f"{root} holds no index.json: pack a data set there with dfer pack, or give "
            "data.shards=FOLDER"
        ) from e
    try:
        raw = parse_json(text, "it")
        shards = tuple(Shard(**{**s, "histogram": tuple(s["histogram"])}) for s in raw["shards"])
        left_out = tuple(LeftOut(**clip) for clip in raw.get("left_out", []))
        extras = tuple(raw.get("extras", []))
        sidecar_schema(extras)
        classes = tuple(raw["classes"])
        index = Index(root, raw["name"], classes, shards, raw["hash"], left_out, extras)
        intact = content_hash(index.name, classes, shards, left_out, extras) == index.hash
        unsafe = [s.file for s in shards if not _is_safe(s)]
    except (KeyError, TypeError, UserError) as e:
        raise DamagedIndex(f"{file} is not an index of this program: {e}") from e
    if not intact:
        raise DamagedIndex(f"{file} was changed: its hash does not match its content")
    if unsafe:
        raise DamagedIndex(f"{file} describes a shard '{unsafe[0]}' as no packer does")
    return index


def _is_safe(shard: Shard) -> bool:
    """Return whether a shard's names can be used to open files and to fill caches."""
    hashes = (shard.sha256, shard.sidecar_sha256)
    return (
        bool(_FILE.fullmatch(shard.file))
        and all(map(_SHA256.fullmatch, hashes))
        and min(shard.clips, shard.bytes) >= 0
    )


def check_sizes(index: Index, shards: Iterable[int], loss_budget: int | None = None) -> None:
    """Check that shards of a folder exist in full.

    All clips of a missing or longer shard count as lost. Of a shorter one only the clips beyond its
    end do, unless it is copied before it is read (``file://``) or nothing may be lost.

    Parameters
    ----------
    index : Index
    shards : iterable of int
        Positions in ``index.shards``.
    loss_budget : int, optional
        Most clips that may be lost; None for a test, which may lose none.

    Raises
    ------
    UserError
        If more clips are lost.
    """
    lost, reasons = 0, []
    for i in shards:
        entry, store = index.shards[i], index.store(i)
        root = store.folder if isinstance(store, Remote) else store
        if root is None:
            continue
        path = root / entry.file
        try:
            size = path.stat().st_size
            found = f"has {size} bytes, not {entry.bytes}"
        except OSError:
            size, found = -1, "is missing"
        if size == entry.bytes:
            continue
        reasons.append(f"{path} {found}")
        in_part = 0 <= size < entry.bytes and loss_budget and root is store
        if in_part:
            table = index.sidecar(i)
            lost += int((table["offset"].to_numpy() + table["size"].to_numpy() > size).sum())
        else:
            lost += entry.clips
    if lost > (loss_budget or 0):
        more = f" ({len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        bound = "a test may lose none" if loss_budget is None else f"data.loss_budget={loss_budget}"
        raise UserError(f"{reasons[0]}: copy it again{more}; {lost} clips would be lost, {bound}")


def content_hash(
    name: str,
    classes: Sequence[str],
    shards: Sequence[Shard],
    left_out: Sequence[LeftOut] = (),
    extras: Sequence[str] = (),
) -> str:
    """Return the hash of a set, hex sha256.

    It is over its name, classes, every shard's entry and, if there are any, the clips left out
    and the extra columns of sidecars.
    """
    body: list[object] = [name, list(classes), [vars(s) for s in shards]]
    if left_out:
        body.append([vars(clip) for clip in left_out])
    if extras:
        body.append({"extras": list(extras)})
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
