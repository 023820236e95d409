"""Packing: clip records -> shards, sidecars and the index that :mod:`dfer_dist.data.shards.index` reads, with a report beside them.

::

    OUT/
      fold1-00000.tar  fold1-00000.parquet  …
      pack_report.json     counts by split and class, and every fault with its clip
      index.json           written last: without it the set is not complete
      .packing/            while packing: a record of each finished shard, by which a killed run goes on
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.data.packing.writer import STATE, Done, Job, hash_json, stop_at_fault, write_shard
from dfer_dist.data.shards.index import Index, Shard, content_hash, read_index, sidecar_path
from dfer_dist.data.shards.sidecars import LANDMARKS, sidecar_tar_path
from dfer_dist.data.sources.records import CLASSES, ClipRecord, Fault
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.process_pool import run_jobs

REPORT = "pack_report.json"


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
    """Write shards, sidecars, the report and, last, the index. The same records and files give the same bytes.

    Within a split, clips are laid in the order of a hash of their keys, so that neighbours in a shard are no neighbours in
    the data set. JPEG frames are copied as they are. After a kill the same call goes on: shards that were finished are kept,
    and a shard that was not never counts.

    Parameters
    ----------
    records : sequence of ClipRecord
        Clips of all splits.
    dataset : str
        Name of the set.
    out : Path
        Folder for the shards. If it holds this very set already, nothing is done: lists, settings, and names and sizes of
        the frame files are compared, their content is not.
    clips_per_shard : int
        Most clips in a shard, 1 or more.
    workers : int, optional
        Processes; all cores that this one may use by default, none beside this one if 1.
    progress : callable, optional
        Called with clips done and clips in all.
    classes : sequence of str, optional
        Names in label order; those of :data:`~dfer_dist.data.sources.records.CLASSES` by default.
    size : int, optional
        Side in pixels that all frames are brought to.
    strict : bool
        Stop at the first fault instead of reporting it.
    faces : bool
        Take aligned crops of the face from each clip's film, and write its landmarks beside the shards
        (:mod:`dfer_dist.data.shards.sidecars`). Films with a face in less than half of their frames are left out.

    Raises
    ------
    UserError
        If ``out`` holds another data set, keys collide, a split is left without a clip, or, when strict, of the first fault.
    """
    if not records or clips_per_shard < 1:
        raise UserError(f"{len(records)} clips to pack, {clips_per_shard} a shard: nothing to do")
    _check_keys(records)
    classes = tuple(classes or CLASSES[dataset])
    if strict:
        stop_at_fault([(r.source, fault) for r in records for fault in r.faults])
    jobs = _split_jobs(records, out, clips_per_shard, len(classes), size, strict, faces)
    settings = {"clips_per_shard": clips_per_shard, "resize": size, "faces": faces}
    if (out / "index.json").is_file():
        return _same_set(out, dataset, classes, settings, records, jobs, strict)
    _check_unexpected(out, jobs)
    done = list(
        run_jobs(write_shard, jobs, sum(len(job.records) for job in jobs), workers, progress)
    )
    ordered = tuple(d.shard for d in done if d.shard)
    _check_splits(records, ordered, [pair for d in done for pair in d.faults])
    index = Index(out, dataset, classes, ordered, content_hash(dataset, classes, ordered))
    report = _report(index, records, jobs, done)
    _tidy(out, jobs)
    write_json(
        out / REPORT,
        {**report, "settings": settings, "sources": _sources(records, [d.digest for d in done])},
    )
    body = {
        "name": dataset,
        "classes": list(classes),
        "shards": [asdict(s) for s in ordered],
        "hash": index.hash,
    }
    write_json(out / "index.json", body)
    shutil.rmtree(out / STATE, ignore_errors=True)
    return index


def _check_keys(records: Sequence[ClipRecord]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        if record.key in seen:
            raise UserError(
                f"clips {seen[record.key]} and {record.source} have the same key, {record.key}: rename one of them"
            )
        seen[record.key] = record.source


def _same_set(
    out: Path,
    dataset: str,
    classes: tuple[str, ...],
    settings: dict[str, Any],
    records: Sequence[ClipRecord],
    jobs: Sequence[Job],
    strict: bool,
) -> Index:
    """The set that ``out`` holds, if it was packed from these records, files and settings."""
    if not (out / REPORT).is_file():
        raise UserError(
            f"{out} holds shards, but no {REPORT} to compare with: remove it, or choose an empty --out"
        )
    index, report = read_index(out), read_json(out / REPORT)
    if report["settings"] != settings:
        words = " ".join(
            _option(name, value) for name, value in report["settings"].items() if value
        )
        raise UserError(f"{out} was packed with {words}: give the same, or choose an empty --out")
    with ThreadPoolExecutor(8) as pool:  # threads: it is the file system that answers
        same = report["sources"] == _sources(records, list(pool.map(Job.digest, jobs)))
    if (index.name, index.classes) != (dataset, classes) or not same:
        held = f"{index.name}, {sum(s.clips for s in index.shards)} clips"
        raise UserError(
            f"{out} holds another data set ({held}), or its lists or frames have changed since: choose an empty --out"
        )
    if strict:
        stop_at_fault([(p["clip"], Fault(p["kind"], p["reason"])) for p in report["problems"]])
    return index


def _option(name: str, value: Any) -> str:
    return f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {value}"


def _files(job: Job) -> tuple[Path, ...]:
    extra = sidecar_tar_path(job.tar, LANDMARKS)
    return (
        job.tar,
        sidecar_path(job.tar),
        *((extra, extra.with_suffix(".json")) if job.faces else ()),
    )


def _check_unexpected(out: Path, jobs: Sequence[Job]) -> None:
    own = {path.name for job in jobs for path in _files(job)} | {REPORT}
    unexpected = (
        sorted(f.name for f in out.iterdir() if f.name not in own and f.name[0] != ".")
        if out.is_dir()
        else []
    )
    if (
        unexpected
    ):  # shards of another cut would be read twice by whoever takes all tars in the folder
        raise UserError(
            f"{out} holds {unexpected[0]}, which is no shard of this set: choose an empty --out"
        )


def _check_splits(
    records: Sequence[ClipRecord], shards: Sequence[Shard], faults: Sequence[tuple[str, Fault]]
) -> None:
    empty = sorted({r.split for r in records} - {s.split for s in shards} - {"none"})
    if empty:
        source, fault = next(((c, f) for c, f in faults if f.left_out), ("", Fault("", "")))
        why = f"; clip {source}: {fault.reason}" if source else ""
        raise UserError(f"no clip of {empty[0]} could be packed{why} (is --root right?)")


def _split_jobs(
    records: Sequence[ClipRecord],
    out: Path,
    clips_per_shard: int,
    num_classes: int,
    size: int | None,
    strict: bool,
    faces: bool,
) -> list[Job]:
    by_split: dict[str, list[ClipRecord]] = defaultdict(list)
    for record in records:
        if not any(fault.left_out for fault in record.faults):
            by_split[record.split].append(record)
    jobs = []
    for split in sorted(by_split):
        clips = sorted(by_split[split], key=lambda r: hashlib.sha256(r.key.encode()).digest())
        count = -(-len(clips) // clips_per_shard)
        for i, part in enumerate(np.array_split(np.arange(len(clips)), count)):
            jobs.append(
                Job(
                    out / f"{split}-{i:05d}.tar",
                    tuple(clips[j] for j in part),
                    num_classes,
                    size,
                    strict,
                    faces,
                )
            )
    return jobs


def _report(
    index: Index, records: Sequence[ClipRecord], jobs: Sequence[Job], done: Sequence[Done]
) -> dict[str, Any]:
    """Counts by split and class, and every fault with its clip, in the order of the records."""
    loaded: dict[str, list[Fault]] = defaultdict(list)
    for source, fault in (pair for d in done for pair in d.faults):
        loaded[source].append(fault)
    problems = [
        {"clip": r.source, "split": r.split, **asdict(fault)}
        for r in records
        for fault in (*r.faults, *loaded.get(r.source, ()))
    ]
    splits = {}
    for split in dict.fromkeys(sorted(r.split for r in records)):
        shards = [s for s in index.shards if s.split == split]
        counts = np.sum(
            [s.histogram for s in shards] or [(0,) * len(index.classes)], axis=0
        ).tolist()
        splits[split] = {
            "listed": sum(r.split == split for r in records),
            "clips": sum(counts),
            "frames": sum(
                d.frames for job, d in zip(jobs, done, strict=True) if job.records[0].split == split
            ),
            "problems": sum(p["split"] == split for p in problems),
            "classes": dict(zip(index.classes, counts, strict=True)),
        }
    total = {name: sum(s[name] for s in splits.values()) for name in ("listed", "clips", "frames")}
    encoded = sum(d.encoded for d in done)
    about = {"dataset": index.name, "index_hash": index.hash, **total, "encoded_frames": encoded}
    return {**about, "splits": splits, "problems": problems}


def _sources(records: Sequence[ClipRecord], digests: Sequence[str]) -> str:
    """A hash over what a set was packed from: all shards' digests, and the clips that the lists themselves left out."""
    return hash_json(
        [list(digests), [[r.source, asdict(fault)] for r in records for fault in r.faults]]
    )


def _tidy(out: Path, jobs: Sequence[Job]) -> None:
    """Remove the half-written files of killed runs, which may be large."""
    names = tuple(f".{path.name}." for job in jobs for path in _files(job))
    for file in out.iterdir():
        if file.name.startswith(names):
            file.unlink()
