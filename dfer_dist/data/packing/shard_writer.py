"""Write one shard with its sidecars, unless an earlier run has finished it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.data.faces.tracking import HOG
from dfer_dist.data.packing import report
from dfer_dist.data.packing.load_clip import load_clip
from dfer_dist.data.shards import sidecars
from dfer_dist.data.shards.frame_buffer import FrameBuffer
from dfer_dist.data.shards.index import Shard, sidecar_path, sidecar_schema
from dfer_dist.data.sources.names import printable
from dfer_dist.data.sources.records import ClipRecord, clip_files
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, sha256_file

# Folder next to the shards with a record of each finished one, until the set is complete.
STATE_FOLDER = ".packing"
# Members of a clip in the tar of landmarks, sorted.
_LANDMARKS = ("found.npy", "landmarks.npy")


@dataclass(frozen=True)
class ShardJob:
    """A shard to write.

    Attributes
    ----------
    tar : Path
    records : tuple of ClipRecord
    num_classes : int
    settings : report.PackSettings
    strict : bool
        Stop at the first fault.
    extras : tuple of str
        The extra columns of the sidecar.
    """

    tar: Path
    records: tuple[ClipRecord, ...]
    num_classes: int
    settings: report.PackSettings
    strict: bool
    extras: tuple[str, ...] = ()

    @property
    def state_file(self) -> Path:
        """The record that the shard is finished."""
        return self.tar.parent / STATE_FOLDER / f"{self.tar.name}.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that belong to the shard."""
        files = (self.tar, sidecar_path(self.tar))
        if not self.settings.faces:
            return files
        landmarks = sidecars.sidecar_tar_path(self.tar, sidecars.LANDMARKS)
        return (*files, landmarks, landmarks.with_suffix(".json"))

    def digest(self) -> str:
        """Return a hash of all that decides the shard's bytes, with file sizes for contents."""
        clips = [
            [r.key, r.label, r.split, r.source, r.listed_frames, _file_sizes(r)]
            for r in self.records
        ]
        settings = self.settings
        body = [self.tar.name, self.num_classes, settings.resize, settings.faces, clips]
        # without these the hash is that of earlier versions
        if settings.max_bad_frames is not None:
            body.append(settings.max_bad_frames)
        if settings.keep_uncropped:
            body.append("keep uncropped")
        if settings.detector != HOG:
            body.append(settings.detector)
        if self.extras:
            body.append({name: [getattr(r, name) for r in self.records] for name in self.extras})
        if any(r.start is not None or r.end is not None for r in self.records):
            body.append({"parts": [[r.start, r.end] for r in self.records]})
        return hash_json(body)


def _file_sizes(record: ClipRecord) -> list[tuple[str, int]]:
    """Return name and size in bytes of each file of a clip; the size of a broken link is -1."""
    sizes = []
    for file in clip_files(record):
        try:
            sizes.append((printable(file.name), os.stat(file).st_size))
        except OSError:
            sizes.append((printable(file.name), -1))
    return sizes


def hash_json(body: object) -> str:
    """Return the sha256 of an object as compact JSON, hex."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_shard(job: ShardJob, advance: Callable[[int], None]) -> report.ShardResult:
    """Write a shard, its sidecar and, for face crops, its landmarks.

    A shard that an earlier run finished is kept. ``advance`` is called with numbers of clips done.
    """
    digest = job.digest()
    result = _finished_result(job, digest)
    if result is None:
        # left by a run on other records or files
        job.state_file.unlink(missing_ok=True)
        result = _write_clips(job, digest, advance)
        result.write(job.state_file)
    else:
        advance(len(job.records))
    if job.strict:
        report.check_strict(result.problems)
    return result


def _finished_result(job: ShardJob, digest: str) -> report.ShardResult | None:
    """Return the result of an earlier run, which was written after its files, if they are whole."""
    try:
        result = report.ShardResult.read(job.state_file)
        shard = result.shard
        if shard and job.settings.faces:
            sidecars.read_manifest(job.tar, sidecars.LANDMARKS)
        is_whole = shard is None or (
            job.tar.stat().st_size == shard.bytes
            and sha256_file(sidecar_path(job.tar)) == shard.sidecar_sha256
        )
    except (UserError, OSError):
        # missing, of another version, or truncated by a full disk
        return None
    same_bytes = result.digest == digest and result.decoders == report.decoder_versions()
    is_outdated = any(problem.reason == report.ONLY_FRAMES for problem in result.problems)
    return result if is_whole and same_bytes and not is_outdated else None


def _write_clips(job: ShardJob, digest: str, advance: Callable[[int], None]) -> report.ShardResult:
    decoders = report.decoder_versions()
    rows: list[dict[str, Any]] = []
    landmarks = FrameBuffer(job.tar.parent)
    problems: list[report.Problem] = []
    encoded = dropped = 0
    unread = Counter[str]()
    settings = job.settings
    options = (settings.resize, settings.face_options, settings.max_bad_frames, job.tar.parent)
    with sidecars.write_tar(job.tar) as writer:
        for record in job.records:
            clip = load_clip(record, *options)
            with closing(clip.jpegs):
                problems += report.list_problems(record, clip.faults)
                if job.strict:
                    report.check_strict(problems)
                if not any(fault.left_out for fault in clip.faults):
                    rows.append(_write_clip(writer, record, clip.jpegs))
                    encoded += clip.num_encoded
                    dropped += clip.num_dropped
                    for _, array in sorted((clip.landmarks or {}).items()):
                        landmarks.append(array)
            unread.update(clip.unread)
            advance(1)
    shard = None
    if rows:
        shard = _write_sidecars(job, rows, landmarks)
    else:
        for file in job.files:
            file.unlink(missing_ok=True)
    frames = sum(row["frames"] for row in rows)
    return report.ShardResult(
        digest, shard, frames, encoded, tuple(problems), dropped, decoders, dict(unread)
    )


def _write_sidecars(job: ShardJob, rows: list[dict[str, Any]], landmarks: FrameBuffer) -> Shard:
    """Write what is next to the tar of a shard, and return the shard's entry in the index."""
    with atomic_path(sidecar_path(job.tar)) as temporary:
        table = pa.Table.from_pylist(rows, schema=sidecar_schema(job.extras))
        pq.write_table(table, temporary)
    if job.settings.faces:
        arrays = iter(landmarks)
        members = ((row["key"], {name: next(arrays) for name in _LANDMARKS}) for row in rows)
        made = {"by": "dfer pack --faces"}
        sidecars.write_sidecar_tar(job.tar, sidecars.LANDMARKS, members, made)
    landmarks.close()
    labels = [row["label"] for row in rows]
    return Shard(
        file=job.tar.name,
        split=job.records[0].split,
        clips=len(rows),
        bytes=job.tar.stat().st_size,
        histogram=tuple(np.bincount(labels, minlength=job.num_classes).tolist()),
        sha256=sha256_file(job.tar),
        sidecar_sha256=sha256_file(sidecar_path(job.tar)),
    )


def _write_clip(writer: Any, record: ClipRecord, jpegs: FrameBuffer) -> dict[str, Any]:
    """Add a clip to the tar and return its row of the sidecar."""
    meta = {
        "key": record.key,
        "label": record.label,
        "split": record.split,
        "source": record.source,
        "frames": len(jpegs),
        "offsets": jpegs.offsets,
    }
    text = json.dumps(meta, separators=(",", ":"), ensure_ascii=False)
    offset = writer.tarstream.offset
    writer.write({"__key__": record.key, "json": text.encode()})
    sidecars.add_member(writer, f"{record.key}.mjpg", jpegs.open(), sum(jpegs.sizes))
    size = writer.tarstream.offset - offset
    row = {**meta, "offset": offset, "size": size, "crc32": jpegs.crc32}
    labels = record.labels or (record.label,)
    return {**row, "group": record.group, "votes": record.votes, "labels": labels}
