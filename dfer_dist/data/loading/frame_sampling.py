"""Which frames of a clip are sampled."""

from __future__ import annotations

import numpy as np

from dfer_dist.config.schema import DataConfig, Sampling


def train_frames(count: int, data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """Sample the frames of a training clip by ``data.sampling``.

    ``uniform`` is not random; ``dense`` samples where its window begins.

    Parameters
    ----------
    count : int
        Number of the clip's frames.
    data : DataConfig
    rng : Generator

    Returns
    -------
    ndarray of int64 [T]
        Ascending frame numbers.
    """
    if data.sampling is Sampling.segments:
        return sample_random(count, data.num_frames, rng)
    if data.sampling is Sampling.uniform:
        return sample_evenly(count, data.num_frames)
    last_start = max(count - _span(data), 0)
    return _window(count, data.num_frames, data.stride, int(rng.integers(last_start + 1)))


def eval_frames(count: int, data: DataConfig, views: int) -> np.ndarray:
    """Sample the frames of each view of a test clip by ``data.sampling``.

    ``segments`` cuts each segment into V equal parts; view v gets the centres of the v-th ones, so
    that a single view gets the centres of segments. ``dense`` spreads V windows evenly from the
    first frame to the last (Wang et al., "Non-local Neural Networks", CVPR 2018; Feichtenhofer et
    al., "SlowFast Networks", ICCV 2019); a single window is centred. ``uniform`` has one view.

    Parameters
    ----------
    count : int
        Number of the clip's frames.
    data : DataConfig
    views : int
        V.

    Returns
    -------
    ndarray of int64 [V, T]
        Frame numbers, ascending within a view.
    """
    wanted = data.num_frames
    if data.sampling is Sampling.segments:
        return np.stack([sample_segments(count, wanted, (v + 0.5) / views) for v in range(views)])
    if data.sampling is Sampling.uniform:
        return sample_evenly(count, wanted)[None].repeat(views, 0)
    last_start = max(count - _span(data), 0)
    starts = [last_start // 2]
    if views > 1:
        starts = [last_start * v // (views - 1) for v in range(views)]
    return np.stack([_window(count, wanted, data.stride, start) for start in starts])


def sample_random(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Sample one frame from each of ``wanted`` equal segments (TSN, Wang et al., ECCV 2016).

    As in DFER-CLIP, segments have a whole number of frames, counted from the start, so that the
    remainder at the end is never sampled; a clip shorter than ``wanted`` gives all its frames and
    repeats the last one.

    Returns
    -------
    ndarray of int64 [wanted]
        Ascending frame numbers.
    """
    segment = count // wanted
    if segment > 0:
        return np.arange(wanted) * segment + rng.integers(segment, size=wanted)
    return _window(count, wanted)


def sample_segments(count: int, wanted: int, at: float = 0.5) -> np.ndarray:
    """Return the frame at fraction ``at`` of each of ``wanted`` equal segments, int64 [wanted].

    A shorter clip repeats its last frame.
    """
    if count > wanted:
        tick = count / wanted
        return (tick * at + tick * np.arange(wanted)).astype(np.int64)
    return _window(count, wanted)


def sample_evenly(count: int, wanted: int) -> np.ndarray:
    """Return ``wanted`` frames at equal distances from the first to the last, rounded down.

    As ``UniformTemporalSubsample`` of PyTorchVideo; a clip shorter than ``wanted`` repeats frames
    throughout.
    """
    return np.arange(wanted) * (count - 1) // max(wanted - 1, 1)


def _span(data: DataConfig) -> int:
    return (data.num_frames - 1) * data.stride + 1


def _window(count: int, wanted: int, stride: int = 1, start: int = 0) -> np.ndarray:
    """Return every ``stride``-th frame from ``start``; past the clip's end, its last frame."""
    return np.minimum(start + np.arange(wanted) * stride, count - 1)
