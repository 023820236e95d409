"""The output of ``dfer pack``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import simplejpeg

from dfer_dist.data.packing.report import REPORT, PackReport
from tests.helpers.cli import dfer
from tests.helpers.data.clips import write_clip
from tests.helpers.forked import Done


def dfer_pack(folder: Path, *arguments: str) -> Done:
    command = ["pack", "--dataset", "folder", "--root", "mine", "--out", "out", "--folds", "2"]
    return dfer(*command, "--workers", "1", *arguments, cwd=folder, COLUMNS="80")


def test_dfer_pack_prints_counts_and_faults(tmp_path: Path) -> None:
    for name in ("happy/a", "happy/b", "sad/c", "sad/d"):
        write_clip(tmp_path / "mine" / name, 3, seed=ord(name[-1]))
    (tmp_path / "mine/happy/b/00001.jpg").write_text("x")
    other_size = simplejpeg.encode_jpeg(np.zeros((40, 50, 3), np.uint8))
    (tmp_path / "mine/sad/c/00001.jpg").write_bytes(other_size)

    done = dfer_pack(tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert ["clips", "2", "1", "3"] in rows or ["clips", "1", "2", "3"] in rows
    assert "1 of 4 clips left out, 1 kept with faults:" in done.stdout
    assert "happy/b: 00001.jpg cannot be decoded" in done.stdout
    assert "sad/c: 00001.jpg has 50 x 40 pixels" in done.stdout
    assert PackReport.read(tmp_path / "out" / REPORT).dataset == "mine"
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["classes"] == ["happiness", "sadness"]

    strict = dfer_pack(tmp_path, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.startswith("error: clip ")
    assert len(strict.stderr.splitlines()) == 1
