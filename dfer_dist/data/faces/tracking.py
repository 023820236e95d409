"""Detect and track the face of a video with dlib, on frames that are read once.

There are two detectors: ``hog`` (histograms of oriented gradients) finds roughly frontal, upright
faces; ``cnn``, a convolutional network that torch runs, is added to it for others. The whole frame,
at reduced size, is searched for faces now and then, and whenever the main face is lost. In between,
each face is detected again in a small upright window where it was last: that is fast, and it allows
more rotation than the detector alone. In the window the network is used only where ``hog`` finds
nothing. The weights are in the package ``face-recognition-models``.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dfer_dist.data.faces.alignment import FacePlacement, face_pose, pose_matrix, to_frame, warp
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from dfer_dist.data.faces.cnn_detector import CnnDetector

DETECTORS = HOG, CNN = "hog", "cnn"

# Search the whole frame every so many frames, while the main face is being tracked.
_SEARCH_INTERVAL = 10

# Number of pixels of a frame for the search. The smallest detected face has 80 of them in height,
# which is 15 % of the frame.
_SEARCH_PIXELS = 960 * 540

# Small frames are enlarged by this factor at most.
_MAX_ENLARGEMENT = 2.0

# Minimum scores of the detector for a new face, and for one that is being tracked.
_NEW_SCORE, _TRACKED_SCORE = 0.25, -0.1

# Minimum score of the network, which finds faces of any angle. Landmarks need upright ones: windows
# at these angles (degrees) are tried until ``hog`` finds the face.
_CNN_SCORE = 0.0
_NEW_ANGLES = (0, 30, -30, 60, -60, 90, -90)

# A lost face is looked for in its last place for so many frames.
_MAX_LOST_FRAMES = 10

# Width of the window in which a tracked face is detected, and of the face's box in it, pixels.
_WINDOW_SIZE, _BOX_SIZE = 256, 120

# Width of dlib's boxes in distances between the eyes.
_BOX_WIDTH = 2.05

# Of the network's boxes: their width, and how far the eyes are above their center, in distances
# between the eyes; and dlib's box of the same face, its center below theirs and its width, as parts
# of their width. Medians of 111 faces.
_CNN_BOX_WIDTH, _CNN_EYES, _CNN_TO_HOG = 2.24, 0.36, (0.06, 1.06)

# It puts the center of the box into the middle of the window.
_WINDOW = FacePlacement(_BOX_SIZE / _BOX_WIDTH / _WINDOW_SIZE, 0.37)

# Descriptors that are closer than this belong to one person (dlib's own threshold).
_SAME_PERSON_DISTANCE = 0.6


@dataclass(frozen=True)
class Track:
    """The main face of a video.

    Attributes
    ----------
    points : float32 array [T, 68, 2]
        Landmarks in pixels of the frame; NaN where the face was not found.
    shots : int64 array [T]
        Number of the uninterrupted part that a frame belongs to, -1 where the face was not found.
    """

    points: np.ndarray
    shots: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Frames in which the face was found, bool [T]."""
        return self.shots >= 0


@dataclass(frozen=True)
class _Detection:
    """A detected face: landmarks [68, 2] in the frame, and in the window as dlib's object."""

    score: float
    points: np.ndarray
    window: np.ndarray
    window_points: Any


@dataclass
class _Tracklet:
    """A face that was tracked without a longer interruption."""

    best: _Detection
    frames: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    # size times score, summed over frames
    weight: float = 0.0
    # of the best detection, computed on demand
    descriptor: np.ndarray | None = None

    @property
    def pose(self) -> np.ndarray:
        return face_pose(self.points[-1])

    def add(self, frame: int, detection: _Detection) -> None:
        self.frames.append(frame)
        self.points.append(detection.points)
        self.weight += math.exp(self.pose[2]) * max(detection.score, 0.0)
        if detection.score > self.best.score:
            self.best = detection

    def covers(self, x: float, y: float) -> bool:
        """Return whether a point is on this face."""
        pose = self.pose
        return math.hypot(x - pose[0], y - pose[1]) < 1.2 * math.exp(pose[2])


def track_face(frames: Iterable[np.ndarray], detector: str = HOG) -> Track:
    """Detect and track the main face of a video.

    Of several people the one with the largest sum over all frames of the size of the face times
    the detector's score is returned. If a face is lost and found again, as after a cut, both parts
    belong to one person if they do not overlap in time and dlib's face descriptors, which are not
    stored, are similar.

    Parameters
    ----------
    frames : iterable of uint8 arrays [H, W, 3], RGB
        Read once, and not kept.
    detector : str
        One of :data:`DETECTORS`.

    Raises
    ------
    UserError
        If dlib or its weights are not installed.
    """
    models = load_models(detector)
    ended: list[_Tracklet] = []
    active: list[_Tracklet] = []
    num_frames = 0
    for num_frames, frame in enumerate(frames, 1):
        now = num_frames - 1
        for face in active:
            detection = models.detect_in_window(frame, face.pose)
            if detection:
                face.add(now, detection)
        main = max(ended + active, key=lambda f: f.weight, default=None)
        if now % _SEARCH_INTERVAL == 0 or main is None or main.frames[-1] < now:
            active += _find_new_faces(models, frame, now, active)
        still_active: list[_Tracklet] = []
        for i, face in enumerate(active):
            is_lost = now - face.frames[-1] >= _MAX_LOST_FRAMES
            is_ended = is_lost or _is_duplicate(face, active[:i])
            (ended if is_ended else still_active).append(face)
        active = still_active
    return _merge_tracklets(models, ended + active, num_frames)


def _find_new_faces(
    models: DlibModels, frame: np.ndarray, now: int, active: list[_Tracklet]
) -> list[_Tracklet]:
    """Return the faces in the frame that are not tracked yet.

    A face that is found where another one was lost continues that one.
    """
    new: list[_Tracklet] = []
    for x, y, size in models.search(frame):
        face = next((f for f in active + new if f.covers(x, y)), None)
        if face and face.frames[-1] == now:
            continue
        pose = np.array([x, y, math.log(size), 0.0])
        detection = models.detect_new(frame, pose)
        if detection is None:
            continue
        if face is None:
            face = _Tracklet(detection)
            new.append(face)
        face.add(now, detection)
    return new


def _is_duplicate(face: _Tracklet, older: list[_Tracklet]) -> bool:
    x, y = face.pose[:2]
    return any(f.frames[-1] == face.frames[-1] and f.covers(x, y) for f in older)


def _merge_tracklets(models: DlibModels, tracklets: list[_Tracklet], num_frames: int) -> Track:
    """Group tracklets by person, and return the person of the largest weight."""
    people: list[list[_Tracklet]] = []
    for tracklet in sorted(tracklets, key=lambda t: (-t.weight, t.frames[0])):
        person = next((p for p in people if _is_same_person(models, tracklet, p)), None)
        if person is None:
            people.append([tracklet])
        else:
            person.append(tracklet)
    main = max(people, key=lambda group: sum(t.weight for t in group), default=[])
    points = np.full((num_frames, 68, 2), np.nan, np.float32)
    shots = np.full(num_frames, -1)
    for shot, tracklet in enumerate(main):
        points[tracklet.frames] = np.array(tracklet.points)
        shots[tracklet.frames] = shot
    return Track(points, shots)


def _is_same_person(models: DlibModels, tracklet: _Tracklet, person: list[_Tracklet]) -> bool:
    if any(not set(tracklet.frames).isdisjoint(other.frames) for other in person):
        return False
    difference = models.describe(tracklet) - models.describe(person[0])
    return bool(np.linalg.norm(difference) < _SAME_PERSON_DISTANCE)


class DlibModels:
    """dlib's face detectors, landmark predictor and face descriptor.

    Parameters
    ----------
    detector : str
        One of :data:`DETECTORS`.

    Raises
    ------
    UserError
        If dlib or its weights are not installed.
    """

    def __init__(self, detector: str = HOG) -> None:
        try:
            import dlib

            files = importlib.metadata.files("face-recognition-models") or []
        except (ImportError, importlib.metadata.PackageNotFoundError) as e:
            raise UserError(
                "detecting faces needs dlib and its weights: pip install 'dfer_dist[faces]'"
            ) from e
        # not by importing the package, which needs pkg_resources: setuptools 81 removes it
        paths = {file.name: str(file.locate()) for file in files}
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(paths["shape_predictor_68_face_landmarks.dat"])
        self._descriptor = dlib.face_recognition_model_v1(
            paths["dlib_face_recognition_resnet_model_v1.dat"]
        )
        self._rectangle = dlib.rectangle
        self._cnn: CnnDetector | None = None
        if detector == CNN:
            # imported here: it imports torch
            from dfer_dist.data.faces.cnn_detector import CnnDetector

            self._cnn = CnnDetector(Path(paths["mmod_human_face_detector.dat"]))

    def search(self, frame: np.ndarray) -> list[tuple[float, float, float]]:
        """Return the faces in a frame, largest first.

        Each is x and y of the point between the eyes, and the distance of the eyes, approximately.
        """
        image = Image.fromarray(frame).convert("L")
        scale = min(_MAX_ENLARGEMENT, math.sqrt(_SEARCH_PIXELS / (image.width * image.height)))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        boxes, _, _ = self._detector.run(_resize(image, size), 0, _NEW_SCORE)
        faces = []
        for box in boxes:
            center, distance = box.center(), box.width() / scale / _BOX_WIDTH
            # the center of the box is near the tip of the nose
            faces.append((center.x / scale, center.y / scale - 0.55 * distance, distance))
        if self._cnn:
            for face in self._cnn.detect(_resize(Image.fromarray(frame), size), _CNN_SCORE):
                distance = face.width / scale / _CNN_BOX_WIDTH
                faces.append((face.x / scale, face.y / scale - _CNN_EYES * distance, distance))
        return sorted(faces, key=lambda face: -face[2])

    def detect_new(self, frame: np.ndarray, pose: np.ndarray) -> _Detection | None:
        """Return the face at a pose whose angle is unknown if the network found it, or None."""
        down = np.array([0.0, _CNN_EYES * math.exp(pose[2])])
        for degrees in _NEW_ANGLES if self._cnn else ():
            turned = pose.copy()
            turned[3] = angle = math.radians(degrees)
            # around the center of the face
            turned[:2] += down - [-math.sin(angle) * down[1], math.cos(angle) * down[1]]
            detection = self.detect_in_window(frame, turned, only_hog=True)
            if detection and detection.score > _NEW_SCORE:
                return detection
        return self.detect_in_window(frame, pose)

    def detect_in_window(
        self, frame: np.ndarray, pose: np.ndarray, only_hog: bool = False
    ) -> _Detection | None:
        """Return the face in the middle of an upright window around a pose, or None."""
        matrix = pose_matrix(pose, _WINDOW, _WINDOW_SIZE)
        window = warp(frame, matrix, _WINDOW_SIZE)
        boxes, scores, _ = self._detector.run(window, 0, _TRACKED_SCORE)
        central = [(s, b) for s, b in zip(scores, boxes, strict=True) if _is_central(b)]
        if self._cnn and not central and not only_hog:
            central = self._detect_with_network(window)
        if not central:
            return None
        score, box = max(central, key=lambda pair: pair[0])
        shape = self._landmarks(window, box)
        points = np.array([(p.x, p.y) for p in shape.parts()], np.float64)
        return _Detection(score, to_frame(matrix, points), window, shape)

    def _detect_with_network(self, window: np.ndarray) -> list[tuple[float, Any]]:
        """Return the scores and boxes of the faces that the network finds in a window."""
        assert self._cnn is not None
        down, wider = _CNN_TO_HOG
        found = []
        for face in self._cnn.detect(window, _CNN_SCORE):
            y, half = face.y + down * face.width, wider * face.width / 2
            edges = (face.x - half, y - half, face.x + half, y + half)
            found.append((face.score, self._rectangle(*map(round, edges))))
        return [(score, box) for score, box in found if _is_central(box)]

    def describe(self, face: _Tracklet) -> np.ndarray:
        """Return the descriptor of a face, float64 [128]; those of one person are similar."""
        if face.descriptor is None:
            face.descriptor = self._describe(face.best)
        return face.descriptor

    def describe_largest(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return descriptor and window of the largest face of a frame, or None.

        They are float64 [128] and uint8 [256, 256, 3].
        """
        for x, y, size in self.search(frame)[:1]:
            found = self.detect_in_window(frame, np.array([x, y, math.log(size), 0.0]))
            if found:
                return self._describe(found), found.window
        return None

    def _describe(self, found: _Detection) -> np.ndarray:
        return np.array(
            self._descriptor.compute_face_descriptor(found.window, found.window_points, 0, 0.25)
        )


def _resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _is_central(box: Any) -> bool:
    """Return whether a box is in the middle of the window, and of about the expected size."""
    center = box.center()
    distance = math.hypot(center.x - _WINDOW_SIZE / 2, center.y - _WINDOW_SIZE / 2)
    return distance < _BOX_SIZE / 2 and 0.6 < box.width() / _BOX_SIZE < 1.7


@cache
def load_models(detector: str = HOG) -> DlibModels:
    """Load dlib's models once per process."""
    return DlibModels(detector)
