"""How fast one core loads clips, next to decoding alone and to Pillow over frame files.

``dfer bench loader``.

The variants alternate in short rounds, since a shared machine is noisy, each on the same core, and
medians are reported: of wall time, and of the processor time that the core spent.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.batch import Batch, BufferPool
from dfer_dist.data.loading.frame_sampling import train_frames
from dfer_dist.data.loading.loader import PREFETCH, train_loader
from dfer_dist.data.loading.sampler import EpochPlan, all_clips, keyed_rng
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.hardware import peak_resident_bytes, reset_peak_resident_bytes

BATCH = 8  # clips in a micro batch
_FRAMES = 60  # of a generated clip
# Quality of its JPEGs, and standard deviation of the camera's noise in grey values (0..255):
# together some 20 kB a frame.
_QUALITY, _NOISE = 90, 7.0
_PLAIN_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pil_folders.py"

# One round: seconds of wall time and of processor time.
Timed = Callable[[], tuple[float, float]]


class Speed(NamedTuple):
    """Medians over rounds; ``clips_per_cpu_s`` is by processor time.

    ``peak_bytes`` is the peak memory of the process that loads, in the first round. It includes the
    imports and, for all but a worker, the frames in memory.
    """

    clips_per_s: float
    clips_per_cpu_s: float
    peak_bytes: int


def make_clips(
    root: Path, clips: int, size: int = 224, progress: Callable[[int, int], None] | None = None
) -> Index:
    """Pack a set of generated clips of 60 frames in five folds.

    A clip is a still scene with detail at all scales, a panning camera, and its noise.
    """
    rng, records = np.random.default_rng(0), []
    for i in range(clips):
        scene = _scene(rng, size + _FRAMES)
        folder = root / "frames" / f"{i:05d}"
        folder.mkdir(parents=True)
        for t in range(_FRAMES):
            seen = scene[t : t + size, t // 2 : t // 2 + size] + rng.normal(
                0, _NOISE, (size, size, 1)
            )
            frame = np.ascontiguousarray(seen.clip(0, 255).astype(np.uint8))
            data = simplejpeg.encode_jpeg(frame, quality=_QUALITY, colorsubsampling="420")
            (folder / f"{t:05d}.jpg").write_bytes(data)
        records.append(
            ClipRecord(
                folder.name, i % 7, f"fold{1 + i % 5}", folder.name, tuple(sorted(folder.iterdir()))
            )
        )
        if progress:
            progress(i + 1, clips)
    return pack(records, "dfew", root / "shards", workers=1)


def _scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return an image, float64 [size, size, 3], about 0..255.

    Contrast falls with the size of the detail, as in photographs.
    """
    scene = np.full((size, size, 3), 128.0)
    for cells in (3, 6, 12, 24, 48, 96, 192):
        coarse = (rng.normal(0, 90 / cells**0.6, (cells, cells, 3))).astype(np.float32)
        for c in range(3):
            scene[..., c] += np.asarray(
                Image.fromarray(coarse[..., c]).resize((size, size), Image.Resampling.BICUBIC)
            )
    return scene


def measure(
    index: Index,
    data: DataConfig,
    folders: Path,
    clips: int,
    rounds: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Load ``clips`` clips of ``index`` by several variants, ``rounds`` times each in turn.

    Parameters
    ----------
    index, data
        The set, and how its frames are sampled and augmented; ``data.image_size`` is resolved.
    folders : Path
        An empty folder, for the frame files that Pillow reads.
    clips : int
        Rounded down to whole batches of 8.
    device : torch.device
        Where augmentation is timed.

    Returns
    -------
    dict
        ``ours`` (one loader worker, its consumer counts), ``in_process`` (the same without a
        worker), ``floor`` (the upper bound: libjpeg-turbo on the same frames in memory),
        ``baseline`` (None outside a checkout), ``augment_device``: each a :class:`Speed` as a dict,
        and ``about``.
    """
    plan = EpochPlan(all_clips(index, range(len(index.shards))), 0, 0, BATCH, data.block)
    steps = min(clips // BATCH, plan.steps)
    cores = sorted(os.sched_getaffinity(0))
    with _one_thread():
        jpegs = _write_frames(index, data, plan, steps, folders)
        with _pinned(cores[:1]):
            stream, worker = _open_stream(index, data, plan, 1)
            in_process = _open_stream(index, data, plan, 0)[0]
            variants = {
                "floor": _on(cores[:1], _decode_alone(jpegs, data)),
                "ours": _on(cores[1:] or cores, _pull(stream, steps, PREFETCH + 1, worker)),
                "in_process": _on(cores[:1], _pull(in_process, steps, 1, os.getpid())),
                "augment_device": _on(cores, _augment(next(stream), steps, device)),
            }
            if _PLAIN_SCRIPT.is_file():
                variants["baseline"] = _on(cores[:1], _plain(folders, data))
            speeds = _take_turns(variants, steps * BATCH, rounds, {"ours": worker}, progress)
    about = _about_frames(jpegs, data)
    about |= {"clips": steps * BATCH, "rounds": rounds, "device": str(device), "cores": len(cores)}
    return {"baseline": None, **{name: s._asdict() for name, s in speeds.items()}, "about": about}


def _about_frames(jpegs: list[list[bytes]], data: DataConfig) -> dict[str, Any]:
    sizes = [len(jpeg) for clip in jpegs for jpeg in clip]
    return {
        "frame_bytes": round(float(np.mean(sizes))),
        "num_frames": data.num_frames,
        "image_size": data.image_size,
    }


def _take_turns(
    variants: dict[str, Timed],
    clips: int,
    rounds: int,
    workers: dict[str, int],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Speed]:
    """Time the variants in turn; ``workers`` has the process ids of those in other processes."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    peaks = {}
    for r in range(rounds + 1):
        for name, variant in variants.items():
            process = workers.get(name)
            if r == 0:
                reset_peak_resident_bytes(process)
            times[name].append(variant())
            if r == 0:
                peaks[name] = peak_resident_bytes(process)
        if progress:
            progress(r + 1, rounds + 1)
    # The first round warms up.
    medians = {name: np.median(rows[1:], axis=0) for name, rows in times.items()}
    return {
        name: Speed(float(clips / wall), float(clips / cpu), peaks[name])
        for name, (wall, cpu) in medians.items()
    }


def _write_frames(
    index: Index, data: DataConfig, plan: EpochPlan, steps: int, folders: Path
) -> list[list[bytes]]:
    """Return the sampled frames of the plan's first clips; write all their frames as files."""
    reader, sampled = ClipReader(index), []
    refs = [plan.sample_ref(step, lane) for step in range(steps) for lane in range(BATCH)]
    for i, ref in enumerate(refs):
        frames = reader.jpegs(ref.shard, ref.row)
        rng = keyed_rng("clip", plan.seed, ref.epoch, reader.key(ref.shard, ref.row))
        sampled.append([frames[f] for f in train_frames(len(frames), data, rng)])
        folder = folders / f"{i:05d}"
        folder.mkdir()
        for t, frame in enumerate(frames):
            (folder / f"{t:05d}.jpg").write_bytes(frame)
    return sampled


def _open_stream(
    index: Index, data: DataConfig, plan: EpochPlan, workers: int
) -> tuple[Iterator[Batch], int]:
    """Return an endless stream of batches, and its worker's process id."""
    before = {child.pid for child in multiprocessing.active_children()}
    stream = train_loader(
        index, replace(data, workers=workers), plan, epochs=1 << 30, micro_batch=BATCH
    )
    next(stream)
    pid = next((c.pid for c in multiprocessing.active_children() if c.pid not in before), None)
    return stream, pid or os.getpid()


def _pull(stream: Iterator[Batch], steps: int, ahead: int, process: int) -> Timed:
    def run() -> tuple[float, float]:
        # Batches that were ready before the clock starts do not count.
        for _ in range(ahead):
            next(stream)
        wall, cpu = time.perf_counter(), _processor_time(process)
        for _ in range(steps):
            next(stream)
        times = time.perf_counter() - wall, _processor_time(process) - cpu
        # A worker replaces the batches that were taken, on the core that the next variant needs.
        _wait_until_idle(process)
        return times

    return run


def _wait_until_idle(process: int) -> None:
    before = -1.0
    while process != os.getpid() and _processor_time(process) - before > 0.001:
        before = _processor_time(process)
        time.sleep(0.02)


def _decode_alone(clips: list[list[bytes]], data: DataConfig) -> Timed:
    """Time libjpeg-turbo alone.

    It decodes every frame into allocated memory with the layout of the loader's buffers.
    """
    size = simplejpeg.decode_jpeg_header(clips[0][0])[:2]
    buffer = BufferPool(1, (data.num_frames, *size, 3)).acquire()[0]

    def decode() -> None:
        for clip in clips:
            for t, jpeg in enumerate(clip):
                simplejpeg.decode_jpeg(jpeg, buffer=buffer[t])

    return _timed(decode)


def _augment(batch: Batch, steps: int, device: torch.device) -> Timed:
    # The copy to the device is not timed.
    batch = replace(batch, frames=batch.frames.to(device))

    def run() -> None:
        for _ in range(steps):
            batch.pixels(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return _timed(run)


def _plain(folders: Path, data: DataConfig) -> Timed:
    spec = importlib.util.spec_from_file_location(_PLAIN_SCRIPT.stem, _PLAIN_SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clips: Dataset[Tensor] = module.FrameFolders(
        sorted(folders.iterdir()), data.num_frames, data.image_size
    )
    return _timed(lambda: [clips[i] for i in range(len(list(folders.iterdir())))])


def _timed(work: Callable[[], object]) -> Timed:
    def run() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    return run


def _on(cores: list[int], variant: Timed) -> Timed:
    def run() -> tuple[float, float]:
        with _pinned(cores):
            return variant()

    return run


@contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    """Run this thread, and processes that it forks, on ``cores`` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor_time(process: int) -> float:
    """Return the seconds that all threads of another process have run.

    Linux makes a clock's number of a process id (clock_getcpuclockid).
    """
    return time.clock_gettime((~process << 3) | 2)
