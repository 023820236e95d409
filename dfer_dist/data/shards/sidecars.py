"""Sidecar tars: what is added to packed clips later (landmarks, parsing maps), next to each shard.

``SHARD.KIND.tar`` has the shard's clips in the shard's order, each with one or more members
``KEY.NAME``. Its manifest, ``SHARD.KIND.json``, holds the hashes of the tar and of the shard that
it was made for, how it was made, and the offset and CRC32 of each member, so that a reader enters
the tar at once. The packed shard is not changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow.parquet as pq

from dfer_dist.data.shards.frame_buffer import FrameBuffer
from dfer_dist.data.shards.index import MAX_OCTAL_SIZE, Index, sidecar_path
from dfer_dist.data.shards.store import Remote
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, parse_json, read_json, sha256_file
from dfer_dist.utils.records import Record

# Kinds. Landmarks: landmarks.npy, float32 [T, 68, 2], and found.npy, bool [T]. Parsing: maps.png,
# a PNG of labels for each frame one after the other, and starts.npy, int64 [T + 1], their offsets.
LANDMARKS = "landmarks"
PARSING = "parsing"
REGIONS = "regions"  # how parsing maps were made that were drawn from landmarks

_BLOCK = 1 << 16  # bytes that are read at once
_KIND = re.compile(r"[a-z][a-z0-9_]{0,30}")


@dataclass(frozen=True)
class Manifest(Record):
    """The JSON file next to a sidecar tar; hashes are hex sha256.

    Attributes
    ----------
    kind : str
    shard : str
        File name of the shard's tar.
    sidecar_sha256 : str
        Of the parquet sidecar of the shard that it was made for.
    made : dict
        How it was made.
    clips, bytes, sha256
        Of the sidecar tar.
    members : dict
        Offset, size (bytes) and CRC32 by the member's name.
    hash : str
        Of all the rest.
    """

    remedy = "it was made by another version of this program: remake it with its tar"

    kind: str
    shard: str
    sidecar_sha256: str
    made: dict[str, Any]
    clips: int
    bytes: int
    sha256: str
    members: dict[str, list[int]]
    hash: str

    @classmethod
    def parse(cls, raw: Mapping[str, Any], tar: str, kind: str, sidecar_sha256: str) -> Self:
        """Return the manifest of ``tar``, once it is found to be of this kind and shard.

        Raises
        ------
        UserError
            If it is not, or was changed.
        """
        if raw.get("kind") != kind or raw.get("sidecar_sha256") != sidecar_sha256:
            raise UserError(f"{tar} was made for another shard than the one next to it: remake it")
        file = f"{tar.removesuffix('.tar')}.json"
        manifest = cls.from_json(raw, file)
        if manifest.hash != manifest_hash(raw):
            raise UserError(f"{file} was changed: copy it again")
        return manifest


def manifest_hash(raw: Mapping[str, Any]) -> str:
    """Return the hex sha256 of a manifest's fields but ``hash`` and ``version``."""
    rest = {name: value for name, value in raw.items() if name not in ("version", "hash")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sidecar_tar_path(shard: Path, kind: str) -> Path:
    """Return the sidecar tar of a shard: ``fold1-00000.landmarks.tar`` of ``fold1-00000.tar``."""
    return shard.with_suffix(f".{kind}.tar")


def write_sidecar_tar(
    shard: Path,
    kind: str,
    rows: Iterable[tuple[str, Mapping[str, bytes | FrameBuffer]]],
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Write a sidecar tar and its manifest; one that exists is replaced as a whole.

    The same rows give the same bytes.

    Parameters
    ----------
    shard : Path
        The shard's tar, with its parquet sidecar next to it.
    kind : str
        Lower-case letters, digits and _.
    rows : iterable of (key, {name: bytes or FrameBuffer})
        One for each clip of the shard, in its order, written before the next one is taken. A name
        has an ending, as ``landmarks.npy``.
    made : mapping, optional
        How it was made, in JSON's types; read when all rows are written.

    Raises
    ------
    UserError
        If the clips are not those of the shard in its order.
    """
    if not _KIND.fullmatch(kind):
        raise UserError(f"'{kind}' cannot name a sidecar tar: lower-case letters, digits and _")
    tar, keys = sidecar_tar_path(shard, kind), _keys(shard)
    with write_tar(tar) as writer:
        for row, expected in zip_longest(rows, keys):
            key, members = row or (None, {})
            if key != expected:
                raise UserError(
                    f"{tar}: clip {key or 'none'} where {shard.name} has {expected or 'none'}"
                )
            for name, data in sorted(members.items()):
                add_member(writer, f"{key}.{name}", *_open_member(data))
    _write_manifest(tar, shard, kind, len(keys), dict(made or {}))
    return tar


def _write_manifest(tar: Path, shard: Path, kind: str, clips: int, made: dict[str, Any]) -> None:
    about: dict[str, Any] = {
        "kind": kind,
        "shard": shard.name,
        "sidecar_sha256": sha256_file(sidecar_path(shard)),
        "made": made,
        "clips": clips,
        "bytes": tar.stat().st_size,
        "sha256": sha256_file(tar),
        "members": _list_members(tar),
    }
    Manifest(**about, hash=manifest_hash(about)).write(tar.with_suffix(".json"))


@contextmanager
def write_tar(tar: Path) -> Iterator[Any]:
    """Yield WebDataset's writer of ``tar``, which appears once the block ends without an error."""
    # an exported model reads sidecars without webdataset
    from dfer_dist.data.shards.webdataset_files import TarWriter

    with (
        atomic_path(tar) as temporary,
        temporary.open("wb") as f,
        TarWriter(f, encoder=False, mtime=0) as writer,
    ):
        yield writer


def add_member(writer: Any, name: str, file: IO[bytes], size: int) -> None:
    """Add a file to a tar of :func:`write_tar` as the writer would its bytes, a part at a time."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, writer.mtime, writer.mode
    info.uname, info.gname = writer.user, writer.group
    if size > MAX_OCTAL_SIZE:
        # one header block in GNU's format; in that of POSIX there would be two more
        writer.tarstream.format = tarfile.GNU_FORMAT
    writer.tarstream.addfile(info, file)
    writer.tarstream.format = tarfile.DEFAULT_FORMAT


def _open_member(data: bytes | FrameBuffer) -> tuple[IO[bytes], int]:
    """Return what is written as a member, with its size in bytes."""
    if isinstance(data, FrameBuffer):
        return data.open(), sum(data.sizes)
    return io.BytesIO(data), len(data)


def _list_members(tar: Path) -> dict[str, list[int]]:
    with tarfile.open(tar) as archive:
        return {
            info.name: [info.offset_data, info.size, _crc32(_extract(archive, info))]
            for info in archive
        }


def _crc32(file: IO[bytes]) -> int:
    crc32 = 0
    while data := file.read(_BLOCK):
        crc32 = zlib.crc32(data, crc32)
    return crc32


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info) if info.isreg() else None
    if file is None:
        raise UserError(f"{archive.name!s}: found {info.name}, which is no plain file")
    return file


def read_sidecar_tar(shard: Path, kind: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the clips of a sidecar tar in the shard's order: key, and bytes by name.

    The tar is checked against its hash first.

    Raises
    ------
    UserError
        If it is missing, was changed, or belongs to another shard.
    """
    tar = sidecar_tar_path(shard, kind)
    manifest = read_manifest(shard, kind)
    if sha256_file(tar) != manifest.sha256:
        raise UserError(
            f"{tar} differs from its hash in {tar.with_suffix('.json').name}: copy it again"
        )
    keys = iter(_keys(shard))
    with tarfile.open(tar) as archive:
        for key, infos in groupby(archive, lambda info: info.name.partition(".")[0]):
            if key != (expected := next(keys, None)):
                raise UserError(f"{tar}: found clip {key} where clip {expected} should be")
            yield key, {i.name.removeprefix(f"{key}."): _extract(archive, i).read() for i in infos}
    if (missing := next(keys, None)) is not None:
        raise UserError(f"{tar} has no clip {missing}")


def read_manifest(shard: Path, kind: str) -> Manifest:
    """Read the manifest of a sidecar tar in a folder; check the tar's size.

    Raises
    ------
    UserError
        If a file is missing, has another size, was changed, or belongs to another shard.
    """
    tar = sidecar_tar_path(shard, kind)
    file = tar.with_suffix(".json")
    for needed in (file, tar):
        if not needed.is_file():
            raise UserError(f"{needed} is missing: copy it again, or remake it")
    manifest = Manifest.parse(read_json(file), str(tar), kind, sha256_file(sidecar_path(shard)))
    size = tar.stat().st_size
    if size != manifest.bytes:
        raise UserError(f"{tar} has {size} bytes, not {manifest.bytes}: copy it again")
    return manifest


def describe_modalities(index: Index, modalities: Sequence[str]) -> dict[str, Any] | None:
    """Return what checkpoints and results record of a set's modalities; None without any.

    Returns
    -------
    dict or None
        ``hash`` over all sidecar tars, hex sha256, and ``made``, how those of each kind were made.

    Raises
    ------
    UserError
        If a shard lacks one, or it belongs to another shard, or sets of a joint index have some
        that were made differently.
    """
    if not modalities:
        return None
    manifests = {
        kind: [read_modality_manifest(index, shard, kind) for shard in range(len(index.shards))]
        for kind in modalities
    }
    _check_same_kind(index, manifests)
    hashes = [manifest.sha256 for own in manifests.values() for manifest in own]
    made = {
        kind: sorted({str(manifest.made.get("by")) for manifest in own})
        for kind, own in manifests.items()
    }
    return {"hash": hashlib.sha256("\n".join(hashes).encode()).hexdigest(), "made": made}


def _check_same_kind(index: Index, manifests: Mapping[str, Sequence[Manifest]]) -> None:
    """Refuse maps that were made by a network in one of several sets and from landmarks in another.

    A model that was trained on one kind does not know the other.
    """
    for kind, own in manifests.items():
        made = defaultdict[str, set[str]](set)
        for shard, manifest in enumerate(own):
            set_name = index.shard_name(shard).rpartition("/")[0]
            made[set_name].add(str(manifest.made.get("by")))
        if len({frozenset(by) for by in made.values()}) > 1:
            made_by = "; ".join(f"{name}: {', '.join(sorted(by))}" for name, by in made.items())
            raise UserError(
                f"model.modalities has {kind}, made differently for the sets ({made_by}): "
                f"remake it in one of them (dfer enrich SHARDS --{kind})"
            )


def read_modality_manifest(index: Index, shard: int, kind: str) -> Manifest:
    """Read the manifest of a shard's sidecar tar, in a folder or at a server.

    Raises
    ------
    UserError
        As :func:`describe_modalities`.
    """
    entry, root = index.shards[shard], index.store(shard)
    try:
        if not isinstance(root, Remote):
            return read_manifest(index.path(shard), kind)
        tar = sidecar_tar_path(Path(entry.file), kind)
        raw = parse_json(root.get(str(tar.with_suffix(".json"))), f"{root}/{tar}")
        return Manifest.parse(raw, f"{root}/{tar}", kind, entry.sidecar_sha256)
    except UserError as e:
        raise UserError(
            f"model.modalities has {kind}, but {e} (dfer enrich SHARDS --{kind})"
        ) from e


def landmark_members(points: np.ndarray, found: np.ndarray) -> dict[str, bytes]:
    """Return the members of a clip's landmarks: points [T, 68, 2], and whether a frame has them."""
    landmarks = array_bytes(points.astype(np.float32))
    return {"landmarks.npy": landmarks, "found.npy": array_bytes(found)}


def array_bytes(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a ``.npy`` file, never a pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_array(data: bytes) -> np.ndarray:
    """Return the array in the bytes of a ``.npy`` file; a pickle is a ValueError."""
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _keys(shard: Path) -> list[str]:
    return pq.read_table(sidecar_path(shard), columns=["key"])["key"].to_pylist()
