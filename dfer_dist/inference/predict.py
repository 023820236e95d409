"""Predict a video, or a folder of frames, over time with an exported model.

Frames are processed as on the way to an evaluation: the crop and the JPEG of ``dfer pack``, the
choice of frames, the resizing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfer_dist.config.schema import Output
from dfer_dist.data.faces.crop import FACE_SIZE, MIN_FACE_FRACTION, find_face
from dfer_dist.data.faces.parsing_maps import fill_missing
from dfer_dist.data.loading.frame_sampling import eval_frames, sample_segments
from dfer_dist.data.loading.modalities import find_points
from dfer_dist.data.sources.compound import SEPARATOR
from dfer_dist.data.sources.names import printable
from dfer_dist.data.video.decode import DamagedVideo
from dfer_dist.evaluation.explain import ExplainedClip
from dfer_dist.evaluation.multilabel import choose_labels
from dfer_dist.inference.exported import ExportedModel, probabilities
from dfer_dist.inference.sources import FPS, Frames, open_frames, through_jpeg
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THUMBNAILS, _THUMBNAIL_SIZE = 8, (240, 240)
MAX_EXPLAINED = 6  # windows on a picture
# Seconds. The median clip has 70 frames in DFEW, 82 in MAFW (28 in FERV39k).
WINDOW, STEP = 3.0, 1.0


@dataclass(frozen=True)
class VideoPrediction:
    """Predictions of a video over time.

    Attributes
    ----------
    spans : float64 array [W, 2]
        Begin and end of each window, seconds from the first frame.
    logits : float32 array [W, C]
        NaN for a window without a face.
    faces : float64 array [W], or None
        Part of the window's frames in which the face was found; None if faces were not searched.
    seconds : float
        Duration of the video.
    interval : float
        Time between two frames, seconds.
    has_times : bool
        Whether that is known; for a folder of frames it may be assumed.
    thumbnails : list of uint8 [H, W, 3]
        Small copies of frames, from the middles of as many equal parts of the video; of the crops
        if faces were searched.
    explained : dict of int to ExplainedClip
        Some windows by their number, if asked for.
    output : Output
    temperature : float
        Divides the logits for :attr:`probabilities`.
    """

    video: Path
    classes: tuple[str, ...]
    spans: np.ndarray
    logits: np.ndarray
    faces: np.ndarray | None
    seconds: float
    interval: float = 1 / FPS
    has_times: bool = True
    thumbnails: list[np.ndarray] = field(default_factory=list)
    explained: dict[int, ExplainedClip] = field(default_factory=dict)
    output: Output = Output.softmax
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """The name of the video as text of one line."""
        return printable(self.video.name)

    @property
    def is_image(self) -> bool:
        """Whether it is a single image."""
        return round(self.seconds / self.interval) == 1

    @property
    def probabilities(self) -> np.ndarray:
        """Of each class, float32 [W, C]; NaN for a window without a face."""
        return probabilities(self.logits / self.temperature, self.output)

    @property
    def overall(self) -> np.ndarray:
        """Mean of the windows' probabilities, float32 [C], as views of a clip are averaged."""
        return np.nanmean(self.probabilities, axis=0)

    @property
    def top(self) -> list[str]:
        """The :meth:`prediction` of each window; empty for a window without a face."""
        return ["" if np.isnan(p).any() else self.prediction(p) for p in self.probabilities]

    def predicted(self, probabilities: np.ndarray) -> list[int]:
        """Return the class of the largest probability, as a list.

        Of sigmoid outputs all that :func:`.choose_labels` chooses.

        Parameters
        ----------
        probabilities : float32 [C]
        """
        if self.output is Output.sigmoid:
            chosen: list[int] = np.flatnonzero(choose_labels(probabilities[None])).tolist()
            return chosen
        return [int(probabilities.argmax())]

    def prediction(self, probabilities: np.ndarray) -> str:
        """Return the names of the predicted classes, joined with ``+``."""
        return SEPARATOR.join(self.classes[c] for c in self.predicted(probabilities))

    @property
    def num_predicted(self) -> int:
        """Number of windows that have a prediction."""
        return sum(map(bool, self.top))

    def csv(self) -> str:
        """Return a table with a row for each window.

        Columns are start, end, face (if faces were searched), prediction, and the classes.
        """
        columns = {"start": self.spans[:, 0], "end": self.spans[:, 1]}
        if self.faces is not None:
            columns["face"] = self.faces
        texts = {name: [f"{x:.3f}" for x in values] for name, values in columns.items()}
        texts["prediction"] = self.top
        for name, values in zip(self.classes, self.probabilities.T, strict=True):
            texts[name] = ["" if math.isnan(p) else f"{p:.6f}" for p in values]
        return csv_text([[*texts], *zip(*texts.values(), strict=True)])

    def explained_figure(self) -> Figure:
        """Draw what the predictions of the explained windows rest on."""
        from dfer_dist.reporting.plots.explained import ExplainedRow, explained_figure

        rows = []
        for i, (frames, found) in sorted(self.explained.items()):
            begin, end = self.spans[i]
            title = f"{begin:.1f} to {end:.1f} s: {self.classes[found.predicted]}"
            rows.append(ExplainedRow(title, frames, found.weights, found.heat))
        return explained_figure(f"{self.name}: what predictions rest on", rows)


def cut_windows(frames: int, length: int, step: float) -> np.ndarray:
    """Cut a video into windows of ``length`` frames, ``step`` frames apart.

    Starts are rounded to whole frames. The last window ends with the video, however close it is to
    the one before. A video that is no longer than a window is one window.

    Returns
    -------
    int64 array [W, 2]
        Begin and end of each window, in frames.
    """
    if frames <= length:
        return np.array([[0, frames]])
    last = frames - length
    grid = np.rint(np.arange(0, last, max(step, 1.0)))
    starts = np.unique(np.append(grid, last)).astype(np.int64)
    return np.stack([starts, starts + length], 1)


@contextmanager
def _damage_as_user_error() -> Iterator[None]:
    try:
        yield
    except DamagedVideo as e:
        text = f"{e.file} cannot be read as a video: {e.reason}"
        if e.frames:
            text = f"{e}: copy it again"
        raise UserError(text) from e


@_damage_as_user_error()
def predict_video(
    model: ExportedModel,
    video: Path,
    window: float = WINDOW,
    step: float = STEP,
    faces: bool = False,
    progress: Callable[[int, int], None] | None = None,
    fps: float | None = None,
    explain: int = 0,
) -> VideoPrediction:
    """Predict a video, a folder of frames or an image in sliding windows.

    It is decoded twice: for its length or its face, then for the frames of the windows.

    Parameters
    ----------
    window, step : float
        Length of a window, and from one start to the next, seconds. With ``math.inf`` the whole
        video is one window, as a clip is in an evaluation.
    faces : bool
        Crop the face as ``dfer pack --faces``; a window needs it in half of its frames.
    progress : callable, optional
        Called with (windows done, all windows).
    fps : float, optional
        Frames a second of a folder of frames; 25 by default.
    explain : int
        Number of windows to explain, evenly spaced.

    Raises
    ------
    UserError
        If the video is damaged, a single frame, or without a face; a window has less than two
        frames; or as :func:`.open_frames` and :meth:`ExportedModel.check_modalities`.
    """
    model.check_modalities()
    rate = FPS if fps is None else fps
    _check_positive(window=window, step=step, fps=rate)
    found = _find_windows(video, window, step, rate, faces, bool(model.config.model.modalities))
    return VideoPrediction(
        video=video,
        classes=model.classes,
        spans=found.windows * found.interval,
        faces=found.face_fractions if faces else None,
        seconds=len(found.has_face) * found.interval,
        interval=found.interval,
        has_times=fps is not None or not video.is_dir(),
        output=model.config.model.output,
        temperature=model.temperature,
        **_predict_windows(model, video, found, progress, explain)._asdict(),
    )


def _keep_some(
    frames: Iterable[np.ndarray], count: int, kept: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield all of the ``count`` frames; add small copies of some, evenly spaced, to ``kept``."""
    wanted = set(sample_segments(count, min(count, _THUMBNAILS)).tolist())
    for i, frame in enumerate(frames):
        if i in wanted:
            image = Image.fromarray(frame)
            image.thumbnail(_THUMBNAIL_SIZE)
            kept.append(np.asarray(image))
        yield frame


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise UserError(f"{name}={value:g}: it must be greater than 0")


@dataclass(frozen=True)
class _Windows:
    """The result of the first pass over a video.

    ``windows`` [W, 2] are in frames; ``has_face`` is bool [T]; ``interval`` is the time between
    frames in seconds; ``frames`` reads the video again; ``is_packed`` says whether its frames have
    been through a JPEG; ``landmarks`` [T, 68, 2] is empty for a model of frames alone.
    """

    windows: np.ndarray
    has_face: np.ndarray
    interval: float
    frames: Iterable[np.ndarray]
    is_packed: bool
    landmarks: np.ndarray

    @property
    def face_fractions(self) -> np.ndarray:
        """Fraction of the frames of each window that have a face, float64 [W]."""
        return np.array([self.has_face[begin:end].mean() for begin, end in self.windows])


def _find_windows(
    path: Path, window: float, step: float, fps: float, faces: bool, modalities: bool
) -> _Windows:
    video = open_frames(path, fps)
    frames: Iterable[np.ndarray] = video
    landmarks = np.empty((0, 68, 2), np.float32)
    # Those of a folder have the pixels that are packed.
    is_packed = isinstance(video, Frames) and not faces
    if faces:
        clip = find_face(video, FACE_SIZE)
        has_face, frames = clip.found, clip.crops(video)
        landmarks = fill_missing(clip.landmarks, clip.found)
    elif modalities:
        landmarks = find_points(video if is_packed else map(through_jpeg, video))
        has_face = np.ones(len(landmarks), bool)
    else:
        has_face = np.ones(sum(1 for _ in video), bool)
    if len(has_face) < 2 and not isinstance(video, Frames):
        raise UserError(f"{path} has a single frame: a model of expressions over time needs more")
    interval = video.interval()
    length = len(has_face) if window == math.inf else round(window / interval)
    if length < min(2, len(has_face)):
        raise UserError(
            f"{path}: a window of {window:g} s has less than two of its frames, "
            f"{1 / interval:g} a second"
        )
    windows = cut_windows(len(has_face), length, step / interval)
    return _Windows(windows, has_face, interval, frames, is_packed, landmarks)


class _Output(NamedTuple):
    """Logits float32 [W, C], NaN for a window with the face in too few frames, and pictures."""

    logits: np.ndarray
    thumbnails: list[np.ndarray]
    explained: dict[int, ExplainedClip]


def _predict_windows(
    model: ExportedModel,
    video: Path,
    found: _Windows,
    progress: Callable[[int, int], None] | None,
    explain: int,
) -> _Output:
    predicted = found.face_fractions >= MIN_FACE_FRACTION
    if not predicted.any():
        raise UserError(
            f"{video}: one face is in at most {100 * found.face_fractions.max():.0f} % of a "
            "window's frames: in at least half it must be"
        )
    data, views, windows = model.config.data, model.config.eval.views, found.windows[predicted]
    chosen = [
        begin + eval_frames(end - begin, data, views).ravel() for begin, end in windows.tolist()
    ]

    def preprocess(i: int, frame: np.ndarray) -> Tensor:
        pixels = frame if found.is_packed else through_jpeg(frame)
        return model.preprocess(pixels[None], found.landmarks[i : i + 1])[0]

    logits = np.full((len(found.windows), len(model.classes)), np.nan, np.float32)
    thumbnails: list[np.ndarray] = []
    frames = _keep_some(found.frames, len(found.has_face), thumbnails)
    clips, done = _gather(frames, chosen, preprocess), list[np.ndarray]()
    numbers, explained = np.flatnonzero(predicted), dict[int, ExplainedClip]()
    wanted = sample_segments(len(windows), min(explain, len(windows))).tolist() if explain else []
    while batch := list(islice(clips, model.config.eval.batch)):
        for i, clip in enumerate(batch, len(done)):
            if i in wanted:
                explained[int(numbers[i])] = model.explain(clip)
        done.extend(model.forward(batch))
        if progress:
            progress(len(done), len(windows))
    logits[predicted] = done
    return _Output(logits, thumbnails, explained)


def _gather(
    frames: Iterable[np.ndarray],
    chosen: list[np.ndarray],
    preprocess: Callable[[int, np.ndarray], Tensor],
) -> Iterator[Tensor]:
    """Yield the preprocessed frames of each window, from frames that are read once.

    ``chosen`` has the frames of each window; windows neither begin nor end before the one before.
    """
    wanted = set(np.concatenate(chosen).tolist())
    kept, waiting = dict[int, Tensor](), deque(chosen)
    for i, frame in enumerate(frames):
        if i in wanted:
            kept[i] = preprocess(i, frame)
        while waiting and waiting[0].max() <= i:
            yield torch.stack([kept[j] for j in waiting.popleft().tolist()])
            first = waiting[0].min() if waiting else i + 1
            kept = {j: image for j, image in kept.items() if j >= first}
