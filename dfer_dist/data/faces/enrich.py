"""Landmarks and parsing maps of packed clips, as extras beside their shards (:mod:`dfer_dist.data.shards.sidecars`).

Shards are worked on side by side, each extra whole or not at all; what an earlier run finished is kept, so that a stopped run goes on. The shards stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from dfer_dist.data.faces.imports import (
    digest_landmarks,
    digest_maps,
    import_landmarks,
    import_maps,
)
from dfer_dist.data.faces.parsing_maps import draw_regions, encode_maps, fill_missing
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.sidecars import (
    LANDMARKS,
    PARSING,
    REGIONS,
    array_bytes,
    read_array,
    read_manifest,
    read_sidecar_tar,
    sidecar_tar_path,
    write_sidecar_tar,
)
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file
from dfer_dist.utils.process_pool import run_jobs

Rows = Iterator[tuple[str, dict[str, bytes]]]


@dataclass(frozen=True)
class EnrichRequest:
    """What is to be added, and from where: landmarks by dlib unless ``landmarks_from`` is given; maps from landmarks unless ``parsing_from``, a
    folder of ready ones, or ``parser``, a network, is."""

    landmarks: bool = False
    parsing: bool = False
    landmarks_from: Path | None = None
    parsing_from: Path | None = None
    parser: Path | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        there = {
            LANDMARKS: self.landmarks or self.landmarks_from,
            PARSING: self.parsing or self.parsing_from or self.parser,
        }
        return tuple(kind for kind, wanted in there.items() if wanted)


@dataclass(frozen=True)
class Job:
    """A shard, and what it is to get."""

    index: Index
    shard: int
    wish: EnrichRequest

    @property
    def path(self) -> Path:
        return self.index.path(self.shard)

    @property
    def keys(self) -> list[str]:
        return self.index.sidecar(self.shard)["key"].to_pylist()


@dataclass(frozen=True)
class Added:
    """One extra: its kind, what its JSON says of how it was ``made``, its clips, and whether it was there already."""

    kind: str
    made: dict[str, Any]
    clips: int
    kept: bool


def enrich(
    root: Path,
    wish: EnrichRequest,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Added]:
    """Add what is wished for to every shard of a set in a local folder. The same inputs give the same bytes.

    Parameters
    ----------
    root : Path
        Folder of the shards.
    wish : EnrichRequest
    workers : int, optional
        Processes; all cores that this one may use by default, none beside this one if 1.
    progress : callable, optional
        Called with clips done and clips in all, each kind counted.

    Returns
    -------
    list of Added
        In the order of the index.

    Raises
    ------
    UserError
        If nothing is wished for, a clip is damaged, what is to be imported is missing or does not fit the clips, or a shard has such an extra already that was made
        otherwise than is asked for now.
    """
    kinds = wish.kinds
    if not kinds:
        raise UserError("nothing to add: give --landmarks, --parsing, or both")
    if wish.parsing_from and wish.parser:
        raise UserError("--parsing-from and --parser: maps can come from one of them only")
    for given in filter(None, (wish.landmarks_from, wish.parsing_from, wish.parser)):
        if not given.exists():
            raise UserError(f"{given} is missing")
    index = load_index(root)
    jobs = [Job(index, shard, wish) for shard in range(len(index.shards))]
    total = len(kinds) * sum(s.clips for s in index.shards)
    done = run_jobs(_add_to_shard, jobs, total, workers, progress)
    _tidy(index)
    return [added for own in done for added in own]


def _add_to_shard(job: Job, tick: Callable[[int], None]) -> list[Added]:
    wish, added = job.wish, []
    if LANDMARKS in wish.kinds:
        wanted: dict[str, Any] = {"by": "dlib"}
        rows = _detected
        if wish.landmarks_from:
            wanted = {
                "by": "import",
                "files_sha256": digest_landmarks(wish.landmarks_from, job.keys),
            }
            rows = _imported_landmarks
        added.append(_add(job, LANDMARKS, wanted, bool(wish.landmarks_from), rows, tick))
    if PARSING in wish.kinds:
        given = wish.parsing_from or wish.parser
        if wish.parsing_from:
            wanted, rows = (
                {"by": "import", "files_sha256": digest_maps(wish.parsing_from, job.keys)},
                _imported_maps,
            )
        elif wish.parser:
            wanted, rows = {"by": "parser", "parser_sha256": sha256_file(wish.parser)}, _parsed
        else:
            wanted, rows = {"by": REGIONS, "landmarks_sha256": _landmarks_sha256(job)}, _drawn
        added.append(_add(job, PARSING, wanted, given is not None, rows, tick))
    return added


def _add(
    job: Job,
    kind: str,
    wanted: dict[str, Any],
    given: bool,
    rows: Callable[[Job, dict[str, Any]], Rows],
    tick: Callable[[int], None],
) -> Added:
    """Make an extra, unless a whole one is there; ``given`` tells that the caller said what it is to be made from."""
    clips, path = job.index.shards[job.shard].clips, job.path
    there = _there(path, kind)
    same = there is not None and all(there.get(name) == value for name, value in wanted.items())
    redrawn = (
        there is not None and there.get("by") == wanted["by"] == REGIONS
    )  # from other landmarks than are there now
    if there is not None and given and not same:
        raise UserError(
            f"{sidecar_tar_path(path, kind).name} is there, made otherwise ({there.get('by')}): remove *.{kind}.tar and *.{kind}.json to make it anew"
        )
    if there is not None and (same or not redrawn):
        tick(clips)
        return Added(kind, there, clips, True)
    made = {**wanted, "frames": 0, "without_face": 0, "clips_without_face": 0}

    def ticking() -> Rows:
        for row in rows(job, made):
            yield row
            tick(1)

    try:
        write_sidecar_tar(path, kind, ticking(), made)
    except DamagedClip as e:
        raise UserError(f"{e}: copy the shard again") from e
    return Added(kind, made, clips, False)


def _there(path: Path, kind: str) -> dict[str, Any] | None:
    try:
        return dict(read_manifest(path, kind).made)
    except UserError:
        return None


def _landmarks_sha256(job: Job) -> str:
    try:
        return read_manifest(job.path, LANDMARKS).sha256
    except UserError as e:
        raise UserError(
            f"{e}; maps are drawn from landmarks: give --landmarks too (or --parser FILE)"
        ) from e


def _clips(job: Job) -> Iterator[tuple[str, list[bytes]]]:
    """Keys and JPEGs of a shard's clips, in order."""
    reader = ClipReader(job.index)
    for row in range(job.index.shards[job.shard].clips):
        yield reader.key(job.shard, row), reader.jpegs(job.shard, row)


def _size(jpeg: bytes) -> tuple[int, int]:
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    return height, width


def _landmark_row(
    made: dict[str, Any], key: str, points: np.ndarray, found: np.ndarray
) -> tuple[str, dict[str, bytes]]:
    made["frames"] += len(found)
    made["without_face"] += int((~found).sum())
    made["clips_without_face"] += int(not found.any())
    return key, {
        "landmarks.npy": array_bytes(points.astype(np.float32)),
        "found.npy": array_bytes(found),
    }


def _detected(job: Job, made: dict[str, Any]) -> Rows:
    from dfer_dist.data.faces.tracking import (
        track_face,  # dlib and its weights, which only detection needs
    )

    for key, jpegs in _clips(job):
        track = track_face(
            map(partial(simplejpeg.decode_jpeg, fastdct=False, fastupsample=False), jpegs)
        )
        yield _landmark_row(made, key, track.points, track.found)


def _imported_landmarks(job: Job, made: dict[str, Any]) -> Rows:
    assert job.wish.landmarks_from is not None
    for key, jpegs in _clips(job):
        yield _landmark_row(
            made, key, *import_landmarks(job.wish.landmarks_from, key, len(jpegs), _size(jpegs[0]))
        )


def _map_row(
    made: dict[str, Any], key: str, maps: list[np.ndarray]
) -> tuple[str, dict[str, bytes]]:
    empty = [not labels.any() for labels in maps]
    made["frames"] += len(maps)
    made["without_face"] += sum(empty)
    made["clips_without_face"] += all(empty)
    pngs, starts = encode_maps(maps)
    return key, {"maps.png": pngs, "starts.npy": array_bytes(starts)}


def _drawn(job: Job, made: dict[str, Any]) -> Rows:
    for (key, jpegs), (_, members) in zip(
        _clips(job), read_sidecar_tar(job.path, LANDMARKS), strict=True
    ):
        points = fill_missing(
            read_array(members["landmarks.npy"]), read_array(members["found.npy"])
        )
        yield _map_row(
            made,
            key,
            [draw_regions(own, *_size(jpeg)) for own, jpeg in zip(points, jpegs, strict=True)],
        )


def _imported_maps(job: Job, made: dict[str, Any]) -> Rows:
    assert job.wish.parsing_from is not None
    for key, jpegs in _clips(job):
        yield _map_row(made, key, import_maps(job.wish.parsing_from, key, len(jpegs)))


def _parsed(job: Job, made: dict[str, Any]) -> Rows:
    from dfer_dist.data.faces.parsing_network import (
        load_parser,  # torch, which landmarks need not wait for
    )

    assert job.wish.parser is not None
    parse = load_parser(job.wish.parser)
    for key, jpegs in _clips(job):
        frames = (simplejpeg.decode_jpeg(jpeg, fastdct=False, fastupsample=False) for jpeg in jpegs)
        yield _map_row(made, key, list(parse(frames)))


def _tidy(index: Index) -> None:
    """Remove the half-written files of killed runs."""
    assert isinstance(index.root, Path)
    for shard in range(len(index.shards)):
        for kind in (LANDMARKS, PARSING):
            for file in index.root.glob(f".{sidecar_tar_path(index.path(shard), kind).stem}.*"):
                file.unlink(missing_ok=True)
