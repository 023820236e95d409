"""Clips that are folders of frame files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_PNG_SUFFIXES = (".png",)


def list_frames(folder: Path) -> list[Path]:
    """Return the JPEG files of a folder in temporal order, or its PNG files if it has no JPEG."""
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for suffixes in (_JPEG_SUFFIXES, _PNG_SUFFIXES):
        frames = [folder / name for name in names if name.lower().endswith(suffixes)]
        if frames:
            return sort_frames(frames)
    return []


def sort_frames(files: Iterable[Path]) -> list[Path]:
    """Sort frame files by the numbers in their names: 2.jpg comes before 10.jpg."""
    return sorted(files, key=lambda file: _natural_key(file.name))


def _natural_key(name: str) -> tuple[list[int], str]:
    stem = name.rpartition(".")[0]
    return [int(number) for number in re.findall(r"[0-9]+", stem)], name
