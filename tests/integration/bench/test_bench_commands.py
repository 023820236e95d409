"""``dfer bench loader`` runs and its results have the documented keys; speed is not tested."""

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


def loader(tmp_path: Path, *arguments: str) -> dict:
    cores = os.sched_getaffinity(0)
    file = tmp_path / "loader.json"
    done = CliRunner().invoke(
        app,
        ["bench", "loader", "--json", str(file), "--clips", "8", "--rounds", "1", *arguments],
    )
    assert done.exit_code == 0, done.output
    for text in ("libjpeg-turbo alone", "Pillow over frame files", "such cores"):
        assert text in done.output
    assert os.sched_getaffinity(0) == cores
    return read_json(file)


def test_loader_reports_upper_bound_and_baseline(tmp_path: Path) -> None:
    results = loader(tmp_path)
    for variant in ("ours", "in_process", "floor", "baseline", "augment_device"):
        row = results[variant]
        assert 0 < row["clips_per_s"] < 1e6
        assert 0 < row["clips_per_cpu_s"] < 1e6
        assert 2**27 < row["peak_bytes"] < 2**33, "torch is imported"
    about = results["about"]
    expected = {"num_frames": 16, "image_size": 224, "clips": 8, "rounds": 1}
    assert {key: about[key] for key in expected} == expected
    assert about["frame_bytes"] == pytest.approx(20_000, rel=0.1)
    assert results["baseline"]["clips_per_s"] < results["floor"]["clips_per_s"]


def test_loader_uses_shards_and_settings_of_experiment(tmp_path: Path, tiny_shards: Index) -> None:
    results = loader(
        tmp_path,
        "demo",
        f"data.shards={tiny_shards.root}",
        "data.num_frames=3",
        "data.image_size=32",
    )
    assert (results["about"]["num_frames"], results["about"]["image_size"]) == (3, 32)


def test_generated_clips_have_60_different_frames(tmp_path: Path) -> None:
    index = make_clips(tmp_path, 2, size=64)
    # One of each fold.
    clips = [ClipReader(index).jpegs(shard, 0) for shard in range(2)]
    assert [len(set(clip)) for clip in clips] == [60, 60] and clips[0] != clips[1]
    assert simplejpeg.decode_jpeg_header(clips[0][0])[:2] == (64, 64)


def test_document_has_results_of_each_benchmark() -> None:
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
