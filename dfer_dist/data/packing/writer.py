"""Writing one shard with its sidecar, or finding that an earlier run wrote it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.data.packing.media import file_sizes, load_frames
from dfer_dist.data.shards.index import SIDECAR, Shard, sidecar_path
from dfer_dist.data.shards.sidecars import (
    LANDMARKS,
    read_manifest,
    sidecar_tar_path,
    write_sidecar_tar,
)
from dfer_dist.data.sources.records import ClipRecord, Fault
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, read_json, sha256_file, write_json

STATE = ".packing"  # folder beside the shards with a record of each finished one, while a set is not complete


@dataclass(frozen=True)
class Job:
    """A shard to be written: its file, its clips and how they are to be packed."""

    tar: Path
    records: tuple[ClipRecord, ...]
    num_classes: int
    size: int | None
    strict: bool
    faces: bool = False

    @property
    def state(self) -> Path:
        return self.tar.parent / STATE / f"{self.tar.name}.json"

    def digest(self) -> str:
        """What decides the shard's bytes, hashed, with names and sizes of files in place of their content."""
        clips = [
            [r.key, r.label, r.split, r.source, r.listed_frames, file_sizes(r)]
            for r in self.records
        ]
        return hash_json([self.tar.name, self.num_classes, self.size, self.faces, clips])


@dataclass(frozen=True)
class Done:
    """What became of a job: its shard (None where no clip was left), frames, and faults by clip."""

    digest: str
    shard: Shard | None
    frames: int
    encoded: int
    faults: tuple[tuple[str, Fault], ...]


def write_shard(job: Job, tick: Callable[[int], None]) -> Done:
    """Write a shard, its sidecar and, of faces, its landmarks, unless an earlier run finished them; ``tick`` is told of clips done."""
    digest = job.digest()
    done = _finished(job, digest)
    if done is None:
        job.state.unlink(missing_ok=True)  # of other records or files
        done = _write_clips(job, digest, tick)
        shard = asdict(done.shard) if done.shard else None
        faults = [[source, asdict(fault)] for source, fault in done.faults]
        write_json(job.state, {**asdict(done), "shard": shard, "faults": faults})
    else:
        tick(len(job.records))
    if job.strict:
        stop_at_fault(done.faults)
    return done


def _finished(job: Job, digest: str) -> Done | None:
    """What an earlier run wrote of this job, if it is whole: its record is written after shard and sidecar."""
    if not job.state.is_file():
        return None
    try:
        raw = read_json(job.state)
        shard = (
            Shard(**{**raw["shard"], "histogram": tuple(raw["shard"]["histogram"])})
            if raw["shard"]
            else None
        )
        faults = tuple((source, Fault(**fault)) for source, fault in raw["faults"])
    except (UserError, KeyError, TypeError):
        return None  # of another version, or cut by a full disk
    if raw["digest"] != digest:
        return None
    if shard:
        sidecar = sidecar_path(job.tar)
        whole = job.tar.is_file() and job.tar.stat().st_size == shard.bytes and sidecar.is_file()
        if not whole or sha256_file(sidecar) != shard.sidecar_sha256 or not _has_landmarks(job):
            return None
    return Done(digest, shard, raw["frames"], raw["encoded"], faults)


def _has_landmarks(job: Job) -> bool:
    try:
        return not job.faces or bool(read_manifest(job.tar, LANDMARKS))
    except UserError:
        return False


def _write_clips(job: Job, digest: str, tick: Callable[[int], None]) -> Done:
    from webdataset.writer import TarWriter  # it imports torch, which reading an index must not

    rows: list[dict[str, Any]] = []
    landmarks: list[tuple[str, dict[str, bytes]]] = []
    faults: list[tuple[str, Fault]] = []
    encoded = 0
    with (
        atomic_path(job.tar) as temporary,
        temporary.open("wb") as f,
        TarWriter(f, encoder=False, mtime=0) as writer,
    ):
        for record in job.records:
            clip = load_frames(record, job.size, job.faces)
            faults += [(record.source, fault) for fault in clip.faults]
            if job.strict:
                stop_at_fault(faults)
            if not clip.left_out:
                rows.append(_write_clip(writer, record, clip.jpegs))
                landmarks += [(record.key, clip.landmarks)] if clip.landmarks else []
                encoded += clip.encoded
            tick(1)
    if not rows:
        extra = sidecar_tar_path(job.tar, LANDMARKS)
        for file in (job.tar, sidecar_path(job.tar), extra, extra.with_suffix(".json")):
            file.unlink(missing_ok=True)
        return Done(digest, None, 0, 0, tuple(faults))
    with atomic_path(sidecar_path(job.tar)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SIDECAR), temporary)
    if job.faces:
        write_sidecar_tar(job.tar, LANDMARKS, landmarks, {"by": "dfer pack --faces"})
    histogram = tuple(
        np.bincount([row["label"] for row in rows], minlength=job.num_classes).tolist()
    )
    bytes_, hashes = (
        job.tar.stat().st_size,
        (sha256_file(job.tar), sha256_file(sidecar_path(job.tar))),
    )
    shard = Shard(job.tar.name, job.records[0].split, len(rows), bytes_, histogram, *hashes)
    return Done(digest, shard, sum(row["frames"] for row in rows), encoded, tuple(faults))


def _write_clip(writer: Any, record: ClipRecord, jpegs: list[bytes]) -> dict[str, Any]:
    """Add a clip to the tar and return its row of the sidecar."""
    starts = [0, *np.cumsum([len(b) for b in jpegs]).tolist()]
    meta = {
        "key": record.key,
        "label": record.label,
        "split": record.split,
        "source": record.source,
    }
    meta |= {"frames": len(jpegs), "offsets": starts}
    offset = writer.tarstream.offset
    text = json.dumps(meta, separators=(",", ":"), ensure_ascii=False)
    writer.write({"__key__": record.key, "json": text.encode(), "mjpg": b"".join(jpegs)})
    row = {"key": record.key, "label": record.label, "offset": offset, "frames": len(jpegs)}
    return {
        **row,
        "size": writer.tarstream.offset - offset,
        "crc32": [zlib.crc32(b) for b in jpegs],
    }


def stop_at_fault(faults: Sequence[tuple[str, Fault]]) -> None:
    if faults:
        source, fault = faults[0]
        raise UserError(
            f"clip {source}: {fault.reason} (without --strict such faults are reported)"
        )


def hash_json(body: object) -> str:
    return hashlib.sha256(
        json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()
