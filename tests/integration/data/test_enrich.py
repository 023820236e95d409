from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.parsing_maps import PALETTE, decode_maps, draw_regions
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.shards.sidecars import read_array
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.verify import verify
from dfer_dist.demo.dataset import render_demo
from launch.commands.data import enrich as command
from tests.helpers.data.clips import read_members, sidecar_bytes
from tests.helpers.forked import Forked


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered data set of 35 clips; read only."""
    return render_demo(tmp_path_factory.mktemp("source"), clips=35, size=32, workers=1)


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Index:
    """The rendered data set in ten shards."""
    listing = read_dataset("demo", source / "frames", source / "lists")
    return pack(listing.records, "demo", tmp_path / "shards", 4, workers=1)


def test_enrich_imports_landmarks_and_adds_maps(
    shards: Index, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(str(shards.root))
    before = {f.name: f.read_bytes() for f in root.iterdir()}
    command(root, landmarks_from=source / "landmarks", parsing=True, workers=2)
    out = capsys.readouterr().out
    assert f"landmarks: 35 clips in {len(shards.shards)} shards (import); 0 of" in out
    assert "(regions)" in out
    landmarks, maps = read_members(shards, "landmarks"), read_members(shards, "parsing")
    assert len(landmarks) == len(maps) == 35
    for key, members in landmarks.items():
        points = read_array(members["landmarks.npy"])
        np.testing.assert_array_equal(points, np.load(source / "landmarks" / f"{key}.npy"))
        assert points.dtype == np.float32 and read_array(members["found.npy"]).all()
        starts = read_array(maps[key]["starts.npy"])
        assert len(starts) == len(points) + 1
        frames = [0, len(points) - 1, 0]
        labels = decode_maps(maps[key]["maps.png"], starts, frames)
        np.testing.assert_array_equal(labels, [draw_regions(points[t], 32, 32) for t in frames])
    # any image viewer shows the colors
    with Image.open(io.BytesIO(maps[key]["maps.png"])) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), PALETTE[labels[0]])
    # the shards themselves are never written again
    assert all((root / name).read_bytes() == data for name, data in before.items())
    assert verify(str(root))[1] == [] and len(read_index(root).shards) == len(shards.shards)
    first = sidecar_bytes(root)
    command(root, landmarks_from=source / "landmarks", parsing=True, workers=1)
    assert f"import, {len(shards.shards)} existed before" in capsys.readouterr().out
    assert sidecar_bytes(root) == first
    for name in first:
        (root / name).unlink()
    enrich(root, EnrichRequest(parsing=True, landmarks_from=source / "landmarks"), workers=1)
    assert sidecar_bytes(root) == first, "the same bytes with one worker as with two"


def test_enrich_resumes_after_a_kill(shards: Index, source: Path, tmp_path: Path) -> None:
    root, whole = Path(str(shards.root)), tmp_path / "whole"
    shutil.copytree(root, whole)
    request = f"EnrichRequest(parsing=True, landmarks_from=Path({str(source / 'landmarks')!r}))"
    code = (
        "import os, signal\nfrom pathlib import Path\n"
        "from dfer_dist.data.faces.enrich import EnrichRequest, enrich\n"
        "def die(done, total):\n    if done == 37:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"enrich(Path({str(root)!r}), {request}, 1, die)\n"
    )
    (tmp_path / "killed.py").write_text(code)
    done = Forked([str(tmp_path / "killed.py")], os.environ).wait(timeout=120)
    assert done.returncode == -9
    assert any(f.name.startswith(".") for f in root.iterdir()), "it was killed within a file"
    finished = {
        f: f.stat().st_ino
        for f in root.iterdir()
        if f.name.endswith((".landmarks.json", ".parsing.json"))
    }
    assert 8 <= len(finished) < 2 * len(shards.shards)
    for place in (root, whole):
        enrich(place, EnrichRequest(parsing=True, landmarks_from=source / "landmarks"), workers=1)
    assert sidecar_bytes(root) == sidecar_bytes(whole)
    assert {f: f.stat().st_ino for f in finished} == finished, "finished files are kept"
