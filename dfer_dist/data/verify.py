"""Every byte of a set held against its index, and which files to copy again."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from dfer_dist.data.captions.store import FILE, parse
from dfer_dist.data.shards.index import BLOCK, DamagedIndex, Index, load_index, sidecar_path
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.sidecars import extra_path, read_extra
from dfer_dist.data.shards.store import FetchError, Remote, open_store
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

_DOWNLOADS = 8  # shards of a server at a time, each in a temporary file until it is checked
_UNBOUNDED = 1e6  # the cache is not used here: what counts is what lies at the server


@dataclass(frozen=True)
class Damage:
    """A file to copy again, why, and the keys of clips that are known to be hit."""

    file: str
    reason: str
    clips: tuple[str, ...] = ()


def verify(
    location: str, progress: Callable[[int, int], None] | None = None
) -> tuple[Index | None, list[Damage]]:
    """Check a set: the index against its hash, each shard's size, sha256 and members, each sidecar's sha256.

    In a shard whose sha256 is wrong every clip is checked, with the CRC32 of each frame. In a local folder, what was added beside the
    shards later is held against its own hashes. Reads every byte once, several shards at a time.

    Parameters
    ----------
    location : str
        Folder or URL.
    progress : callable, optional
        Called with shards done and shards in all.

    Returns
    -------
    index : Index or None
        None if it is damaged itself: without it nothing else can be judged.
    damage : list of Damage
        In the order of the index; empty if all is whole.

    Raises
    ------
    UserError
        If there is no index at all.
    """
    root = open_store(location, tempfile.gettempdir(), _UNBOUNDED)
    if isinstance(root, Remote) and root.folder:
        root = root.folder
    try:
        index = load_index(root)
    except DamagedIndex as e:
        return None, [Damage("index.json", str(e))]
    threads = (
        _DOWNLOADS if isinstance(root, Remote) else len(os.sched_getaffinity(0))
    )  # hashing lets go of the GIL
    found: dict[int, list[Damage]] = {}
    with ThreadPoolExecutor(threads) as pool:
        jobs = {pool.submit(_check_shard, index, i): i for i in range(len(index.shards))}
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            if progress:
                progress(len(found), len(jobs))
    return index, [damage for i in sorted(found) for damage in found[i]] + _damaged_descriptions(
        root
    )


def _check_shard(index: Index, shard: int) -> list[Damage]:
    if not isinstance(index.root, Remote):
        return _check_files(index, shard)
    tar = index.shards[shard].file
    with tempfile.TemporaryDirectory(prefix="dfer-verify-") as folder:
        absent = []
        for name in (tar, sidecar_path(Path(tar)).name):
            try:
                index.root.save(name, Path(folder) / name)
            except FetchError as e:
                absent.append(Damage(name, str(e)))
        gone = {damage.file for damage in absent}
        return absent + [
            d for d in _check_files(replace(index, root=Path(folder)), shard) if d.file not in gone
        ]


def _check_files(index: Index, shard: int) -> list[Damage]:
    """What is wrong with a shard in a local folder, and with its sidecar."""
    entry, path, damage = index.shards[shard], index.path(shard), []
    table = None
    try:
        table = index.sidecar(shard)
    except (UserError, OSError) as e:
        damage.append(Damage(sidecar_path(path).name, _without_folder(e, path)))
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            reason = f"has {size} bytes, not {entry.bytes}"
        elif sha256_file(path) != entry.sha256:
            reason = "differs from the index (sha256)"
        else:
            odd = _unexpected_member(path, table)
            damage = [Damage(entry.file, odd), *damage] if odd else damage
            return damage + (_damaged_extras(path) if table is not None else [])
    except OSError as e:
        reason = (
            "is missing" if isinstance(e, FileNotFoundError) else f"cannot be read: {e.strerror}"
        )
    hit = _damaged_clips(index, shard) if table is not None and path.is_file() else ()
    return [Damage(entry.file, reason, hit), *damage]


def _damaged_extras(path: Path) -> list[Damage]:
    """What is wrong with the tars that were added beside a shard, in a local folder."""
    damage = []
    for kind in sorted(
        {
            f.name.removeprefix(f"{path.stem}.").split(".")[0]
            for f in path.parent.glob(f"{path.stem}.*.*")
        }
    ):
        try:
            for _ in read_extra(path, kind):
                pass
        except (UserError, OSError, tarfile.TarError) as e:
            tar = extra_path(path, kind)
            damage.append(Damage(tar.name, str(e).removeprefix(f"{tar}: ").removeprefix(f"{tar} ")))
    return damage


def _damaged_descriptions(root: Path | Remote) -> list[Damage]:
    """What is wrong with the descriptions beside the shards of a local folder."""
    try:
        if isinstance(root, Path):
            parse((root / FILE).read_bytes(), FILE)
    except FileNotFoundError:
        pass
    except (UserError, OSError) as e:
        return [Damage(FILE, str(e).removeprefix(f"{FILE}: "))]
    return []


def _without_folder(e: Exception, path: Path) -> str:
    return str(e).removeprefix(f"{sidecar_path(path)} ").removeprefix(f"{path}: ")


def _damaged_clips(index: Index, shard: int) -> tuple[str, ...]:
    reader, hit = ClipReader(index), []
    for row in range(index.shards[shard].clips):
        try:
            reader.check(shard, row)
        except DamagedClip as e:
            hit.append(e.key)
    return tuple(hit)


def _unexpected_member(path: Path, table: pa.Table | None) -> str | None:
    """What a shard holds that the packer did not write. An index made by hand may have the right hash of anything.

    Unpacked by tar, a path or a link would write outside the folder.
    """
    with path.open("rb") as f:
        end = os.fstat(f.fileno()).st_size
        members, at = [], 0
        while (block := os.pread(f.fileno(), BLOCK, at)).strip(b"\0"):
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            except (tarfile.TarError, ValueError) as e:
                return f"has no member at byte {at}: {e}"
            if not info.isreg() or info.name.startswith(("/", ".")) or "/" in info.name:
                return f"holds '{info.name}', a path, link or special file"
            members.append((info.name, at))
            at += BLOCK + -(-info.size // BLOCK) * BLOCK
        f.seek(at)
        if at > end or any(chunk.strip(b"\0") for chunk in iter(lambda: f.read(1 << 20), b"")):
            return f"holds more than its members, behind byte {at}"
    if table is not None:
        rows = zip(table["key"].to_pylist(), table["offset"].to_pylist(), strict=True)
        expected = [(f"{key}.json", offset) for key, offset in rows]
        if members[::2] != expected or [n for n, _ in members[1::2]] != [
            f"{n[:-5]}.mjpg" for n, _ in expected
        ]:
            return "has other members than its sidecar tells"
    return None
