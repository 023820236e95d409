"""Which frames of a clip are read."""

from __future__ import annotations

import numpy as np

from dfer_dist.config.schema import DataConfig, Sampling


def train_frames(frames: int, data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """Frame numbers of one training clip by ``data.sampling``, int64 [T], rising.

    ``frames`` is how many the clip has. ``uniform`` leaves nothing to chance, ``dense`` draws where its window begins.
    """
    wanted = data.num_frames
    if data.sampling is Sampling.segments:
        return sample_random(frames, wanted, rng)
    if data.sampling is Sampling.uniform:
        return sample_evenly(frames, wanted)
    buffer = max(frames - _span(data), 0)
    return _window(frames, data, int(rng.integers(buffer + 1)))


def eval_frames(frames: int, data: DataConfig, views: int) -> np.ndarray:
    """Frame numbers of each of a test clip's ``views`` views, int64 [V, T], rising within a view.

    ``segments`` cuts each segment into V equal parts and gives view v the middles of the v-th ones: one view is that of
    segment centres. ``dense`` spreads V windows evenly from the clip's first frame to its last (Wang et al., "Non-local
    Neural Networks", CVPR 2018; Feichtenhofer et al., "SlowFast Networks", ICCV 2019); one window stands in the middle.
    ``uniform`` has a single view.
    """
    wanted = data.num_frames
    if data.sampling is Sampling.segments:
        return np.stack([sample_segments(frames, wanted, (v + 0.5) / views) for v in range(views)])
    if data.sampling is Sampling.uniform:
        return sample_evenly(frames, wanted)[None].repeat(views, 0)
    buffer = max(frames - _span(data), 0)
    starts = [buffer // 2] if views == 1 else [buffer * v // (views - 1) for v in range(views)]
    return np.stack([_window(frames, data, start) for start in starts])


def sample_random(frames: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """One frame at random from each of ``wanted`` equal segments (TSN, Wang et al., ECCV 2016).

    As in DFER-CLIP: segments have a whole number of frames, counted from the start, so that what is left over at the end
    is never drawn; a clip shorter than ``wanted`` gives all its frames and repeats the last one.

    Returns
    -------
    ndarray of int64 [wanted]
        Rising frame numbers.
    """
    segment = frames // wanted
    if segment > 0:
        return np.arange(wanted) * segment + rng.integers(segment, size=wanted)
    return _pad(frames, wanted)


def sample_segments(frames: int, wanted: int, at: float = 0.5) -> np.ndarray:
    """The frame at share ``at`` of each of ``wanted`` equal segments; a shorter clip repeats its last frame."""
    if frames > wanted:
        tick = frames / wanted
        return (tick * at + tick * np.arange(wanted)).astype(np.int64)
    return _pad(frames, wanted)


def sample_evenly(frames: int, wanted: int) -> np.ndarray:
    """``wanted`` frames at equal distances, the clip's first and last among them, rounded down.

    As ``UniformTemporalSubsample`` of PyTorchVideo; a clip shorter than ``wanted`` repeats frames all along.
    """
    return np.arange(wanted) * (frames - 1) // max(wanted - 1, 1)


def _span(data: DataConfig) -> int:
    return (data.num_frames - 1) * data.stride + 1


def _window(frames: int, data: DataConfig, start: int) -> np.ndarray:
    """Every ``data.stride``-th frame from ``start``; a clip that ends within the window repeats its last frame."""
    return np.minimum(start + np.arange(data.num_frames) * data.stride, frames - 1)


def _pad(frames: int, wanted: int) -> np.ndarray:
    return np.minimum(np.arange(wanted), frames - 1)
