"""The output of ``dfer pack``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import simplejpeg

from dfer_dist.data.packing.report import REPORT, PackReport
from tests.helpers.cli import dfer, invoke
from tests.helpers.data.clips import write_clip
from tests.helpers.forked import Done
from tests.helpers.paths import ROOT


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

    assert "not read" not in done.stdout

    strict = dfer_pack(tmp_path, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.startswith("error: clip ")
    assert len(strict.stderr.splitlines()) == 1


def test_dfer_pack_prints_what_it_does_not_read(tmp_path: Path) -> None:
    for name in ("happy/a", "happy/b", "sad/c", "sad/d"):
        write_clip(tmp_path / "mine" / name, 3, seed=ord(name[-1]), width=50 + ord(name[-1]))
    for name in ("happy/a/x.png", "happy/s.wav", "sad/t.wav", "left.mp4"):
        (tmp_path / "mine" / name).touch()
    inside = dfer_pack(tmp_path, "--out", "mine/shards")
    assert inside.returncode == 2 and "--out mine/shards is in --root mine" in inside.stderr

    done = dfer_pack(tmp_path, "--resize", "48")
    assert done.returncode == 0, done.stderr
    first = "4 clips listed; from mine; all frames are brought to 48 x 48 pixels"
    assert done.stdout.splitlines()[0] == first
    for line in (".mp4 files not read", ".png files not read"):
        assert f"\n1 {line}\n" in done.stdout
    assert "\n2 .wav files not read\n" in done.stdout
    unread = {".mp4 files": 1, ".png files": 1, ".wav files": 2}
    assert PackReport.read(tmp_path / "out" / REPORT).unread == unread


def test_packing_and_adding_maps_import_no_torch(tmp_path: Path) -> None:
    """It takes seconds, in each worker process too."""
    write_clip(tmp_path / "mine/happy/a", 2, seed=0)
    write_clip(tmp_path / "mine/sad/b", 2, seed=1)
    (tmp_path / "marks").mkdir()
    for key in ("happy_a", "sad_b"):
        np.save(tmp_path / "marks" / f"{key}.npy", np.full((2, 68, 2), 9, np.float32))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from launch.commands.data import enrich, pack\n"
        "pack('folder', Path('mine'), Path('out'), folds=2, workers=1)\n"
        "enrich(Path('out'), landmarks_from=Path('marks'), parsing=True, workers=1)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
    assert "parsing: 2 clips in 2 shards" in done.stdout


def test_several_lists_follow_their_option(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        write_clip(tmp_path / "mine" / name, 2, seed=i)
        list_name = ("train", "val", "test")[i]
        (tmp_path / f"{list_name}.csv").write_text(f"path,label,person\n{name},{i % 2},P{i}\n")
    lists = ["train.csv", "val.csv", "--classes", "calm,tense", "--lists", "test.csv"]
    command = [
        "pack",
        "--dataset",
        "list",
        "--root",
        "mine",
        "--out",
        "out",
        "--group-by",
        "person",
    ]
    done = invoke(*command, "--lists", *lists, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 clips listed; from train.csv and test.csv and val.csv and mine" in done.stdout
    assert "labels are 0 calm, 1 tense" in done.stdout
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [shard["split"] for shard in index["shards"]] == ["test", "train", "val"]
    assert index["extras"] == ["group"]
    alone = invoke(*command, "train.csv", cwd=tmp_path)
    assert alone.returncode == 2
    assert alone.stderr == "error: unexpected argument train.csv: lists are given with --lists\n"
