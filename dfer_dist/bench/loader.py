"""How fast one core loads clips, next to decoding alone and to Pillow over frame files.

``dfer bench loader``.

The variants alternate in short rounds, since a shared machine is noisy, each on the same core, and
medians are reported: of wall time, and of the processor time that the core spent.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

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


@dataclass(frozen=True)
class _Variant:
    """Work that is timed on ``cores`` by the clocks of ``process``.

    ``prepare`` comes before it, untimed.
    """

    cores: list[int]
    work: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    process: int = field(default_factory=os.getpid)

    def seconds(self) -> tuple[float, float]:
        """Work once; return the seconds of wall time and of processor time."""
        os.sched_setaffinity(0, self.cores)
        self.prepare()
        wall, cpu = time.perf_counter(), _processor_time(self.process)
        self.work()
        wall = time.perf_counter() - wall
        # A worker replaces the batches that were taken, on the core that the next variant needs.
        # That is part of its work: of a short round it has all batches ready.
        before = -1.0
        while self.process != os.getpid() and _processor_time(self.process) - before > 0.001:
            before = _processor_time(self.process)
            time.sleep(0.02)
        return wall, _processor_time(self.process) - cpu


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
        ``ours`` (one loader worker), ``in_process`` (no worker), ``floor`` (the upper bound:
        libjpeg-turbo on the same frames in memory), ``baseline`` (None outside a checkout),
        ``augment_device``: each has the medians ``clips_per_s`` and, by processor time,
        ``clips_per_cpu_s``, and ``peak_bytes`` of its process in the first round, with imports and
        frames in memory. ``about``: the conditions.
    """
    plan = EpochPlan(all_clips(index, range(len(index.shards))), 0, 0, BATCH, data.block)
    steps = min(clips // BATCH, plan.steps)
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        jpegs = _write_frames(index, data, plan, steps, folders)
        variants = _variants(index, data, plan, jpegs, folders, device)
        speeds = _take_turns(variants, steps * BATCH, rounds, progress)
    about = {
        "frame_bytes": round(float(np.mean([len(jpeg) for clip in jpegs for jpeg in clip]))),
        "num_frames": data.num_frames,
        "image_size": data.image_size,
        "clips": steps * BATCH,
        "rounds": rounds,
        "device": str(device),
        "cores": len(cores),
    }
    return {"baseline": None, **speeds, "about": about}


def _variants(
    index: Index,
    data: DataConfig,
    plan: EpochPlan,
    jpegs: list[list[bytes]],
    folders: Path,
    device: torch.device,
) -> dict[str, _Variant]:
    """Return the variants, and leave this process with one thread on the first core."""
    torch.set_num_threads(1)
    cores, steps = sorted(os.sched_getaffinity(0)), len(jpegs) // BATCH
    # Processes that are forked here stay there.
    os.sched_setaffinity(0, cores[:1])
    before = set(multiprocessing.active_children())
    stream = _open_stream(index, data, plan, 1)
    (worker,) = set(multiprocessing.active_children()) - before
    take, take_here = partial(_take, stream), partial(_take, _open_stream(index, data, plan, 0))
    augment = _augment(next(stream), steps, device)
    # Batches that were ready before the clock starts do not count.
    ahead = partial(take, PREFETCH + 1)
    variants = {
        "floor": _Variant(cores[:1], _decode_alone(jpegs, data)),
        "ours": _Variant(cores[1:] or cores, partial(take, steps), ahead, worker.pid or 0),
        "in_process": _Variant(cores[:1], partial(take_here, steps), partial(take_here, 1)),
        "augment_device": _Variant(cores, augment),
    }
    if _PLAIN_SCRIPT.is_file():
        variants["baseline"] = _Variant(cores[:1], _plain(folders, data))
    return variants


def _take_turns(
    variants: dict[str, _Variant],
    clips: int,
    rounds: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, float]]:
    """Time the variants in turn, after a round for warming up that measures their memory."""
    peaks, times = {}, defaultdict(list)
    for r in range(rounds + 1):
        for name, variant in variants.items():
            if r == 0:
                reset_peak_resident_bytes(variant.process)
                variant.seconds()
                peaks[name] = peak_resident_bytes(variant.process)
            else:
                times[name].append(variant.seconds())
        if progress:
            progress(r + 1, rounds + 1)
    speeds = {name: (clips / np.median(rows, axis=0)).tolist() for name, rows in times.items()}
    return {
        name: {"clips_per_s": wall, "clips_per_cpu_s": cpu, "peak_bytes": peaks[name]}
        for name, (wall, cpu) in speeds.items()
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


def _open_stream(index: Index, data: DataConfig, plan: EpochPlan, workers: int) -> Iterator[Batch]:
    """Return an endless stream of batches, the first of which is taken."""
    data = replace(data, workers=workers)
    stream = train_loader(index, data, plan, epochs=1 << 30, micro_batch=BATCH)
    next(stream)
    return stream


def _take(stream: Iterator[Batch], batches: int) -> None:
    for _ in range(batches):
        next(stream)


def _decode_alone(clips: list[list[bytes]], data: DataConfig) -> Callable[[], None]:
    """Return libjpeg-turbo's work alone.

    It decodes every frame into allocated memory with the layout of the loader's buffers.
    """
    size = simplejpeg.decode_jpeg_header(clips[0][0])[:2]
    buffer = BufferPool(1, (data.num_frames, *size, 3)).acquire()[0]

    def decode() -> None:
        for clip in clips:
            for t, jpeg in enumerate(clip):
                simplejpeg.decode_jpeg(jpeg, buffer=buffer[t])

    return decode


def _augment(batch: Batch, steps: int, device: torch.device) -> Callable[[], None]:
    # The copy to the device is not timed.
    batch = replace(batch, frames=batch.frames.to(device))

    def augment() -> None:
        for _ in range(steps):
            batch.pixels(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return augment


def _plain(folders: Path, data: DataConfig) -> Callable[[], object]:
    frame_folders = runpy.run_path(str(_PLAIN_SCRIPT))["FrameFolders"]
    clips = frame_folders(sorted(folders.iterdir()), data.num_frames, data.image_size)
    return lambda: [clips[i] for i in range(len(clips))]


def _processor_time(process: int) -> float:
    """Return the seconds that all threads of another process have run.

    Linux makes a clock's number of a process id (clock_getcpuclockid).
    """
    return time.clock_gettime((~process << 3) | 2)
