"""Add landmarks and parsing maps to packed clips, as sidecar tars next to their shards.

Shards are processed in parallel, and each sidecar is written as a whole. Those that an earlier run
finished are kept, so the same call resumes a stopped run. The shards themselves are not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from dfer_dist.data.faces import precomputed
from dfer_dist.data.faces.parsing_maps import draw_regions, encode_map, fill_missing
from dfer_dist.data.shards import sidecars
from dfer_dist.data.shards.frame_buffer import FrameBuffer
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.data.shards.sidecars import LANDMARKS, PARSING, REGIONS, sidecar_tar_path
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file
from dfer_dist.utils.process_pool import Advance, Progress, run_jobs

# Decode as training does.
_decode_jpeg = partial(simplejpeg.decode_jpeg, fastdct=False, fastupsample=False)


@dataclass(frozen=True)
class EnrichRequest:
    """What to add to a packed set.

    Attributes
    ----------
    landmarks : bool
        Landmarks, detected by dlib unless ``landmarks_from`` is given.
    parsing : bool
        Parsing maps, drawn from landmarks unless ``parsing_from`` or ``parser`` is given.
    landmarks_from, parsing_from : Path, optional
        Folder of precomputed landmarks or maps.
    parser : Path, optional
        TorchScript file of a face-parsing network.
    """

    landmarks: bool = False
    parsing: bool = False
    landmarks_from: Path | None = None
    parsing_from: Path | None = None
    parser: Path | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sidecars to add."""
        requested = {
            LANDMARKS: self.landmarks or self.landmarks_from,
            PARSING: self.parsing or self.parsing_from or self.parser,
        }
        return tuple(kind for kind, value in requested.items() if value)


@dataclass(frozen=True)
class EnrichResult:
    """A sidecar that was added to a shard.

    Attributes
    ----------
    kind : str
    made : dict
        How it was made, as in its JSON file.
    clips : int
    kept : bool
        Whether it existed before.
    """

    kind: str
    made: dict[str, Any]
    clips: int
    kept: bool


@dataclass(frozen=True)
class EnrichJob:
    """A shard, by its position in the index, and what to add to it."""

    index: Index
    shard: int
    request: EnrichRequest

    @property
    def path(self) -> Path:
        """The tar of the shard."""
        return self.index.path(self.shard)

    @property
    def keys(self) -> list[str]:
        """Keys of the clips in the shard's order."""
        return self.index.sidecar(self.shard)["key"].to_pylist()


# The clips of a sidecar: key, members, and which of its frames have a face, bool [T].
_Members = Mapping[str, bytes | FrameBuffer]
_Rows = Iterator[tuple[str, _Members, np.ndarray]]


def enrich(
    root: Path,
    request: EnrichRequest,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[EnrichResult]:
    """Add sidecars to every shard of a set in a local folder. The same inputs give the same bytes.

    Parameters
    ----------
    root : Path
        Folder of the shards.
    request : EnrichRequest
    workers : int, optional
        Number of processes; by default one per available core.
    progress : callable, optional
        Called with the numbers of clips done and of all clips, each kind counted.

    Returns
    -------
    list of EnrichResult
        In the order of the index.

    Raises
    ------
    UserError
        If nothing is requested, a clip is damaged, precomputed files are missing or do not fit the
        clips, or a shard has such a sidecar that was made in another way.
    """
    kinds = request.kinds
    if not kinds:
        raise UserError("nothing to add: give --landmarks, --parsing, or both")
    if request.parsing_from and request.parser:
        raise UserError("--parsing-from and --parser exclude each other: give one of them")
    for path in (request.landmarks_from, request.parsing_from, request.parser):
        if path is not None and not path.exists():
            raise UserError(f"{path} is missing")
    index = load_index(root)
    jobs = [EnrichJob(index, shard, request) for shard in range(len(index.shards))]
    total = len(kinds) * sum(shard.clips for shard in index.shards)
    results = run_jobs(_enrich_shard, jobs, total, workers, progress)
    _remove_temporary_files(index)
    return [result for shard_results in results for result in shard_results]


def _enrich_shard(job: EnrichJob, advance: Advance) -> list[EnrichResult]:
    recipes = {LANDMARKS: _landmark_recipe, PARSING: _parsing_recipe}
    # one after the other: maps may be drawn from the landmarks added before
    return [_add_sidecar(job, kind, *recipes[kind](job), advance) for kind in job.request.kinds]


def _landmark_recipe(job: EnrichJob) -> tuple[dict[str, Any], _Rows]:
    """Return what identifies the landmarks, for the JSON file of the sidecar, and its clips."""
    folder = job.request.landmarks_from
    if folder is None:
        return {"by": "dlib"}, _detect_landmarks(job)
    files = (file for key in job.keys for file in precomputed.landmark_files(folder, key))
    sha256 = precomputed.hash_files(files)
    return {"by": "import", "files_sha256": sha256}, _import_landmarks(folder, job)


def _parsing_recipe(job: EnrichJob) -> tuple[dict[str, Any], _Rows]:
    """Return what identifies the maps, for the JSON file of the sidecar, and its clips."""
    folder, parser = job.request.parsing_from, job.request.parser
    if folder is not None:
        files = (file for key in job.keys for file in precomputed.map_files(folder, key))
        sha256 = precomputed.hash_files(files)
        return {"by": "import", "files_sha256": sha256}, _import_maps(folder, job)
    if parser is not None:
        return {"by": "parser", "parser_sha256": sha256_file(parser)}, _parse_frames(parser, job)
    return {"by": REGIONS, "landmarks_sha256": _landmarks_sha256(job)}, _draw_maps(job)


def _add_sidecar(
    job: EnrichJob, kind: str, recipe: dict[str, Any], clips: _Rows, advance: Advance
) -> EnrichResult:
    """Make a sidecar, unless a complete one exists."""
    num_clips, path = job.index.shards[job.shard].clips, job.path
    existing = _existing_sidecar(path, kind)
    if existing is not None:
        is_same = recipe.items() <= existing.items()
        if recipe["by"] in ("import", "parser") and not is_same:
            raise UserError(
                f"{sidecar_tar_path(path, kind).name} exists, made in another way "
                f"({existing.get('by')}): remove *.{kind}.tar and *.{kind}.json to make it again"
            )
        # maps that were drawn from other landmarks are drawn again
        is_outdated = existing.get("by") == recipe["by"] == REGIONS and not is_same
        if not is_outdated:
            advance(num_clips)
            return EnrichResult(kind, existing, num_clips, kept=True)
    made = {**recipe, "frames": 0, "without_face": 0, "clips_without_face": 0}

    def rows() -> Iterator[tuple[str, _Members]]:
        for key, members, has_face in clips:
            made["frames"] += len(has_face)
            made["without_face"] += int((~has_face).sum())
            made["clips_without_face"] += int(not has_face.any())
            yield key, members
            advance(1)

    try:
        sidecars.write_sidecar_tar(path, kind, rows(), made)
    except DamagedClip as e:
        raise UserError(f"{e}: copy the shard again") from e
    return EnrichResult(kind, made, num_clips, kept=False)


def _existing_sidecar(path: Path, kind: str) -> dict[str, Any] | None:
    """Return how the sidecar of a shard was made, or None if there is no complete one."""
    try:
        return dict(sidecars.read_manifest(path, kind).made)
    except UserError:
        return None


def _landmarks_sha256(job: EnrichJob) -> str:
    try:
        return sidecars.read_manifest(job.path, LANDMARKS).sha256
    except UserError as e:
        raise UserError(
            f"{e}; maps are drawn from landmarks: give --landmarks too (or --parser FILE)"
        ) from e


def _read_clips(job: EnrichJob) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield keys and JPEGs of a shard's clips, in order."""
    reader = ClipReader(job.index)
    for row in range(job.index.shards[job.shard].clips):
        yield reader.key(job.shard, row), reader.iterate_jpegs(job.shard, row)


def _jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return height and width."""
    return simplejpeg.decode_jpeg_header(jpeg)[:2]


def _map_rows(job: EnrichJob, key: str, maps: Iterable[np.ndarray]) -> _Rows:
    """Yield the row of a clip; its maps are valid until the next one is taken."""
    has_face = []
    with closing(FrameBuffer(job.path.parent)) as pngs:
        for labels in maps:
            pngs.append(encode_map(labels))
            has_face.append(labels.any())
        starts = sidecars.array_bytes(np.array(pngs.offsets, np.int64))
        yield key, {"maps.png": pngs, "starts.npy": starts}, np.array(has_face)


def _detect_landmarks(job: EnrichJob) -> _Rows:
    # imported here: only detection needs it
    from dfer_dist.data.faces.tracking import track_face

    for key, jpegs in _read_clips(job):
        track = track_face(map(_decode_jpeg, jpegs))
        yield key, sidecars.landmark_members(track.points, track.found), track.found


def _import_landmarks(folder: Path, job: EnrichJob) -> _Rows:
    for key, jpegs in _read_clips(job):
        sizes = list(map(_jpeg_size, jpegs))
        points, found = precomputed.load_landmarks(folder, key, len(sizes), sizes[0])
        yield key, sidecars.landmark_members(points, found), found


def _draw_maps(job: EnrichJob) -> _Rows:
    landmarks = sidecars.read_sidecar_tar(job.path, LANDMARKS)
    for (key, jpegs), (_, members) in zip(_read_clips(job), landmarks, strict=True):
        found = sidecars.read_array(members["found.npy"])
        points = fill_missing(sidecars.read_array(members["landmarks.npy"]), found)
        frames = zip(points, jpegs, strict=True)
        maps = (draw_regions(own, *_jpeg_size(jpeg)) for own, jpeg in frames)
        yield from _map_rows(job, key, maps)


def _import_maps(folder: Path, job: EnrichJob) -> _Rows:
    for key, jpegs in _read_clips(job):
        sizes = list(map(_jpeg_size, jpegs))
        maps = precomputed.load_maps(folder, key, len(sizes), sizes[0])
        yield from _map_rows(job, key, maps)


def _parse_frames(file: Path, job: EnrichJob) -> _Rows:
    # imported here: it imports torch, which landmarks do not need
    from dfer_dist.data.faces.parsing_network import load_parser

    parse = load_parser(file)
    for key, jpegs in _read_clips(job):
        yield from _map_rows(job, key, parse(map(_decode_jpeg, jpegs)))


def _remove_temporary_files(index: Index) -> None:
    """Remove the partial files of killed runs."""
    assert isinstance(index.root, Path)
    for shard in range(len(index.shards)):
        for kind in (LANDMARKS, PARSING):
            for file in index.root.glob(f".{sidecar_tar_path(index.path(shard), kind).stem}.*"):
                file.unlink(missing_ok=True)
