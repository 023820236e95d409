"""Find the people of a packed set by clustering face descriptors.

A clip's descriptor is the mean of dlib's over a few frames (a ResNet trained on the distance of
faces). Clusters are those of average linkage: the mean distance of two of them, over all pairs of
their clips, decides whether they are one person. Density methods were passed over: DBSCAN joins all
people between whom there is a chain of similar faces, HDBSCAN leaves clips out as noise.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dfer_dist.data.loading.frame_sampling import sample_evenly
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path
from dfer_dist.utils.process_pool import Advance, Progress, run_jobs

Floats = NDArray[np.floating]

#: Largest mean distance of clips of one person. dlib's threshold for two pictures is 0.6, and means
#: over frames are closer; but to split one person leaks, and to join two does not.
DISTANCE = 0.55
NUM_FRAMES = 5  # of a clip
_SIZE = 64  # pixels of a face on the sheet
_ROWS, _COLUMNS, _LABEL_WIDTH = 60, 12, 190
_DIMENSIONS = 128


@dataclass(frozen=True)
class Faces:
    """The faces of N clips.

    Attributes
    ----------
    keys : list of N str
    descriptors : float32 [N, 128]
        NaN for a clip without a face.
    pictures : list of N bytes
        A face of each clip as JPEG, 64 x 64 pixels; empty without one.
    """

    keys: list[str]
    descriptors: Floats
    pictures: list[bytes]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which clips have a face, bool [N]."""
        return np.isfinite(self.descriptors[:, 0])


@dataclass(frozen=True)
class People:
    """Groups of clips by face.

    Attributes
    ----------
    group_of : dict of str to str
        By key: ``face-0001`` for the largest cluster; ``no-face-KEY`` for a clip without a face.
    confidence : dict of str to float
        The silhouette of each clip with a face, -1 to 1: how much closer it is to its own cluster
        than to the next one; 0 for the only clip of a cluster (Rousseeuw, Journal of Computational
        and Applied Mathematics 20, 1987).
    """

    group_of: dict[str, str]
    confidence: dict[str, float]


def describe_faces(
    index: Index, file: Path, workers: int | None = None, progress: Progress | None = None
) -> Faces:
    """Describe the faces of a set, or read them from ``file``, where they are stored.

    Parameters
    ----------
    index : Index
    file : Path
        ``.npz``; it is written anew if it is of another set.
    workers, progress
        As for :func:`~dfer_dist.utils.process_pool.run_jobs`.

    Raises
    ------
    UserError
        If dlib is missing, or a clip is damaged.
    """
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["index_hash"]) == index.hash:
                pictures = [bytes(picture) for picture in stored["pictures"]]
                return Faces(stored["keys"].tolist(), stored["descriptors"], pictures)
    jobs = [(index, shard) for shard in range(len(index.shards))]
    total = sum(shard.clips for shard in index.shards)
    parts = run_jobs(_describe_shard, jobs, total, workers, progress)
    faces = Faces(
        keys=[key for part in parts for key in part.keys],
        descriptors=np.concatenate([part.descriptors for part in parts]),
        pictures=[picture for part in parts for picture in part.pictures],
    )
    with atomic_path(file) as temporary:
        np.savez_compressed(
            temporary,
            index_hash=np.array(index.hash),
            keys=np.array(faces.keys),
            descriptors=faces.descriptors,
            # fixed width: a JPEG does not end with a zero
            pictures=np.array(faces.pictures, dtype=np.bytes_),
        )
    return faces


def _describe_shard(job: tuple[Index, int], advance: Advance) -> Faces:
    from dfer_dist.data.faces.tracking import load_models

    (index, shard), models = job, load_models()
    reader, faces = ClipReader(index), Faces([], np.empty(0), [])
    rows = []
    for row in range(index.shards[shard].clips):
        try:
            clip = reader.read(shard, row, lambda _, n: sample_evenly(n, NUM_FRAMES))
        except DamagedClip as e:
            raise UserError(f"{e}: copy the shard again") from e
        found = [face for frame in clip.frames if (face := models.describe_largest(frame))]
        faces.keys.append(clip.key)
        faces.pictures.append(_jpeg(found[0][1]) if found else b"")
        own = np.full(_DIMENSIONS, np.nan)
        if found:
            own = np.mean([descriptor for descriptor, _ in found], axis=0)
        rows.append(own)
        advance(1)
    return Faces(faces.keys, np.array(rows, np.float32).reshape(-1, _DIMENSIONS), faces.pictures)


def _jpeg(face: np.ndarray) -> bytes:
    out = io.BytesIO()
    # without the margin of the window
    face = face[40:-40, 40:-40] if min(face.shape[:2]) > 2 * _SIZE else face
    Image.fromarray(face).resize((_SIZE, _SIZE), Image.Resampling.LANCZOS).save(out, "JPEG")
    return out.getvalue()


def cluster_faces(faces: Faces, distance: float = DISTANCE) -> People:
    """Group clips by face.

    Takes memory and time proportional to the number of pairs: 6,000 clips took 0.5 GB and 25 s.

    Parameters
    ----------
    faces : Faces
    distance : float
        Clusters are joined while the mean distance of their clips is at most this.

    Raises
    ------
    UserError
        If fewer than two clips have a face.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.metrics import silhouette_samples

    vectors = faces.descriptors[faces.found].astype(np.float64)
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} of {len(faces.keys)} clips have a face: too few")
    labels = fcluster(linkage(vectors, "average"), distance, "distance")
    sizes = Counter(labels.tolist())
    if 1 < len(sizes) < len(vectors):
        sure = silhouette_samples(vectors, labels)
    else:
        sure = np.zeros(len(vectors))
    order = sorted(sizes, key=lambda c: (-sizes[c], c))
    names = {c: f"face-{number:04d}" for number, c in enumerate(order, 1)}
    keys = [key for key, found in zip(faces.keys, faces.found, strict=True) if found]
    group_of = {key: f"no-face-{key}" for key in faces.keys}
    group_of |= {key: names[c] for key, c in zip(keys, labels.tolist(), strict=True)}
    return People(group_of, dict(zip(keys, np.round(sure, 4).tolist(), strict=True)))


def draw_people(faces: Faces, people: People, path: Path) -> int:
    """Draw the largest clusters, the least certain clips of each first; return how many.

    The picture shows people: keep it where the data set may be.
    """
    pictures = dict(zip(faces.keys, faces.pictures, strict=True))
    members: dict[str, list[str]] = {}
    for key in sorted(people.confidence, key=lambda k: people.confidence[k]):
        members.setdefault(people.group_of[key], []).append(key)
    shown = [name for name in sorted(members)[:_ROWS] if len(members[name]) > 1]
    size = (_LABEL_WIDTH + _COLUMNS * _SIZE, max(len(shown), 1) * _SIZE)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(shown):
        own = members[name]
        mean = float(np.mean([people.confidence[key] for key in own]))
        text = f"{name}: {len(own)} clips\nsilhouette {mean:.2f}"
        draw.multiline_text((8, row * _SIZE + 16), text, "black")
        _paste(sheet, [pictures[key] for key in own[:_COLUMNS]], row * _SIZE)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return len(shown)


def _paste(sheet: Image.Image, pictures: Sequence[bytes], top: int) -> None:
    for column, jpeg in enumerate(pictures):
        sheet.paste(Image.open(io.BytesIO(jpeg)), (_LABEL_WIDTH + column * _SIZE, top))
