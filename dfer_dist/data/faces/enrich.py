"""Add landmarks and parsing maps to packed clips, as sidecar tars next to their shards.

Shards are processed in parallel, and each sidecar is written as a whole. Those that an earlier run
finished are kept, so the same call resumes a stopped run. The shards themselves are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from dfer_dist.data.faces.parsing_maps import draw_regions, encode_maps, fill_missing
from dfer_dist.data.faces.precomputed import (
    hash_landmarks,
    hash_maps,
    load_landmarks,
    load_maps,
)
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


class _Row(NamedTuple):
    """The members of a clip in a sidecar, and which of its frames have a face, bool [T]."""

    key: str
    members: dict[str, bytes]
    has_face: np.ndarray


@dataclass(frozen=True)
class _Recipe:
    """How to make a sidecar of a shard.

    Attributes
    ----------
    kind : str
    made : dict
        Identifies the recipe; stored in the JSON file of the sidecar.
    explicit : bool
        Whether the user chose the source.
    rows : callable
        Yields the clips.
    """

    kind: str
    made: dict[str, Any]
    explicit: bool
    rows: Callable[[EnrichJob], Iterator[_Row]]


def enrich(
    root: Path,
    request: EnrichRequest,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
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


def _enrich_shard(job: EnrichJob, advance: Callable[[int], None]) -> list[EnrichResult]:
    # one after the other: maps may be drawn from the landmarks added before
    results = []
    if LANDMARKS in job.request.kinds:
        results.append(_add_sidecar(job, _landmark_recipe(job), advance))
    if PARSING in job.request.kinds:
        results.append(_add_sidecar(job, _parsing_recipe(job), advance))
    return results


def _landmark_recipe(job: EnrichJob) -> _Recipe:
    folder = job.request.landmarks_from
    if folder is None:
        return _Recipe(LANDMARKS, {"by": "dlib"}, False, _detect_landmarks)
    made = {"by": "import", "files_sha256": hash_landmarks(folder, job.keys)}
    return _Recipe(LANDMARKS, made, True, partial(_import_landmarks, folder))


def _parsing_recipe(job: EnrichJob) -> _Recipe:
    folder, parser = job.request.parsing_from, job.request.parser
    if folder is not None:
        made = {"by": "import", "files_sha256": hash_maps(folder, job.keys)}
        return _Recipe(PARSING, made, True, partial(_import_maps, folder))
    if parser is not None:
        made = {"by": "parser", "parser_sha256": sha256_file(parser)}
        return _Recipe(PARSING, made, True, partial(_parse_frames, parser))
    made = {"by": REGIONS, "landmarks_sha256": _landmarks_sha256(job)}
    return _Recipe(PARSING, made, False, _draw_maps)


def _add_sidecar(job: EnrichJob, recipe: _Recipe, advance: Callable[[int], None]) -> EnrichResult:
    """Make a sidecar, unless a complete one exists."""
    kind, clips, path = recipe.kind, job.index.shards[job.shard].clips, job.path
    existing = _existing_sidecar(path, kind)
    if existing is not None:
        is_same = all(existing.get(name) == value for name, value in recipe.made.items())
        if recipe.explicit and not is_same:
            raise UserError(
                f"{sidecar_tar_path(path, kind).name} exists, made in another way "
                f"({existing.get('by')}): remove *.{kind}.tar and *.{kind}.json to make it again"
            )
        # maps that were drawn from other landmarks are drawn again
        is_outdated = existing.get("by") == recipe.made["by"] == REGIONS and not is_same
        if not is_outdated:
            advance(clips)
            return EnrichResult(kind, existing, clips, kept=True)
    made = {**recipe.made, "frames": 0, "without_face": 0, "clips_without_face": 0}

    def rows() -> Iterator[tuple[str, dict[str, bytes]]]:
        for row in recipe.rows(job):
            made["frames"] += len(row.has_face)
            made["without_face"] += int((~row.has_face).sum())
            made["clips_without_face"] += int(not row.has_face.any())
            yield row.key, row.members
            advance(1)

    try:
        write_sidecar_tar(path, kind, rows(), made)
    except DamagedClip as e:
        raise UserError(f"{e}: copy the shard again") from e
    return EnrichResult(kind, made, clips, kept=False)


def _existing_sidecar(path: Path, kind: str) -> dict[str, Any] | None:
    """Return how the sidecar of a shard was made, or None if there is no complete one."""
    try:
        return dict(read_manifest(path, kind).made)
    except UserError:
        return None


def _landmarks_sha256(job: EnrichJob) -> str:
    try:
        return read_manifest(job.path, LANDMARKS).sha256
    except UserError as e:
        raise UserError(
            f"{e}; maps are drawn from landmarks: give --landmarks too (or --parser FILE)"
        ) from e


def _read_clips(job: EnrichJob) -> Iterator[tuple[str, list[bytes]]]:
    """Yield keys and JPEGs of a shard's clips, in order."""
    reader = ClipReader(job.index)
    for row in range(job.index.shards[job.shard].clips):
        yield reader.key(job.shard, row), reader.jpegs(job.shard, row)


def _jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return height and width."""
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    return height, width


def _landmark_row(key: str, points: np.ndarray, found: np.ndarray) -> _Row:
    landmarks = array_bytes(points.astype(np.float32))
    return _Row(key, {"landmarks.npy": landmarks, "found.npy": array_bytes(found)}, found)


def _map_row(key: str, maps: Iterable[np.ndarray]) -> _Row:
    maps = list(maps)
    pngs, starts = encode_maps(maps)
    members = {"maps.png": pngs, "starts.npy": array_bytes(starts)}
    return _Row(key, members, np.array([labels.any() for labels in maps]))


def _detect_landmarks(job: EnrichJob) -> Iterator[_Row]:
    # imported here: only detection needs it
    from dfer_dist.data.faces.tracking import track_face

    for key, jpegs in _read_clips(job):
        track = track_face(map(_decode_jpeg, jpegs))
        yield _landmark_row(key, track.points, track.found)


def _import_landmarks(folder: Path, job: EnrichJob) -> Iterator[_Row]:
    for key, jpegs in _read_clips(job):
        points, found = load_landmarks(folder, key, len(jpegs), _jpeg_size(jpegs[0]))
        yield _landmark_row(key, points, found)


def _draw_maps(job: EnrichJob) -> Iterator[_Row]:
    landmarks = read_sidecar_tar(job.path, LANDMARKS)
    for (key, jpegs), (_, members) in zip(_read_clips(job), landmarks, strict=True):
        found = read_array(members["found.npy"])
        points = fill_missing(read_array(members["landmarks.npy"]), found)
        frames = zip(points, jpegs, strict=True)
        yield _map_row(key, (draw_regions(own, *_jpeg_size(jpeg)) for own, jpeg in frames))


def _import_maps(folder: Path, job: EnrichJob) -> Iterator[_Row]:
    for key, jpegs in _read_clips(job):
        yield _map_row(key, load_maps(folder, key, len(jpegs)))


def _parse_frames(file: Path, job: EnrichJob) -> Iterator[_Row]:
    # imported here: it imports torch, which landmarks do not need
    from dfer_dist.data.faces.parsing_network import load_parser

    parse = load_parser(file)
    for key, jpegs in _read_clips(job):
        yield _map_row(key, parse(map(_decode_jpeg, jpegs)))


def _remove_temporary_files(index: Index) -> None:
    """Remove the partial files of killed runs."""
    assert isinstance(index.root, Path)
    for shard in range(len(index.shards)):
        for kind in (LANDMARKS, PARSING):
            for file in index.root.glob(f".{sidecar_tar_path(index.path(shard), kind).stem}.*"):
                file.unlink(missing_ok=True)
