"""One film -> probabilities over time, by an exported model.

Frames pass through what they pass through on the way to an evaluation: the crop and the JPEG of ``dfer pack``, the choice of frames,
the resizing.
"""

from __future__ import annotations

import csv
import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from dfer_dist.data.faces.crop import find_face
from dfer_dist.data.faces.parsing_maps import fill_missing
from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.loading.modalities import find_points
from dfer_dist.data.packing.media import encode_frame
from dfer_dist.data.packing.video_frames import LEAST, SIDE
from dfer_dist.data.video.decode import DamagedVideo, Video
from dfer_dist.inference.export import ExportedModel, softmax
from dfer_dist.utils.errors import UserError

WINDOW, STEP = (
    3.0,
    1.0,
)  # seconds: the median clip has 70 frames in DFEW, 82 in MAFW (28 in FERV39k)


@dataclass(frozen=True)
class VideoPrediction:
    """What a model says of a film over time.

    Attributes
    ----------
    spans : float64 array [W, 2]
        Begin and end of each window, seconds from the first frame.
    logits : float32 array [W, C]
        NaN where a window shows no face.
    faces : float64 array [W], or None
        Part of the window's frames in which the face was found; None where none was looked for.
    seconds : float
        Of the film.
    """

    video: Path
    classes: tuple[str, ...]
    spans: np.ndarray
    logits: np.ndarray
    faces: np.ndarray | None
    seconds: float

    @property
    def probabilities(self) -> np.ndarray:
        """float32 [W, C], NaN where a window shows no face."""
        return softmax(self.logits)

    @property
    def overall(self) -> np.ndarray:
        """The film as a whole, float32 [C]: the mean of its windows' probabilities, as views of a clip are averaged."""
        return np.nanmean(self.probabilities, axis=0)

    @property
    def top(self) -> list[str]:
        """The class of the largest probability of each window; empty where a window shows no face."""
        return [
            "" if np.isnan(p).any() else self.classes[int(p.argmax())] for p in self.probabilities
        ]

    @property
    def shown(self) -> int:
        """How many windows have a prediction."""
        return sum(map(bool, self.top))

    def csv(self) -> str:
        """A row a window: start, end, face (where looked for), prediction, and a probability for each class."""
        faces = [] if self.faces is None else ["face"]
        rows: list[list[Any]] = [["start", "end", *faces, "prediction", *self.classes]]
        for i, (span, top, p) in enumerate(
            zip(self.spans.tolist(), self.top, self.probabilities.tolist(), strict=True)
        ):
            face = [] if self.faces is None else [f"{self.faces[i]:.3f}"]
            rows.append(
                [
                    *(f"{t:.3f}" for t in span),
                    *face,
                    top,
                    *("" if math.isnan(x) else f"{x:.6f}" for x in p),
                ]
            )
        return write_csv(rows)


def write_csv(rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def cut_windows(frames: int, length: int, step: float) -> np.ndarray:
    """Windows of ``length`` frames, ``step`` frames apart (to the nearest whole one), int64 [W, 2] (begin, end).

    The last one ends with the film, however near it lies to the one before; a film that is no longer than a window is one window.
    """
    if frames <= length:
        return np.array([[0, frames]])
    last = frames - length
    starts = np.unique(np.append(np.rint(np.arange(0, last, max(step, 1.0))), last)).astype(
        np.int64
    )
    return np.stack([starts, starts + length], 1)


def predict_video(
    model: ExportedModel,
    video: Path,
    window: float = WINDOW,
    step: float = STEP,
    faces: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VideoPrediction:
    """Probabilities of a film in windows that slide over it.

    The film is decoded twice: once to know its length, or where the face is, and once for the frames that the windows ask for. Only
    those of the windows in hand are kept.

    Parameters
    ----------
    window, step : float
        Length of a window and from one to the next, seconds. ``math.inf`` makes the whole film one window, as an evaluation does with a clip.
    faces : bool
        Cut the face out as ``dfer pack --faces`` does. Windows with the face in less than half of their frames get no prediction.
    progress : callable, optional
        Called with (windows done, all windows).

    Raises
    ------
    UserError
        If the film is missing, damaged, a single frame, or without a face; or a window has less than two frames; or as :meth:`ExportedModel.check_modalities`.
    """
    model.check_modalities()
    if not (window > 0 and step > 0):
        raise UserError(f"a window of {window:g} s every {step:g} s: both must be greater than 0")
    if not video.is_file():
        raise UserError(f"{video} is missing")
    try:
        spans, found, interval, frames, points = _look(
            Video(video), window, step, faces, bool(model.config.model.modalities)
        )
        shares = np.array([found[a:b].mean() for a, b in spans])
        shown = shares >= LEAST
        if not shown.any():
            best = (
                f"at most {100 * shares.max():.0f} % of a window's frames"
                if len(shares) > 1
                else f"{found.sum()} of {len(found)} frames"
            )
            raise UserError(f"{video}: one face is in {best}: in at least half it must be")
        data, views = model.config.data, model.config.eval.views
        chosen = [a + eval_frames(b - a, data, views).ravel() for a, b in spans[shown].tolist()]
        logits = np.full((len(spans), len(model.classes)), np.nan, np.float32)
        places, done = np.flatnonzero(shown), 0
        for clips in _batches(
            _gather(
                frames,
                chosen,
                lambda i, frame: model.pictures(as_packed(frame)[None], points[i : i + 1])[0],
            ),
            model.config.eval.batch,
        ):
            logits[places[done : done + len(clips)]] = model.forward(clips)
            done += len(clips)
            if progress:
                progress(done, len(places))
    except DamagedVideo as e:
        raise UserError(f"{e}: copy it again") from e
    return VideoPrediction(
        video,
        model.classes,
        spans * interval,
        logits,
        shares if faces else None,
        len(found) * interval,
    )


def _look(
    video: Video, window: float, step: float, faces: bool, modalities: bool
) -> tuple[np.ndarray, np.ndarray, float, Iterable[np.ndarray], np.ndarray]:
    """The first pass: windows [W, 2] in frames, in which frames the face is, seconds from frame to frame, frames to read, and with
    ``modalities`` their landmarks."""
    points = np.empty((0, 68, 2), np.float32)
    if faces:
        clip = find_face(video, SIDE)
        found, frames, points = (
            clip.found,
            clip.crops(video),
            fill_missing(clip.landmarks, clip.found),
        )
    elif modalities:
        points = find_points(map(as_packed, video))
        found, frames = np.ones(len(points), bool), iter(video)
    else:
        found, frames = np.ones(sum(1 for _ in video), bool), iter(video)
    if len(found) < 2:
        raise UserError(
            f"{video.path} has a single frame: a model of expressions over time needs more"
        )
    interval = video.interval()
    length = len(found) if window == math.inf else round(window / interval)
    if length < 2:
        raise UserError(
            f"{video.path}: a window of {window:g} s has less than two of its frames, {1 / interval:g} a second"
        )
    return cut_windows(len(found), length, step / interval), found, interval, frames, points


def as_packed(frame: np.ndarray) -> np.ndarray:
    """A frame as a reader of shards gives it: through the JPEG that ``dfer pack`` makes of frames of films."""
    return simplejpeg.decode_jpeg(encode_frame(frame), fastdct=False, fastupsample=False)


def _gather(
    frames: Iterable[np.ndarray],
    chosen: list[np.ndarray],
    prepare: Callable[[int, np.ndarray], Tensor],
) -> Iterator[list[Tensor]]:
    """The prepared frames of each window, from frames that stream by once. Windows neither begin nor end before the one before."""
    wanted, held, waiting = set(np.concatenate(chosen).tolist()), dict[int, Tensor](), deque(chosen)
    for i, frame in enumerate(frames):
        if i in wanted:
            held[i] = prepare(i, frame)
        while waiting and waiting[0].max() <= i:
            yield [held[j] for j in waiting.popleft().tolist()]
            first = waiting[0].min() if waiting else i + 1
            held = {j: kept for j, kept in held.items() if j >= first}


def _batches(clips: Iterable[list[Tensor]], size: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for clip in clips:
        batch.append(torch.stack(clip))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
