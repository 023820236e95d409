from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.packing import shard_writer
from dfer_dist.data.packing.load_clip import LoadedClip, encode_frame
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport
from dfer_dist.data.shards import frame_buffer
from dfer_dist.data.shards.sidecars import array_bytes, read_array, read_sidecar_tar
from dfer_dist.data.sources.records import ClipRecord
from tests.helpers.data.clips import write_clip

LIMIT = 1 << 18


def test_landmarks_of_a_shard_are_written_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clip has landmarks of 100 kB, as for some 200 frames."""
    monkeypatch.setattr(frame_buffer, "_MAX_IN_MEMORY", LIMIT)

    def load(record: ClipRecord, *_: object, **options: object) -> LoadedClip:
        # detecting the face in as many frames would take minutes
        clip = LoadedClip()
        clip.jpegs.append(encode_frame(np.zeros((8, 8, 3), np.uint8)))
        points = np.full(25_000, float(record.source), np.float32)
        clip.landmarks = {"landmarks.npy": array_bytes(points), "found.npy": array_bytes(points)}
        return clip

    monkeypatch.setattr(shard_writer, "load_clip", load)
    records = [ClipRecord(f"c{i}", 0, "fold1", str(i), tmp_path / "c") for i in range(40)]
    pack(records[:1], "dfew", tmp_path / "first", workers=1, faces=True)
    tracemalloc.start()
    index = pack(records, "dfew", tmp_path / "out", workers=1, faces=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * LIMIT
    for key, members in read_sidecar_tar(index.path(0), "landmarks"):
        assert set(members) == {"landmarks.npy", "found.npy"}
        assert (read_array(members["landmarks.npy"]) == int(key[1:])).all()


def test_folder_of_a_clip_is_listed_once_for_its_sizes_and_once_for_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "c", 3, seed=0)
    (tmp_path / "c" / "sound.wav").touch()
    scandir, listed = os.scandir, Counter[str]()

    def count(folder: Path) -> Iterator[os.DirEntry[str]]:
        listed[str(folder)] += 1
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", count)
    pack([ClipRecord("c", 0, "fold1", "c", tmp_path / "c")], "dfew", tmp_path / "out", workers=1)
    assert listed[str(tmp_path / "c")] == 2
    assert PackReport.read(tmp_path / "out" / REPORT).unread == {".wav files": 1}
