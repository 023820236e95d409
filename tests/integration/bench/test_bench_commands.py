"""``dfer bench``: the commands run and their figures have the promised form. How fast is no test's business."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import simplejpeg
from typer.testing import CliRunner

from dfer_dist.bench.loader import make_clips
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.utils.files import read_json
from launch.cli import app
from tests.helpers.paths import ROOT


def loader(tmp_path: Path, *words: str) -> dict:
    cores = os.sched_getaffinity(0)
    file = tmp_path / "loader.json"
    done = CliRunner().invoke(
        app, ["bench", "loader", "--json", str(file), "--clips", "8", "--rounds", "1", *words]
    )
    assert done.exit_code == 0, done.output
    assert (
        "libjpeg-turbo alone" in done.output
        and "Pillow over frame files" in done.output
        and "such cores" in done.output
    )
    assert os.sched_getaffinity(0) == cores
    return read_json(file)


def test_loader_tells_its_speed_beside_the_floor_and_the_plain_way(tmp_path: Path) -> None:
    figures = loader(tmp_path)
    for way in ("ours", "in_process", "floor", "baseline", "augment_device"):
        assert 0 < figures[way]["clips_per_s"] < 1e6 and 0 < figures[way]["clips_per_cpu_s"] < 1e6
        assert 2**27 < figures[way]["peak_bytes"] < 2**33, "torch is imported"
    about = figures["about"]
    assert (about["num_frames"], about["image_size"], about["clips"], about["rounds"]) == (
        16,
        224,
        8,
        1,
    )
    assert about["frame_bytes"] == pytest.approx(20_000, rel=0.1)
    assert figures["baseline"]["clips_per_s"] < figures["floor"]["clips_per_s"]


def test_loader_takes_an_experiments_shards_and_settings(
    tmp_path: Path, tiny_shards: Index
) -> None:
    figures = loader(
        tmp_path,
        "demo",
        f"data.shards={tiny_shards.root}",
        "data.num_frames=3",
        "data.image_size=32",
    )
    assert (figures["about"]["num_frames"], figures["about"]["image_size"]) == (3, 32)


def test_made_clips_are_of_sixty_different_frames(tmp_path: Path) -> None:
    index = make_clips(tmp_path, 2, size=64)
    clips = [ClipReader(index).jpegs(shard, 0) for shard in range(2)]  # one of each fold
    assert [len(set(clip)) for clip in clips] == [60, 60] and clips[0] != clips[1]
    assert simplejpeg.decode_jpeg_header(clips[0][0])[:2] == (64, 64)


def test_the_document_has_a_place_for_each_benchmark_and_figures_in_it() -> None:
    spec = importlib.util.spec_from_file_location("write", ROOT / "benchmarks" / "write.py")
    assert spec and spec.loader
    write = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write)
    text = write.DOC.read_text(encoding="utf-8")
    for mark in [*write.BENCHES, "machine"]:
        _, found, rest = text.partition(f"<!-- {mark} -->\n")
        assert found and len(rest.partition("<!-- end -->")[0]) > 60, (
            f"run make bench: {mark} is empty"
        )
