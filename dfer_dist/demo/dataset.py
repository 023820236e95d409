"""The demo data set: drawn faces (:mod:`dfer_dist.demo.faces`) in the layout of a real set.

::

    OUT/
      frames/CLIP/00000.jpg ...        CLIP is a number of five digits
      landmarks/CLIP.npy               float32 [T, 68, 2], pixels, for dfer enrich --landmarks-from
      descriptions.csv                 clip,caption, for dfer describe --import
      lists/DEMO_set_K_test.txt        one clip a line, ``CLIP frames label``; K is 1..5
      lists/DEMO_set_K_train.txt
      demo.json                        the arguments and a row for each clip; written last
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from dfer_dist.data.sources.records import SEVEN
from dfer_dist.demo.captions import describe_clip
from dfer_dist.demo.faces import IDENTITIES, RENDERER, clip_track, render_clip
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import csv_text, read_json, write_json, write_text
from dfer_dist.utils.process_pool import Advance, Progress, run_jobs

FOLDS = 5
SHARES = (0.20, 0.14, 0.16, 0.14, 0.13, 0.11, 0.12)  # of the clips of a fold, by label
SMALLEST = FOLDS * len(SEVEN)  # so that each fold has a clip of each class
UNFINISHED = ".unfinished.json"  # the arguments of a set that is being written
DESCRIPTIONS = "descriptions.csv"
CAPTION_STREAM = 8  # keeps the generator of captions apart from those of clips
JPEG_QUALITY = 90


@dataclass(frozen=True)
class DemoClip:
    """One clip of the plan; folds count from 1."""

    name: str
    label: int
    identity: int
    fold: int


def plan_demo(clips: int = 700, seed: int = 0) -> list[DemoClip]:
    """Plan the clips, sorted by name.

    Folds share no person, and have the same class shares as far as whole clips allow.

    Raises
    ------
    UserError
        For a number of clips out of range.
    """
    if not SMALLEST <= clips <= 99_999:
        raise UserError(f"{clips} clips: a demo set has {SMALLEST} to 99999")
    rng = np.random.default_rng(seed)
    people = rng.permutation(IDENTITIES).reshape(FOLDS, -1)
    names = (f"{n:05d}" for n in rng.permutation(clips) + 1)
    plan = []
    for fold in range(FOLDS):
        labels = rng.permutation(_labels(clips // FOLDS + (fold < clips % FOLDS)))
        plan += [
            DemoClip(next(names), int(y), int(people[fold, i % people.shape[1]]), fold + 1)
            for i, y in enumerate(labels)
        ]
    return sorted(plan, key=lambda c: c.name)


def _labels(n: int) -> list[int]:
    """``n`` labels in :data:`SHARES`, rounded by largest remainder, ties to the lower label."""
    exact = np.array(SHARES) * n
    counts = np.floor(exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    return np.repeat(np.arange(len(SHARES)), counts).tolist()


def render_demo(
    out: Path,
    clips: int = 700,
    size: int = 64,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the demo set of these arguments to ``out``, unless it is there, and return ``out``.

    The bytes depend on ``clips``, ``size`` and ``seed`` only. An incomplete set,
    or one of other arguments, is written anew. A complete set without descriptions gets them.

    Parameters
    ----------
    out
        Folder; it is created if it is missing.
    clips, size, seed
        Number of clips, side of the frames in pixels, and what seeds both plan and clips.
    workers
        Processes; by default one for each usable core. With 1, no process is started.
    progress
        Called with (clips done, clips in all) after each clip.

    Raises
    ------
    UserError
        For arguments out of range, and for a folder that holds frames or lists of something else.
    """
    plan = plan_demo(clips, seed)
    if size < 32 or (workers is not None and workers < 1):
        raise UserError(f"size {size}, workers {workers}: at least 32 pixels and one worker needed")
    arguments = {"renderer": RENDERER, "seed": seed, "clips": clips, "size": size}
    if _arguments(out / "demo.json") == arguments:
        if not (out / DESCRIPTIONS).exists():
            _write_descriptions(out, plan, seed)
        return out
    _clear(out, arguments)
    (out / "landmarks").mkdir(exist_ok=True)
    tasks = [(out, clip, size, seed) for clip in plan]
    rows = run_jobs(_write_clip, tasks, clips, workers, progress)
    _write_lists(out / "lists", rows)
    _write_descriptions(out, plan, seed)
    content = {**arguments, "identities": IDENTITIES, "classes": SEVEN, "rows": rows}
    write_json(out / "demo.json", content)
    (out / UNFINISHED).unlink(missing_ok=True)
    return out


def _arguments(mark: Path) -> dict[str, Any] | None:
    """Return the arguments in a marker file; None without the file."""
    if not mark.is_file():
        return None
    held = read_json(mark)
    return {name: held.get(name) for name in ("renderer", "seed", "clips", "size")}


def _clear(out: Path, arguments: dict[str, Any]) -> None:
    """Mark ``out`` as unfinished and remove a set of other arguments, if it has our marker."""
    marks = [out / UNFINISHED, out / "demo.json"]
    folders = [f for f in (out / "frames", out / "landmarks", out / "lists") if f.exists()]
    held = [h for h in map(_arguments, marks) if h]
    if folders and not held:
        raise UserError(
            f"{out} holds {folders[0].name} that are not of a demo set: choose another folder"
        )
    marks[1].unlink(missing_ok=True)
    if any(h != arguments for h in held):
        for folder in folders:
            shutil.rmtree(folder)
        (out / DESCRIPTIONS).unlink(missing_ok=True)
    write_json(marks[0], arguments)


def _write_clip(task: tuple[Path, DemoClip, int, int], advance: Advance) -> dict[str, Any]:
    """Draw a clip and write its files atomically; return its row of ``demo.json``."""
    out, clip, size, seed = task
    drawn = render_clip(clip.label, clip.identity, (seed, int(clip.name)), size)
    folder = out / "frames" / clip.name
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}"
    for number, frame in enumerate(drawn.frames):
        # Colour at full resolution: lips and tears are two pixels high.
        temporary.write_bytes(simplejpeg.encode_jpeg(frame, JPEG_QUALITY, "RGB", "444"))
        temporary.replace(folder / f"{number:05d}.jpg")
    with temporary.open("wb") as f:
        np.save(f, drawn.landmarks, allow_pickle=False)
    temporary.replace(out / "landmarks" / f"{clip.name}.npy")
    advance(1)
    return {**asdict(clip), "frames": len(drawn.frames), "apex": int(drawn.intensity.argmax())}


def _write_lists(folder: Path, rows: list[dict[str, Any]]) -> None:
    for fold in range(1, FOLDS + 1):
        for part in ("train", "test"):
            chosen = [r for r in rows if (r["fold"] == fold) == (part == "test")]
            text = "".join(f"{r['name']} {r['frames']} {r['label']}\n" for r in chosen)
            write_text(folder / f"DEMO_set_{fold}_{part}.txt", text)


def _write_descriptions(out: Path, plan: list[DemoClip], seed: int) -> None:
    """Write captions of all clips; their random generator is not that of the clips."""
    rows = [("clip", "caption")]
    for clip in plan:
        number = int(clip.name)
        rng = np.random.default_rng([CAPTION_STREAM, seed, number])
        track = clip_track(clip.label, (seed, number))[0]
        rows.append((clip.name, describe_clip(track, rng)))
    write_text(out / DESCRIPTIONS, csv_text(rows))
