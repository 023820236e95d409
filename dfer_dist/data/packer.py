"""Packing: clip records -> shards, sidecars and the index that :mod:`dfer_dist.data.shards` reads."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from dfer_dist import UserError
from dfer_dist.data.layouts import CLASSES, ClipRecord
from dfer_dist.data.shards import SIDECAR, Index, Shard, content_hash, read_index, sidecar_path
from dfer_dist.provenance import sha256_file
from dfer_dist.rundir import atomic_path, write_json


def pack(
    records: Sequence[ClipRecord],
    dataset: str,
    out: Path,
    clips_per_shard: int = 256,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Write shards, sidecars and, last, the index. The same records give the same bytes.

    Within a split, clips are laid in the order of a hash of their keys, so that neighbours in a shard are no neighbours in
    the data set. Frames are copied as they are.

    Parameters
    ----------
    records : sequence of ClipRecord
        Clips of all splits.
    dataset : str
        Name of the set, a key of :data:`~dfer_dist.data.layouts.CLASSES`.
    out : Path
        Folder for the shards. If it holds this very set already, nothing is done.
    clips_per_shard : int
        Most clips in a shard, 1 or more.
    workers : int, optional
        Processes; all cores that this one may use by default, none beside this one if 1.
    progress : callable, optional
        Called with clips done and clips in all.

    Raises
    ------
    UserError
        If ``out`` holds another data set, keys collide, or a frame cannot be decoded or has another size than its clip's
        first.
    """
    if not records or clips_per_shard < 1:
        raise UserError(f"{len(records)} clips to pack, {clips_per_shard} a shard: nothing to do")
    keys = {r.key for r in records}
    if len(keys) != len(records):
        raise UserError("two clips have the same key: the paths in the lists differ only in / and _")
    if (out / "index.json").is_file():
        return _same_set(read_index(out), dataset, records)
    jobs = _split_jobs(records, clips_per_shard)
    own = {path.name for name, _ in jobs for path in (out / name, sidecar_path(out / name))}
    strangers = sorted(f.name for f in out.iterdir() if f.name not in own and f.name[0] != ".") if out.is_dir() else []
    if strangers:  # shards of another cut would be read twice by whoever takes all tars in the folder
        raise UserError(f"{out} holds {strangers[0]}, which is no shard of this set: choose an empty --out")
    classes = CLASSES[dataset]
    shards: dict[str, Shard] = {}
    done = 0
    for shard in _write_shards(out, jobs, len(classes), workers or len(os.sched_getaffinity(0))):
        shards[shard.file] = shard
        done += shard.clips
        if progress:
            progress(done, len(records))
    ordered = tuple(shards[name] for name, _ in jobs)
    index = Index(out, dataset, classes, ordered, content_hash(dataset, classes, ordered))
    body = {"name": dataset, "classes": list(classes), "shards": [asdict(s) for s in ordered], "hash": index.hash}
    write_json(out / "index.json", body)
    return index


def _same_set(index: Index, dataset: str, records: Sequence[ClipRecord]) -> Index:
    """``index``, if it has these very clips: key, label, split and number of frames of each."""
    tables = ((shard.split, index.sidecar(i).to_pydict()) for i, shard in enumerate(index.shards))
    packed = {(k, y, split, n) for split, t in tables for k, y, n in zip(t["key"], t["label"], t["frames"], strict=True)}
    if index.name != dataset or packed != {(r.key, r.label, r.split, len(r.frames)) for r in records}:
        raise UserError(f"{index.root} holds another data set ({index.name}, {len(packed)} clips): choose an empty --out")
    return index


def _write_shards(out: Path, jobs: Sequence[tuple[str, list[ClipRecord]]], num_classes: int, workers: int) -> Iterator[Shard]:
    """Shards as they are done, in any order."""
    if min(workers, len(jobs)) == 1:
        yield from (_write_shard(out / name, part, num_classes) for name, part in jobs)
        return
    # spawn: the caller may run threads (progress bars), and a fork would copy their locks
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_shard, out / name, part, num_classes) for name, part in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a bad frame is told now, not after the other shards
            raise


def _split_jobs(records: Sequence[ClipRecord], clips_per_shard: int) -> list[tuple[str, list[ClipRecord]]]:
    by_split: dict[str, list[ClipRecord]] = defaultdict(list)
    for record in records:
        by_split[record.split].append(record)
    jobs = []
    for split in sorted(by_split):
        clips = sorted(by_split[split], key=lambda r: hashlib.sha256(r.key.encode()).digest())
        count = -(-len(clips) // clips_per_shard)
        for i, part in enumerate(np.array_split(np.arange(len(clips)), count)):
            jobs.append((f"{split}-{i:05d}.tar", [clips[j] for j in part]))
    return jobs


def _write_shard(tar: Path, records: Sequence[ClipRecord], num_classes: int) -> Shard:
    from webdataset.writer import TarWriter  # it imports torch, which reading an index must not

    rows: list[dict[str, object]] = []
    with atomic_path(tar) as temporary, temporary.open("wb") as f, TarWriter(f, encoder=False, mtime=0) as writer:
        for record in records:
            frames = _read_frames(record.frames)
            starts = [0, *np.cumsum([len(b) for b in frames]).tolist()]
            meta = {"key": record.key, "label": record.label, "split": record.split, "source": record.source}
            meta |= {"frames": len(frames), "offsets": starts}
            offset = writer.tarstream.offset
            text = json.dumps(meta, separators=(",", ":"), ensure_ascii=False)
            writer.write({"__key__": record.key, "json": text.encode(), "mjpg": b"".join(frames)})
            row = {"key": record.key, "label": record.label, "offset": offset, "frames": len(frames)}
            rows.append({**row, "size": writer.tarstream.offset - offset, "crc32": [zlib.crc32(b) for b in frames]})
    with atomic_path(sidecar_path(tar)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SIDECAR), temporary)
    histogram = tuple(np.bincount([r.label for r in records], minlength=num_classes).tolist())
    split, size = records[0].split, tar.stat().st_size
    return Shard(tar.name, split, len(records), size, histogram, sha256_file(tar), sha256_file(sidecar_path(tar)))


def _read_frames(paths: Sequence[Path]) -> list[bytes]:
    """JPEG bytes of a clip's frames. Each is decoded, as training will: better to hear of a bad one now than then."""
    frames, first = [], None
    for path in paths:
        data = path.read_bytes()
        try:
            size = simplejpeg.decode_jpeg(data).shape[:2]
        except ValueError as e:
            raise UserError(f"{path} cannot be decoded as JPEG: {e}") from e
        first = first or size
        if size != first:
            raise UserError(f"{path} has {size[1]} x {size[0]} pixels, the clip's first frame {first[1]} x {first[0]}")
        frames.append(data)
    return frames
