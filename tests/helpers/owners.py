"""Data sets laid out on disk as their owners do, from rows of clip, label, split and number of frames."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.clips import write_clip
from tests.helpers.paths import SHARED

SPLITS = Path(os.environ.get("DFER_SPLITS") or SHARED / "official_splits")

needs_splits = pytest.mark.skipif(
    not SPLITS.is_dir(),
    reason=f"the lists that the authors of DFER-CLIP released are not in {SPLITS} (set DFER_SPLITS)",
)

# label order of the rows below: happiness, sadness, neutral, anger, surprise, disgust, fear, and MAFW's four
DFEW_NUMBERS = "1234567"  # happy, sad, neutral, angry, surprise, disgust, fear
FERV_NAMES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
MAFW_NAMES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
MAFW_NAMES += ("contempt", "anxiety", "helplessness", "disappointment")


class Clip(NamedTuple):
    source: str
    label: int
    split: str
    frames: int


def write_pool(pool: Path, most: int, **size: int) -> Path:
    """Folders ``1`` to ``most`` with so many frames each, for clips to link to."""
    for n in range(1, most + 1):
        write_clip(pool / str(n), n, seed=n, **size)
    return pool


def link_clips(home: Path, clips: Iterable[Clip], pool: Path) -> None:
    for clip in clips:
        place = home / clip.source
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(pool.resolve() / str(clip.frames), target_is_directory=True)


def write_dfer_clip_lists(lists: Path, clips: list[Clip], name: str) -> None:
    lists.mkdir(parents=True)
    for file, part in _parts(clips):
        words = f"set_{file[4:]}_{part[0]}" if file else part[0]
        (lists / f"{name}_{words}.txt").write_text(
            "\n".join(f"{c.source} {c.frames} {c.label}" for c in part[1])
        )


def write_dfew_lists(root: Path, clips: list[Clip]) -> None:
    for fold, (part, chosen) in _parts(clips):
        file = root / "EmoLabel_DataSplit" / f"{part}(single-labeled)" / f"set_{fold[4:]}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{int(c.source)},{DFEW_NUMBERS[c.label]}" for c in chosen]
        file.write_text("video_name,label\r\n" + "".join(f"{line}\r\n" for line in lines))


def write_mafw_lists(root: Path, clips: list[Clip], kind: str = "single/no_caption") -> None:
    for fold, (part, chosen) in _parts(clips):
        file = root / "Train & Test Set" / kind / f"set_{fold[4:]}" / f"{part}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{c.source}.mp4 {MAFW_NAMES[c.label]}\n" for c in chosen))


def write_ferv39k_lists(root: Path, clips: list[Clip]) -> None:
    for _, (part, chosen) in _parts(clips):
        file = root / "4_setups" / "All_scenes" / f"{part}_All.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{c.source} {FERV_NAMES[c.label]}\n" for c in chosen))


def _parts(clips: list[Clip]) -> list[tuple[str, tuple[str, list[Clip]]]]:
    """Each list to be written: its fold (empty for a pair of lists), part and clips."""
    splits = sorted({c.split for c in clips})
    if "test" in splits:
        return [("", (split, [c for c in clips if c.split == split])) for split in splits]
    return [
        (f, (p, [c for c in clips if (c.split == f) == (p == "test")]))
        for f in splits
        for p in ("train", "test")
    ]
