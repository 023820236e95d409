from __future__ import annotations

import json
from pathlib import Path

import PIL
import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport, PackSettings
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import write_clip


@pytest.fixture
def report_file(tmp_path: Path) -> Path:
    write_clip(tmp_path / "c", 3, seed=0)
    record = ClipRecord("c", 0, "fold1", "c", tmp_path / "c", 4)
    pack([record], "dfew", tmp_path / "out", workers=1)
    return tmp_path / "out" / REPORT


def test_report_file_keeps_the_keys_of_version_1(report_file: Path) -> None:
    raw = json.loads(report_file.read_text())
    later = ["dropped_frames", "decoders", "unread", "notes", "uncropped_clips"]
    head = ["version", "dataset", "index_hash", "listed", "clips", "frames", "encoded_frames"]
    assert list(raw) == [*head, "splits", "problems", "settings", "sources", *later]
    assert list(raw["splits"]["fold1"]) == ["listed", "clips", "frames", "problems", "classes"]
    assert list(raw["problems"][0]) == ["clip", "split", "kind", "reason", "left_out"]
    assert raw["settings"] == {
        "clips_per_shard": 256,
        "resize": None,
        "faces": False,
        "max_bad_frames": None,
        "keep_uncropped": False,
        "detector": "hog",
    }
    assert raw["decoders"]["pillow"] == PIL.__version__
    assert list(raw["decoders"]) == ["av", "pillow", "simplejpeg", "rules"]
    assert PackReport.read(report_file).to_json() == {
        k: v for k, v in raw.items() if k != "version"
    }


def test_report_of_version_1_is_read(report_file: Path) -> None:
    raw = json.loads(report_file.read_text())
    del raw["dropped_frames"], raw["decoders"], raw["settings"]["max_bad_frames"]
    report_file.write_text(json.dumps(raw))
    report = PackReport.read(report_file)
    assert report.settings == PackSettings(256) and report.dropped_frames == 0


def test_report_without_a_key_is_rejected(report_file: Path) -> None:
    raw = json.loads(report_file.read_text())
    del raw["settings"]
    report_file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"lacks settings: .*choose an empty --out"):
        PackReport.read(report_file)


def test_settings_are_shown_as_arguments() -> None:
    assert str(PackSettings(256, None, True)) == "--clips-per-shard 256 --faces"
    assert str(PackSettings(2, 64, False)) == "--clips-per-shard 2 --resize 64"
    assert str(PackSettings(2, None, False, 2.5)) == "--clips-per-shard 2 --max-bad-frames 2.5"
    settings = PackSettings(2, faces=True, keep_uncropped=True, detector="cnn")
    assert str(settings) == "--clips-per-shard 2 --faces --detector cnn --keep-uncropped"
