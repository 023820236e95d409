"""Finding the face of a film and following it: dlib's detector and its 68 landmarks, on frames that stream by once.

Faces are looked for in the whole, reduced frame now and then, and whenever the main one is lost; in between each is found again in a small upright window where it was
last, which is quick, and which lets it tilt further than the detector alone could follow. The weights come
with the package ``face-recognition-models``.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from dfer_dist.data.faces.alignment import FacePlacement, face_pose, pose_matrix, to_frame, warp
from dfer_dist.utils.errors import UserError

_EVERY = 10  # frames from one look at the whole frame to the next, while the face that weighs most is being followed
_AREA = (
    960 * 540
)  # pixels of the frame as the detector sees it: its smallest face has 80 pixels, 15 % of the height
_LARGER = 2.0  # small frames are enlarged by this at most
_START, _STAY = (
    0.25,
    -0.1,
)  # detector scores from which a face begins, and still is one, where one just was
_PATIENCE = 10  # frames that a lost face is still looked for where it was
_SIDE = 256  # of the window in which a known face is looked for, pixels
_BOX = 120  # side of a face's box in that window, pixels: the detector gives boxes about two eye distances wide
_WINDOW = FacePlacement(_BOX / 2.05 / _SIDE, 0.37)  # the box's centre is in the middle then
_SAME = 0.6  # descriptors nearer than this are one person (dlib's own threshold)


@dataclass(frozen=True)
class Track:
    """The one face of a film.

    Attributes
    ----------
    points : float32 array [T, 68, 2]
        Landmarks in pixels of the frame; NaN where the face was not found.
    shots : int64 array [T]
        Which unbroken piece a frame belongs to, -1 where the face was not found.
    """

    points: np.ndarray
    shots: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """In which frames the face was found, bool [T]."""
        return self.shots >= 0


@dataclass
class _Face:
    """A face followed without a break longer than the patience."""

    frames: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    weight: float = 0.0  # size x score, summed over frames
    best: float = -math.inf
    portrait: tuple[np.ndarray, Any] = (
        np.empty(0),
        None,
    )  # window and landmarks of the surest frame
    person: np.ndarray | None = None  # descriptor of the portrait, once it was asked for

    @property
    def pose(self) -> np.ndarray:
        return face_pose(self.points[-1])

    def add(self, frame: int, seen: _Seen) -> None:
        self.frames.append(frame)
        self.points.append(seen.points)
        self.weight += math.exp(self.pose[2]) * max(seen.score, 0.0)
        if seen.score > self.best:
            self.best, self.portrait = seen.score, (seen.window, seen.shape)

    def covers(self, x: float, y: float) -> bool:
        """Whether a point is on this face."""
        pose = self.pose
        return math.hypot(x - pose[0], y - pose[1]) < 1.2 * math.exp(pose[2])


@dataclass(frozen=True)
class _Seen:
    score: float
    points: np.ndarray  # [68, 2] in the frame
    window: np.ndarray
    shape: Any  # the same landmarks in the window, as dlib holds them


def track_face(frames: Iterable[np.ndarray]) -> Track:
    """Find and follow the face that a film is about.

    Of several people the one is taken whose face's size times the detector's score, summed over all frames, is largest: large,
    long and sure. Where a face is lost and found again (out of the picture, a cut), pieces are one person's if they do not overlap in
    time and dlib's face descriptor, which is not kept, says so.

    Parameters
    ----------
    frames : iterable of uint8 arrays [H, W, 3], RGB
        Read once; none is kept.

    Raises
    ------
    UserError
        If dlib or the weights are not installed.
    """
    models = load_models()
    done: list[_Face] = []
    live: list[_Face] = []
    count = 0
    for count, frame in enumerate(frames, 1):
        now = count - 1
        for face in live:
            _follow(models, frame, now, face)
        leader = max(done + live, key=lambda f: f.weight, default=None)
        if now % _EVERY == 0 or leader is None or leader.frames[-1] < now:
            live += _look(models, frame, now, live)
        gone = [
            f
            for i, f in enumerate(live)
            if now - f.frames[-1] >= _PATIENCE or _doubles(f, live[:i])
        ]
        done += gone
        live = [f for f in live if all(f is not g for g in gone)]
    return _gather(models, done + live, count)


def _follow(models: Models, frame: np.ndarray, now: int, face: _Face) -> None:
    seen = models.see(frame, pose_matrix(face.pose, _WINDOW, _SIDE), _STAY)
    if seen:
        face.add(now, seen)


def _look(models: Models, frame: np.ndarray, now: int, live: list[_Face]) -> list[_Face]:
    """Faces anywhere in the frame that nobody follows yet; one found where a lost one was goes on with that."""
    new: list[_Face] = []
    for x, y, size in models.detect(frame):
        owner = next((f for f in live + new if f.covers(x, y)), None)
        if owner and owner.frames[-1] == now:
            continue
        seen = models.see(
            frame, pose_matrix(np.array([x, y, math.log(size), 0.0]), _WINDOW, _SIDE), _STAY
        )
        if seen is None:
            continue
        if owner is None:
            owner = _Face()
            new.append(owner)
        owner.add(now, seen)
    return new


def _doubles(face: _Face, older: list[_Face]) -> bool:
    x, y = face.pose[:2]
    return any(f.frames[-1] == face.frames[-1] and f.covers(x, y) for f in older)


def _gather(models: Models, pieces: list[_Face], count: int) -> Track:
    """Join pieces into persons, and take the person of the greatest weight."""
    persons: list[list[_Face]] = []
    for piece in sorted(pieces, key=lambda f: (-f.weight, f.frames[0])):
        own = next((person for person in persons if _joins(models, piece, person)), None)
        if own is None:
            persons.append([piece])
        else:
            own.append(piece)
    points = np.full((count, 68, 2), np.nan, np.float32)
    shots = np.full(count, -1)
    for shot, piece in enumerate(
        max(persons, key=lambda person: sum(f.weight for f in person), default=[])
    ):
        points[piece.frames], shots[piece.frames] = np.array(piece.points), shot
    return Track(points, shots)


def _joins(models: Models, piece: _Face, person: list[_Face]) -> bool:
    if any(not set(piece.frames).isdisjoint(f.frames) for f in person):
        return False
    return bool(np.linalg.norm(models.describe(piece) - models.describe(person[0])) < _SAME)


class Models:
    """dlib's detector, landmarks and descriptor, loaded once a process."""

    def __init__(self) -> None:
        try:
            import dlib

            files = importlib.metadata.files("face-recognition-models") or []
        except (ImportError, importlib.metadata.PackageNotFoundError) as e:
            raise UserError(
                "finding faces needs dlib and its weights: pip install 'dfer_dist[faces]'"
            ) from e
        # by its list of files: importing that package needs pkg_resources, which newer setuptools no longer have
        paths = {file.name: str(file.locate()) for file in files}
        self._dlib = dlib
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(paths["shape_predictor_68_face_landmarks.dat"])
        self._person = dlib.face_recognition_model_v1(
            paths["dlib_face_recognition_resnet_model_v1.dat"]
        )

    def detect(self, frame: np.ndarray) -> list[tuple[float, float, float]]:
        """Faces anywhere: x and y between the eyes and the distance of the eyes, roughly, largest face first."""
        image = Image.fromarray(frame).convert("L")
        scale = min(_LARGER, math.sqrt(_AREA / (image.width * image.height)))
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.BILINEAR,
        )
        boxes, _, _ = self._detector.run(np.asarray(image), 0, _START)
        found = [
            (b.center().x / scale, b.center().y / scale, b.width() / scale / 2.05) for b in boxes
        ]
        # the box's centre is near the tip of the nose
        return sorted([(x, y - 0.55 * size, size) for x, y, size in found], key=lambda f: -f[2])

    def see(self, frame: np.ndarray, matrix: np.ndarray, least: float) -> _Seen | None:
        """The face in the middle of a window, given by its matrix to the frame; None if none scores ``least``."""
        window = warp(frame, matrix, _SIDE)
        boxes, scores, _ = self._detector.run(window, 0, least)
        near = [(s, b) for s, b in zip(scores, boxes, strict=True) if self._fits(b)]
        if not near:
            return None
        score, box = max(near, key=lambda sb: sb[0])
        shape = self._landmarks(window, box)
        points = np.array([(p.x, p.y) for p in shape.parts()], np.float64)
        return _Seen(score, to_frame(matrix, points), window, shape)

    @staticmethod
    def _fits(box: Any) -> bool:
        centre = box.center()
        return (
            math.hypot(centre.x - _SIDE / 2, centre.y - _SIDE / 2) < _BOX / 2
            and 0.6 < box.width() / _BOX < 1.7
        )

    def describe(self, face: _Face) -> np.ndarray:
        """A vector by which two pictures of one person are near each other, float64 [128]."""
        if face.person is None:
            window, shape = face.portrait
            face.person = np.array(self._person.compute_face_descriptor(window, shape, 0, 0.25))
        return face.person


@cache
def load_models() -> Models:
    return Models()
