"""Verification of every byte of a set against its index: which files to copy again."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from dfer_dist.data.captions.store import FILE, parse
from dfer_dist.data.shards.index import BLOCK, DamagedIndex, Index, Shard, load_index, sidecar_path
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.sidecars import read_sidecar_tar, sidecar_tar_path
from dfer_dist.data.shards.store import Remote, open_store
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

_DOWNLOADS = 8  # shards of a server at a time, each in a temporary file while it is checked
_CACHE_GB = 1e6  # the cache is not used: the files at the server are verified


@dataclass(frozen=True)
class Damage:
    """A file to copy again, the reason, and the keys of clips that are known to be damaged."""

    file: str
    reason: str
    clips: tuple[str, ...] = ()


def verify(
    location: str, progress: Callable[[int, int], None] | None = None
) -> tuple[Index | None, list[Damage]]:
    """Verify a set.

    Checks the index against its hash, each shard's size, sha256 and members, and each sidecar's
    sha256. In a shard with a wrong sha256 the CRC32 of each frame is checked. In a local folder,
    sidecar tars and descriptions are checked too. Reads every byte once, several shards at a time.

    Parameters
    ----------
    location : str
        Folder or URL.
    progress : callable, optional
        Called with the number of shards done and of all.

    Returns
    -------
    index : Index or None
        None if it is damaged itself: nothing else can be checked without it.
    damage : list of Damage
        In the order of the index; empty if the set is intact.

    Raises
    ------
    UserError
        If there is no index at all.
    """
    root = open_store(location, tempfile.gettempdir(), _CACHE_GB)
    if isinstance(root, Remote) and root.folder:
        root = root.folder
    try:
        index = load_index(root)
    except DamagedIndex as e:
        return None, [Damage("index.json", str(e))]
    # hashing releases the GIL
    threads = _DOWNLOADS if isinstance(root, Remote) else len(os.sched_getaffinity(0))
    damage = list[Damage]()
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(partial(_check_shard, index), range(len(index.shards)))
        for number, of_shard in enumerate(found, 1):
            damage += of_shard
            if progress:
                progress(number, len(index.shards))
    if isinstance(root, Path) and (root / FILE).exists():
        with _record_damage(root / FILE, damage):
            parse((root / FILE).read_bytes(), str(root / FILE))
    return index, damage


@contextmanager
def _record_damage(file: Path, damage: list[Damage]) -> Iterator[None]:
    """Add an error about a file to ``damage``, without the path that the message starts with."""
    try:
        yield
    except FileNotFoundError:
        damage.append(Damage(file.name, "is missing"))
    except (UserError, OSError, tarfile.TarError) as e:
        damage.append(Damage(file.name, str(e).removeprefix(str(file)).lstrip(": ")))


def _check_shard(index: Index, shard: int) -> list[Damage]:
    if not isinstance(index.root, Remote):
        return _check_files(index, shard)
    tar = index.shards[shard].file
    with tempfile.TemporaryDirectory(prefix="dfer-verify-") as folder:
        missing = list[Damage]()
        for file in (Path(tar), sidecar_path(Path(tar))):
            with _record_damage(file, missing):
                index.root.save(file.name, Path(folder) / file)
        local = _check_files(replace(index, root=Path(folder)), shard)
    reported = {damage.file for damage in missing}
    return missing + [damage for damage in local if damage.file not in reported]


def _check_files(index: Index, shard: int) -> list[Damage]:
    """Check a shard in a local folder, its sidecar and its sidecar tars."""
    entry, path = index.shards[shard], index.path(shard)
    table, damage, of_sidecars = None, list[Damage](), list[Damage]()
    with _record_damage(sidecar_path(path), of_sidecars):
        table = index.sidecar(shard)
    with _record_damage(path, damage):
        _check_tar(path, entry, table)
    if table is None:
        return damage + of_sidecars
    if damage and path.is_file():
        damage = [replace(damage[0], clips=_damaged_clips(index, shard))]
    prefix = f"{path.stem}."
    names = (file.name.removeprefix(prefix) for file in path.parent.glob(f"{prefix}*.*"))
    for kind in sorted({name.partition(".")[0] for name in names}):
        with _record_damage(sidecar_tar_path(path, kind), of_sidecars):
            deque(read_sidecar_tar(path, kind), maxlen=0)
    return damage + of_sidecars


def _damaged_clips(index: Index, shard: int) -> tuple[str, ...]:
    reader, keys = ClipReader(index), []
    for row in range(index.shards[shard].clips):
        try:
            reader.jpegs(shard, row)
        except DamagedClip as e:
            keys.append(e.key)
    return tuple(keys)


def _check_tar(path: Path, entry: Shard, table: pa.Table | None) -> None:
    """Compare a shard with its entry in the index and its sidecar.

    A forged index may have the right hash of anything. Extracted by tar, a path or a link would
    write outside the folder.

    Raises
    ------
    UserError
        If it differs, or holds what the packer did not write.
    """
    size = path.stat().st_size
    if size != entry.bytes:
        raise UserError(f"has {size} bytes, not {entry.bytes}")
    if sha256_file(path) != entry.sha256:
        raise UserError("differs from the index (sha256)")
    with path.open("rb") as f:
        members, at = [], 0
        while (block := os.pread(f.fileno(), BLOCK, at)).strip(b"\0"):
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            except (tarfile.TarError, ValueError) as e:
                raise UserError(f"has no member at byte {at}: {e}") from e
            if not info.isreg() or info.name.startswith(("/", ".")) or "/" in info.name:
                raise UserError(f"holds '{info.name}', a path, link or special file")
            members.append((info.name, at))
            at += BLOCK + -(-info.size // BLOCK) * BLOCK
        f.seek(at)
        if at > size or any(chunk.strip(b"\0") for chunk in iter(lambda: f.read(1 << 20), b"")):
            raise UserError(f"holds more than its members, after byte {at}")
    if table is None:
        return
    keys, offsets = table["key"].to_pylist(), table["offset"].to_pylist()
    headers = [(f"{key}.json", offset) for key, offset in zip(keys, offsets, strict=True)]
    videos = [name for name, _ in members[1::2]]
    if members[::2] != headers or videos != [f"{key}.mjpg" for key in keys]:
        raise UserError("has other members than its sidecar")
