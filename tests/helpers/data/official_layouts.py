"""Write data sets in the layouts of their owners."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from dfer_dist.data.sources.compound import MAFW_COMPOUND
from tests.helpers.data.clips import write_clip
from tests.helpers.paths import SHARED

SPLITS = Path(os.environ.get("DFER_SPLITS") or SHARED / "official_splits")

needs_splits = pytest.mark.skipif(
    not SPLITS.is_dir(),
    reason=f"the lists released by the authors of DFER-CLIP are not in {SPLITS} (set DFER_SPLITS)",
)

# names of the labels in the lists, in the order of Clip.label
DFEW_NUMBERS = "1234567"
FERV_NAMES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
MAFW_NAMES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
MAFW_NAMES += ("contempt", "anxiety", "helplessness", "disappointment")
COMPOUND_NAMES = MAFW_NAMES + tuple(name.replace("+", "_") for name in MAFW_COMPOUND)


class Clip(NamedTuple):
    """A clip of a list, and its number of frames."""

    source: str
    label: int
    split: str
    frames: int


def write_pool(pool: Path, most: int, **size: int) -> Path:
    """Write folders ``1`` to ``most`` with as many frames each, for clips to link to."""
    for n in range(1, most + 1):
        write_clip(pool / str(n), n, seed=n, **size)
    return pool


def link_clips(home: Path, clips: Iterable[Clip], pool: Path) -> None:
    for clip in clips:
        link = home / clip.source
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(pool.resolve() / str(clip.frames), target_is_directory=True)


def write_dfer_clip_lists(lists: Path, clips: list[Clip], name: str) -> None:
    lists.mkdir(parents=True)
    for part in _parts(clips):
        stem = f"set_{part.fold[4:]}_{part.name}" if part.fold else part.name
        lines = [f"{c.source} {c.frames} {c.label}" for c in part.clips]
        (lists / f"{name}_{stem}.txt").write_text("\n".join(lines))


def write_dfew_lists(root: Path, clips: list[Clip]) -> None:
    for part in _parts(clips):
        folder = root / "EmoLabel_DataSplit" / f"{part.name}(single-labeled)"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{int(c.source)},{DFEW_NUMBERS[c.label]}\r\n" for c in part.clips]
        text = "video_name,label\r\n" + "".join(lines)
        (folder / f"set_{part.fold[4:]}.csv").write_text(text)


def write_mafw_lists(root: Path, clips: list[Clip], kind: str = "single/no_caption") -> None:
    for part in _parts(clips):
        folder = root / "Train & Test Set" / kind / f"set_{part.fold[4:]}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{c.source}.mp4 {COMPOUND_NAMES[c.label]}\n" for c in part.clips]
        (folder / f"{part.name}.txt").write_text("".join(lines))


def write_ferv39k_lists(root: Path, clips: list[Clip]) -> None:
    folder = root / "4_setups" / "All_scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for part in _parts(clips):
        lines = [f"{c.source} {FERV_NAMES[c.label]}\n" for c in part.clips]
        (folder / f"{part.name}_All.csv").write_text("".join(lines))


class _Part(NamedTuple):
    """A list to write: its fold (empty if there are no folds), ``train`` or ``test``, its clips."""

    fold: str
    name: str
    clips: list[Clip]


def _parts(clips: list[Clip]) -> list[_Part]:
    splits = sorted({c.split for c in clips})
    if "test" in splits:
        return [_Part("", split, [c for c in clips if c.split == split]) for split in splits]
    return [
        _Part(fold, name, [c for c in clips if (c.split == fold) == (name == "test")])
        for fold in splits
        for name in ("train", "test")
    ]
