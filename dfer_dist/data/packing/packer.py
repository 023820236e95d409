"""Pack clip records into shards, their sidecars, an index, and a report.

::

    OUT/
      fold1-00000.tar  fold1-00000.parquet  ...
      pack_report.json     counts by split and class, and every fault with its clip
      index.json           written last: without it the set is not complete
      .packing/            while packing: a record of each finished shard, for resuming
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dfer_dist.data.packing.report import (
    REPORT,
    ClipFault,
    PackReport,
    PackSettings,
    ShardResult,
    make_report,
    stop_at_fault,
)
from dfer_dist.data.packing.shard_writer import STATE_FOLDER, ShardJob, hash_json, write_shard
from dfer_dist.data.shards.index import Index, content_hash, read_index
from dfer_dist.data.sources.records import CLASSES, NO_SPLIT, ClipRecord, Fault
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from dfer_dist.utils.process_pool import run_jobs


def pack(
    records: Sequence[ClipRecord],
    dataset: str,
    out: Path,
    clips_per_shard: int = 256,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    strict: bool = False,
    faces: bool = False,
) -> Index:
    """Write shards, sidecars, the report and, last, the index.

    The same records and files give the same bytes. Clips of a split are in the order of a hash of
    their keys, so that neighbours in the data set are apart. The same call resumes a killed run:
    finished shards are kept, others are written again.

    Parameters
    ----------
    records : sequence of ClipRecord
        Clips of all splits.
    dataset : str
        Name of the set.
    out : Path
        Folder for the shards. Nothing is done if it already holds this set: lists, settings, and
        names and sizes of files are compared, not their contents.
    clips_per_shard : int
        Maximum number of clips in a shard.
    workers : int, optional
        Number of processes; by default one per available core.
    progress : callable, optional
        Called with the numbers of clips done and of all clips.
    classes : sequence of str, optional
        Names in label order; by default those of the data set in ``CLASSES``.
    size : int, optional
        Width and height of all frames, pixels.
    strict : bool
        Stop at the first fault instead of reporting it.
    faces : bool
        Pack aligned crops of the face in each clip's video, with its landmarks. Videos with a face
        in less than half of their frames are left out.

    Raises
    ------
    UserError
        If ``out`` holds another set, keys collide, a split has no clip, or with ``strict`` a clip
        has a fault.
    """
    if not records or clips_per_shard < 1:
        raise UserError(f"{len(records)} clips to pack, {clips_per_shard} per shard: nothing to do")
    _check_keys(records)
    if strict:
        stop_at_fault([ClipFault(r.source, fault) for r in records for fault in r.faults])
    classes = tuple(classes or CLASSES[dataset])
    settings = PackSettings(clips_per_shard, size, faces)
    jobs = _make_jobs(records, out, len(classes), settings, strict)
    if (out / "index.json").is_file():
        return _load_finished(out, dataset, classes, settings, records, jobs)
    _check_unexpected(out, jobs)
    total = sum(len(job.records) for job in jobs)
    results = run_jobs(write_shard, jobs, total, workers, progress)
    _check_splits(records, results)
    return _finish(out, dataset, classes, settings, records, jobs, results)


def _check_keys(records: Sequence[ClipRecord]) -> None:
    sources: dict[str, str] = {}
    for record in records:
        if record.key in sources:
            raise UserError(
                f"clips {sources[record.key]} and {record.source} have the same key, "
                f"{record.key}: rename one of them"
            )
        sources[record.key] = record.source


def _make_jobs(
    records: Sequence[ClipRecord],
    out: Path,
    num_classes: int,
    settings: PackSettings,
    strict: bool,
) -> list[ShardJob]:
    """Distribute the clips of each split evenly over its shards."""
    by_split: dict[str, list[ClipRecord]] = defaultdict(list)
    for record in records:
        if not any(fault.left_out for fault in record.faults):
            by_split[record.split].append(record)
    jobs = []
    for split in sorted(by_split):
        clips = sorted(by_split[split], key=lambda r: hashlib.sha256(r.key.encode()).digest())
        num_shards = -(-len(clips) // settings.clips_per_shard)
        for i, rows in enumerate(np.array_split(np.arange(len(clips)), num_shards)):
            tar = out / f"{split}-{i:05d}.tar"
            members = tuple(clips[row] for row in rows)
            jobs.append(ShardJob(tar, members, num_classes, settings, strict))
    return jobs


def _load_finished(
    out: Path,
    dataset: str,
    classes: tuple[str, ...],
    settings: PackSettings,
    records: Sequence[ClipRecord],
    jobs: Sequence[ShardJob],
) -> Index:
    """Return the index of a finished set if it was packed from these records and files."""
    if not (out / REPORT).is_file():
        raise UserError(
            f"{out} holds shards, but no {REPORT} to compare with: remove it, or choose an "
            "empty --out"
        )
    index, report = read_index(out), PackReport.read(out / REPORT)
    if report.settings != settings:
        raise UserError(
            f"{out} was packed with {report.settings}: give the same, or choose an empty --out"
        )
    # threads, because the file system takes most of the time
    with ThreadPoolExecutor(8) as pool:
        sources = _hash_sources(records, list(pool.map(ShardJob.digest, jobs)))
    if (index.name, index.classes, report.sources) != (dataset, classes, sources):
        held = f"{index.name}, {sum(s.clips for s in index.shards)} clips"
        raise UserError(
            f"{out} holds another data set ({held}), or its lists or frames have changed since: "
            "choose an empty --out"
        )
    if any(job.strict for job in jobs):
        stop_at_fault([ClipFault(p.clip, Fault(p.kind, p.reason)) for p in report.problems])
    return index


def _check_unexpected(out: Path, jobs: Sequence[ShardJob]) -> None:
    """Refuse other files: a program that reads all tars of the folder would read clips twice."""
    expected = {file.name for job in jobs for file in job.files} | {REPORT}
    names = sorted(file.name for file in out.iterdir()) if out.is_dir() else []
    for name in names:
        if name not in expected and not name.startswith("."):
            raise UserError(
                f"{out} holds {name}, which is no shard of this set: choose an empty --out"
            )


def _check_splits(records: Sequence[ClipRecord], results: Sequence[ShardResult]) -> None:
    packed = {result.shard.split for result in results if result.shard}
    empty = sorted({record.split for record in records} - packed - {NO_SPLIT})
    if not empty:
        return
    lost = [f"; clip {s}: {f.reason}" for r in results for s, f in r.faults if f.left_out]
    raise UserError(f"no clip of {empty[0]} could be packed{''.join(lost[:1])} (is --root right?)")


def _finish(
    out: Path,
    dataset: str,
    classes: tuple[str, ...],
    settings: PackSettings,
    records: Sequence[ClipRecord],
    jobs: Sequence[ShardJob],
    results: Sequence[ShardResult],
) -> Index:
    """Write the report and the index, and remove what only resuming needs."""
    shards = tuple(result.shard for result in results if result.shard)
    index = Index(out, dataset, classes, shards, content_hash(dataset, classes, shards))
    sources = _hash_sources(records, [result.digest for result in results])
    _remove_temporary_files(out, jobs)
    make_report(index, records, results, settings, sources).write(out / REPORT)
    body = {
        "name": dataset,
        "classes": list(classes),
        "shards": [asdict(shard) for shard in shards],
        "hash": index.hash,
    }
    write_json(out / "index.json", body)
    shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
    return index


def _hash_sources(records: Sequence[ClipRecord], digests: Sequence[str]) -> str:
    """Return a hash of what a set was packed from: digests of shards, and faults of the lists."""
    faults = [[r.source, asdict(fault)] for r in records for fault in r.faults]
    return hash_json([list(digests), faults])


def _remove_temporary_files(out: Path, jobs: Sequence[ShardJob]) -> None:
    """Remove the partial files of killed runs, which may be large."""
    prefixes = tuple(f".{file.name}." for job in jobs for file in job.files)
    for file in out.iterdir():
        if file.name.startswith(prefixes):
            file.unlink()
