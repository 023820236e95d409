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
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from dfer_dist.data.faces.crop import FaceOptions
from dfer_dist.data.packing import report
from dfer_dist.data.packing.shard_writer import STATE_FOLDER, ShardJob, hash_json, write_shard
from dfer_dist.data.shards.index import EXTRAS, Index, content_hash, read_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.sources.frame_order import find_sequences
from dfer_dist.data.sources.records import CLASSES, NO_SPLIT, ClipRecord, clip_files
from dfer_dist.data.video.image import find_turn
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from dfer_dist.utils.process_pool import run_jobs

logger = logging.getLogger(__name__)


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
    faces: bool | FaceOptions = False,
    max_bad_frames: float | None = None,
    unread: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Index:
    """Write shards, sidecars, the report and, last, the index.

    The same records and files give the same bytes, and the same call resumes a killed run. If
    ``out`` holds a set of the same lists, settings, file names and sizes, nothing is done.

    Parameters
    ----------
    records : sequence of ClipRecord
    dataset, out : str, Path
        Name of the set, and folder for the shards.
    workers, progress : optional
        See :func:`~dfer_dist.utils.process_pool.run_jobs`.
    classes : sequence of str, optional
        Names in label order; by default those in ``CLASSES``.
    clips_per_shard, size, faces, max_bad_frames : optional
        See :class:`~dfer_dist.data.packing.report.PackSettings`.
    strict : bool
        Stop at the first fault instead of reporting it.
    unread, notes : optional
        Of the :class:`~dfer_dist.data.sources.records.Listing`, for the report.

    Raises
    ------
    UserError
        If ``out`` holds another set, keys collide, a split has no clip, or a fault is ``strict``.
    """
    settings = report.PackSettings.of(clips_per_shard, size, faces, max_bad_frames)
    plan = _Plan(records, dataset, out, tuple(classes or CLASSES[dataset]), settings, strict)
    plan.check_records()
    if (out / "index.json").is_file():
        return plan.load_finished()
    plan.check_folder()
    return plan.write(workers, progress, unread or {}, notes)


@dataclass(frozen=True)
class _Plan:
    """A set to pack, with the arguments of :func:`pack`."""

    records: Sequence[ClipRecord]
    dataset: str
    out: Path
    classes: tuple[str, ...]
    settings: report.PackSettings
    strict: bool

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """The extra columns of the sidecars: what any clip has."""
        return tuple(name for name in EXTRAS if any(getattr(r, name) for r in self.records))

    @cached_property
    def jobs(self) -> list[ShardJob]:
        """The shards to write: the clips of each split are distributed evenly over them."""
        by_split: dict[str, list[ClipRecord]] = defaultdict(list)
        for record in self.records:
            if not any(fault.left_out for fault in record.faults):
                by_split[record.split].append(record)
        jobs = []
        for split in sorted(by_split):
            # a hash of the key shuffles the clips
            clips = sorted(by_split[split], key=lambda r: hashlib.sha256(r.key.encode()).digest())
            num_shards = -(-len(clips) // self.settings.clips_per_shard)
            for i, rows in enumerate(np.array_split(np.arange(len(clips)), num_shards)):
                tar = self.out / f"{split}-{i:05d}.tar"
                members = tuple(clips[row] for row in rows)
                jobs.append(
                    ShardJob(
                        tar, members, len(self.classes), self.settings, self.strict, self.extras
                    )
                )
        return jobs

    def check_records(self) -> None:
        """Reject an empty set, equal keys and, if strict, any fault of the lists."""
        per_shard = self.settings.clips_per_shard
        if not self.records or per_shard < 1:
            raise UserError(
                f"{len(self.records)} clips to pack, {per_shard} per shard: nothing to do"
            )
        sources: dict[str, str] = {}
        for record in self.records:
            if record.key in sources:
                raise UserError(
                    f"clips {sources[record.key]} and {record.source} have the same key, "
                    f"{record.key}: rename one of them"
                )
            sources[record.key] = record.source
        if self.strict:
            problems = (report.list_problems(r, r.faults) for r in self.records)
            report.check_strict(list(chain.from_iterable(problems)))

    def load_finished(self) -> Index:
        """Return the index in the folder if it was packed from these records and files."""
        out = self.out
        if not (out / report.REPORT).is_file():
            raise UserError(
                f"{out} holds shards, but no {report.REPORT} to compare with: remove it, or "
                "choose an empty --out"
            )
        index, stored = read_index(out), report.PackReport.read(out / report.REPORT)
        if stored.settings != self.settings:
            raise UserError(
                f"{out} was packed with {stored.settings}: give the same, or choose an empty --out"
            )
        if any(problem.reason == report.ONLY_FRAMES for problem in stored.problems):
            raise UserError(
                f"{out} was packed by an earlier version, which detected faces in videos only: "
                "choose an empty --out"
            )
        # threads, because the file system takes most of the time
        with ThreadPoolExecutor(8) as pool:
            sources = self._hash_sources(list(pool.map(ShardJob.digest, self.jobs)))
        held = (index.name, index.classes, stored.sources)
        if held != (self.dataset, self.classes, sources):
            raise UserError(
                f"{out} holds another data set ({index.name}, {stored.clips} clips), or its lists "
                "or frames have changed since, or an earlier version read them in another order: "
                "choose an empty --out"
            )
        if self.strict:
            report.check_strict(stored.problems)
        if stored.decoders != report.decoder_versions():
            self._compare_rules(index, stored)
        return index

    def _compare_rules(self, index: Index, stored: report.PackReport) -> None:
        """Check that frames which another version has packed are those of this version.

        Copied JPEGs are, unless their metadata turn them. Of encoded frames it is not known.
        """
        logger.info("%s was packed by another version: its frames are compared", self.out)
        difference = self._find_sequences(stored.problems)
        if difference is None and stored.encoded_frames < stored.frames:
            difference = _find_turned_clip(index)
        if difference:
            raise UserError(
                f"{self.out} was packed by an earlier version, which {difference}: "
                "choose an empty --out"
            )
        if stored.encoded_frames:
            logger.warning(
                "%s: %s frames were encoded by another version of this program or of a decoder, "
                "and may differ from those of this one: to renew them choose an empty --out",
                *(self.out, f"{stored.encoded_frames:,}"),
            )
            return
        with suppress(OSError):
            # of a folder that may not be written
            replace(stored, decoders=report.decoder_versions()).write(self.out / report.REPORT)

    def _find_sequences(self, problems: Sequence[report.Problem]) -> str | None:
        """Name a packed clip whose frames are several sequences, which are not packed now."""
        left_out = {problem.clip for problem in problems if problem.left_out}
        records = (record for job in self.jobs for record in job.records)
        packed = (record for record in records if record.source not in left_out)
        found = (record.source for record in packed if find_sequences(clip_files(record)))
        clip = next(found, None)
        return clip and f"joined the sequences of frames in the folder of clip {clip}"

    def check_folder(self) -> None:
        """Reject files of other sets: a program that reads all tars would read clips twice."""
        expected = {file.name for job in self.jobs for file in job.files} | {report.REPORT}
        names = sorted(file.name for file in self.out.iterdir()) if self.out.is_dir() else []
        for name in names:
            if name not in expected and not name.startswith("."):
                raise UserError(
                    f"{self.out} holds {name}, which is no shard of this set: choose an empty --out"
                )

    def write(
        self,
        workers: int | None,
        progress: Callable[[int, int], None] | None,
        unread: Mapping[str, int],
        notes: Sequence[str],
    ) -> Index:
        """Write shards, report and index, and remove what only resuming needs."""
        num_clips = sum(len(job.records) for job in self.jobs)
        results = run_jobs(write_shard, self.jobs, num_clips, workers, progress)
        shards = tuple(result.shard for result in results if result.shard)
        packed = {shard.split for shard in shards}
        empty = sorted({record.split for record in self.records} - packed - {NO_SPLIT})
        if empty:
            problems = (problem for result in results for problem in result.problems)
            lost = next((p for p in problems if p.left_out and p.split == empty[0]), None)
            message = f"no clip of {empty[0]} could be packed"
            if lost:
                message += f"; clip {lost.clip}: {lost.reason}"
            if lost is None or lost.kind == "missing":
                message += " (is --root right?)"
            raise UserError(message)
        left_out = report.list_left_out(self.records, results)
        set_hash = content_hash(self.dataset, self.classes, shards, left_out, self.extras)
        index = Index(self.out, self.dataset, self.classes, shards, set_hash, left_out, self.extras)
        sources = self._hash_sources([result.digest for result in results])
        # partial files of killed runs, which may be large
        prefixes = tuple(f".{file.name}." for job in self.jobs for file in job.files)
        for file in self.out.iterdir():
            if file.name.startswith(prefixes):
                file.unlink()
        made = report.make_report(
            index, self.records, results, self.settings, sources, unread, notes
        )
        made.write(self.out / report.REPORT)
        body = {
            "name": self.dataset,
            "classes": self.classes,
            "shards": [vars(shard) for shard in shards],
            "hash": index.hash,
        }
        if left_out:
            body["left_out"] = [vars(clip) for clip in left_out]
        if self.extras:
            body["extras"] = self.extras
        write_json(self.out / "index.json", body)
        shutil.rmtree(self.out / STATE_FOLDER, ignore_errors=True)
        return index

    def _hash_sources(self, digests: Sequence[str]) -> str:
        """Return a hash of the set's sources: digests of shards, and faults of the lists."""
        faults = [[r.source, vars(fault)] for r in self.records for fault in r.faults]
        return hash_json([digests, faults])


def _find_turned_clip(index: Index) -> str | None:
    """Name a clip with a frame that its metadata turn, and that was copied."""
    reader = ClipReader(index)
    try:
        for shard, entry in enumerate(index.shards):
            for row in range(entry.clips):
                if any(map(find_turn, reader.iterate_jpegs(shard, row))):
                    key = reader.key(shard, row)
                    return f"did not turn frames by their metadata, such as those of clip {key}"
    except DamagedClip as e:
        raise UserError(f"{e}: copy the shard again") from e
    return None
