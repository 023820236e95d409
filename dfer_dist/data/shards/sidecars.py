"""What is added to packed clips later (landmarks, parsing maps, descriptions): a tar of its own beside each shard.

``SHARD.KIND.tar`` has the shard's clips in the shard's order, each with one or more members ``KEY.NAME``; ``SHARD.KIND.json`` says how
many clips, the sha256 of the tar, and of the sidecar of the shard that it was made for, how it was made, and where each member's bytes lie, with
their CRC32, so that a reader enters the tar at once. The packed shard stays as it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dfer_dist.data.shards.index import Index, sidecar_path
from dfer_dist.data.shards.store import FetchError, Remote
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, parse_json, read_json, sha256_file, write_json

LANDMARKS = "landmarks"  # the kind with landmarks.npy, float32 [T, 68, 2], and found.npy, bool [T]
PARSING = "parsing"  # the kind with maps.png, a PNG of labels for each frame one after the other, and starts.npy, int64 [T + 1]
REGIONS = "regions"  # how such maps were made, where they were drawn from landmarks

_KIND = re.compile(r"[a-z][a-z0-9_]{0,30}")


def extra_path(shard: Path, kind: str) -> Path:
    """The tar of a kind beside a shard's tar: ``fold1-00000.landmarks.tar`` beside ``fold1-00000.tar``."""
    return shard.with_suffix(f".{kind}.tar")


def write_extra(
    shard: Path,
    kind: str,
    rows: Iterable[tuple[str, Mapping[str, bytes]]],
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Write an extra of a packed shard. The same rows give the same bytes; a file that is there is replaced as a whole.

    Parameters
    ----------
    shard : Path
        The shard's tar; its sidecar must lie beside it.
    kind : str
        Lower-case letters, digits and _.
    rows : iterable of (key, {name: bytes})
        One for each clip of the shard, in its order; a name has an ending, such as ``landmarks.npy``.
    made : mapping, optional
        How it was made, in JSON's types; read when all rows are written.

    Raises
    ------
    UserError
        If the clips are not those of the shard in its order.
    """
    from webdataset.writer import TarWriter  # it imports torch, which reading need not

    if not _KIND.fullmatch(kind):
        raise UserError(f"'{kind}' cannot name an extra: lower-case letters, digits and _")
    keys, tar = _keys(shard), extra_path(shard, kind)
    with (
        atomic_path(tar) as temporary,
        temporary.open("wb") as f,
        TarWriter(f, encoder=False, mtime=0) as writer,
    ):
        count = 0
        for count, (key, members) in enumerate(rows, 1):
            if count > len(keys) or key != keys[count - 1]:
                expected = f"clip {keys[count - 1]}" if count <= len(keys) else "no clip"
                raise UserError(
                    f"{tar}: clip {key} at place {count}, where {shard.name} has {expected}"
                )
            writer.write({"__key__": key, **members})
        if count < len(keys):
            raise UserError(f"{tar}: {count} clips, but {shard.name} has {len(keys)}")
    about: dict[str, Any] = {
        "kind": kind,
        "shard": shard.name,
        "sidecar_sha256": sha256_file(sidecar_path(shard)),
        "made": dict(made or {}),
    }
    about |= {"clips": count, "bytes": tar.stat().st_size, "sha256": sha256_file(tar)}
    about |= {"members": _members(tar)}
    write_json(tar.with_suffix(".json"), {**about, "hash": own_hash(about)})
    return tar


def _members(tar: Path) -> dict[str, list[int]]:
    """Offset of its bytes, their number and their CRC32, by the name of each member."""
    with tarfile.open(tar) as archive, tar.open("rb") as f:
        places = {info.name: (info.offset_data, info.size) for info in archive}
        return {
            name: [at, size, zlib.crc32(os.pread(f.fileno(), size, at))]
            for name, (at, size) in places.items()
        }


def read_extra(shard: Path, kind: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Clips of an extra in the shard's order: key, and bytes by name. Checked against its hash before the first is given.

    Raises
    ------
    UserError
        If it is missing, was changed, or belongs to another shard.
    """
    tar = extra_path(shard, kind)
    about = describe_extra(shard, kind)
    if sha256_file(tar) != about["sha256"]:
        raise UserError(
            f"{tar} differs from its hash in {tar.with_suffix('.json').name}: copy it again"
        )
    keys = iter(_keys(shard))
    key, members = next(keys, None), dict[str, bytes]()
    with tarfile.open(tar) as archive:
        for info in archive:
            owner, _, name = info.name.partition(".")
            data = archive.extractfile(info) if info.isreg() else None
            if owner != key and members and key is not None:
                yield key, members
                key, members = next(keys, None), {}
            if owner != key or data is None:
                raise UserError(f"{tar}: found {info.name} where clip {key} should be")
            members[name] = data.read()
    if key is not None:
        yield key, members
    if (rest := next(keys, None)) is not None:
        raise UserError(f"{tar} has no clip {rest}")


def describe_extra(shard: Path, kind: str) -> dict[str, Any]:
    """The JSON beside an extra, once its tar is there with the right size and belongs to this shard.

    Raises
    ------
    UserError
        If not.
    """
    tar = extra_path(shard, kind)
    file = tar.with_suffix(".json")
    if not tar.is_file() or not file.is_file():
        raise UserError(
            f"{tar if file.is_file() else file} is missing: copy it again, or make it again"
        )
    about = read_json(file)
    check_extra(about, kind, sha256_file(sidecar_path(shard)), str(tar))
    if tar.stat().st_size != about["bytes"]:
        raise UserError(
            f"{tar} has {tar.stat().st_size} bytes, not {about['bytes']}: copy it again"
        )
    return about


def check_extra(about: Mapping[str, Any], kind: str, sidecar_sha256: str, tar: str) -> None:
    """Whether the JSON beside an extra is one, of this kind and of the shard with this sidecar.

    Raises
    ------
    UserError
        If not.
    """
    if about.get("kind") != kind or about.get("sidecar_sha256") != sidecar_sha256:
        raise UserError(f"{tar} was made for another shard than the one beside it: make it again")
    if not {"made", "clips", "bytes", "sha256", "members", "hash"} <= about.keys():
        raise UserError(f"{tar} was made by another version of this program: make it again")
    if about["hash"] != own_hash(about):
        raise UserError(f"{tar.removesuffix('.tar')}.json was changed: copy it again")


def own_hash(about: Mapping[str, Any]) -> str:
    """sha256 of everything else in the JSON beside an extra."""
    rest = {name: value for name, value in about.items() if name not in ("version", "hash")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def describe_modalities(index: Index, modalities: Sequence[str]) -> dict[str, Any] | None:
    """What the clips of a set have of ``modalities``: ``hash`` over it all, hex sha256, and ``made``, how each of them came about; None without levels.

    Raises
    ------
    UserError
        If a shard lacks one, or it belongs to another shard.
    """
    if not modalities:
        return None
    told = {
        kind: [describe_modality(index, shard, kind) for shard in range(len(index.shards))]
        for kind in modalities
    }
    parts = [about["sha256"] for own in told.values() for about in own]
    made = {
        kind: sorted({str(about["made"].get("by")) for about in own}) for kind, own in told.items()
    }
    return {"hash": hashlib.sha256("\n".join(parts).encode()).hexdigest(), "made": made}


def describe_modality(index: Index, shard: int, kind: str) -> dict[str, Any]:
    """The JSON beside one shard's extra, in a folder or at a server. UserError as :func:`describe_modalities`."""
    entry, root = index.shards[shard], index.root
    try:
        if not isinstance(root, Remote):
            return describe_extra(index.path(shard), kind)
        tar = str(extra_path(Path(entry.file), kind))
        about = parse_json(root.get(f"{tar.removesuffix('.tar')}.json"), f"{root}/{tar}")
        check_extra(about, kind, entry.sidecar_sha256, f"{root}/{tar}")
    except (UserError, FetchError) as e:
        raise UserError(
            f"model.modalities has {kind}, but {e} (dfer enrich SHARDS --{kind})"
        ) from e
    return about


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a ``.npy`` file, never a pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def read_array(data: bytes) -> np.ndarray:
    """The array in the bytes of a ``.npy`` file; a pickle is a ValueError."""
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _keys(shard: Path) -> list[str]:
    return pq.read_table(sidecar_path(shard), columns=["key"])["key"].to_pylist()
