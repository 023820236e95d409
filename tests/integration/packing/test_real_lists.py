"""Pack the real lists of DFEW, MAFW and FERV39k, as DFER-CLIP's lists and in the owners' layouts.

Each clip is a link to a folder of at most 16 small JPEGs, and the lists declare as many. A sample
of the clips runs with the other tests, all clips by ``make test-data``.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport
from dfer_dist.data.sources.datasets import read_dataset
from tests.helpers.data.official_layouts import (
    SPLITS,
    Clip,
    link_clips,
    needs_splits,
    write_dfer_clip_lists,
    write_dfew_lists,
    write_ferv39k_lists,
    write_mafw_lists,
    write_pool,
)

MAX_FRAMES = 16

ALL = {"dfew": 11_697, "mafw": 9_172, "ferv39k": 38_935}

OWNERS: dict[str, tuple[Callable[[Path, list[Clip]], None], str]] = {
    "dfew": (write_dfew_lists, "Clip/clip_224x224"),
    "mafw": (write_mafw_lists, "data/frames"),
    "ferv39k": (write_ferv39k_lists, "2_ClipsforFaceCrop"),
}

CLASSES = [
    "happiness",
    "sadness",
    "neutral",
    "anger",
    "surprise",
    "disgust",
    "fear",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool"), MAX_FRAMES, width=16, height=16)


def read_clips(dataset: str) -> list[Clip]:
    """Read the released lists without the code under test."""
    clips = []
    for file in sorted((SPLITS / dataset).iterdir()):
        fold = re.search(r"set_(\d)_test", file.name)
        part = "test" if "_test" in file.name else "train"
        if fold or dataset == "ferv39k":
            for line in file.read_text().split("\n"):
                if line:
                    source, frames, label = line.split(" ")
                    split = f"fold{fold[1]}" if fold else part
                    clips.append(Clip(source, int(label), split, min(int(frames), MAX_FRAMES)))
    return clips


def file_states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each file."""
    return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in folder.iterdir()}


def check(dataset: str, clips: list[Clip], pool: Path, root: Path, workers: int | None) -> None:
    """Check that both layouts pack to the same bytes, and that packing again does nothing."""
    write_lists, home = OWNERS[dataset]
    write_lists(root / "set", clips)
    write_dfer_clip_lists(root / "annotation", clips, dataset.upper())
    link_clips(root / "set" / home, clips, pool)
    listings = {
        "lists": read_dataset(dataset, root / "set" / home, root / "annotation"),
        "owner": read_dataset(dataset, root / "set"),
    }
    for name, listing in listings.items():
        start = time.monotonic()
        index = pack(
            listing.records, listing.name, root / name, workers=workers, classes=listing.classes
        )
        taken, start = time.monotonic() - start, time.monotonic()
        report = PackReport.read(root / name / REPORT)
        assert report.problems == [] and report.encoded_frames == 0
        assert report.clips == report.listed == len(clips)
        assert sum(shard.clips for shard in index.shards) == len(clips)
        assert report.frames == sum(c.frames for c in clips)
        expected = Counter((c.split, CLASSES[c.label]) for c in clips)
        counts = {
            (split, class_name): n
            for split, split_report in report.splits.items()
            for class_name, n in split_report.classes.items()
            if n
        }
        assert counts == expected
        before = file_states(root / name)
        assert pack(listing.records, listing.name, root / name, classes=listing.classes) == index
        assert file_states(root / name) == before
        again = time.monotonic() - start
        print(f"{dataset} from {name}: {len(clips)} clips in {taken:.0f} s, again {again:.1f} s")
    packed = [
        {f.name: f.read_bytes() for f in (root / name).iterdir() if f.name != REPORT}
        for name in listings
    ]
    assert packed[0] == packed[1]


@needs_splits
@pytest.mark.parametrize("dataset", ALL)
def test_sample_of_the_real_lists_packs_from_both_layouts(
    dataset: str, pool: Path, tmp_path: Path
) -> None:
    clips = read_clips(dataset)
    assert len(clips) == ALL[dataset]
    check(dataset, clips[:: len(clips) // 200], pool, tmp_path, workers=1)


@needs_splits
@pytest.mark.data_full
@pytest.mark.parametrize("dataset", ALL)
def test_all_clips_of_the_real_lists_pack_from_both_layouts(
    dataset: str, pool: Path, tmp_path: Path
) -> None:
    clips = read_clips(dataset)
    assert len(clips) == len({c.source for c in clips}) == ALL[dataset]
    check(dataset, clips, pool, tmp_path, workers=None)
