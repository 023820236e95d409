from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.datasets import check_out, read_dataset
from dfer_dist.utils.errors import UserError
from tests.helpers.data.official_layouts import Clip, link_clips, write_dfew_lists, write_pool

DFEW = [Clip(f"{i * 41:05d}", i % 7, f"fold{i % 5 + 1}", i % 3 + 1) for i in range(1, 36)]


@pytest.fixture
def dfew(tmp_path: Path) -> Path:
    pool = write_pool(tmp_path / "pool", 3, width=16, height=16)
    write_dfew_lists(tmp_path / "DFEW-part2", DFEW)
    link_clips(tmp_path / "DFEW-part2" / "Clip" / "clip_224x224", DFEW, pool)
    return tmp_path


def test_read_dataset_with_lists_ignores_the_owners_lists(dfew: Path) -> None:
    lists = dfew / "annotation"
    lists.mkdir()
    (lists / "DFEW_set_1_test.txt").write_text("00041 3 6")
    root = dfew / "DFEW-part2" / "Clip" / "clip_224x224"
    assert [(r.source, r.label) for r in read_dataset("dfew", root, lists).records] == [
        ("00041", 6)
    ]
    assert len(read_dataset("dfew", dfew).records) == 35


def test_read_dataset_with_lists_counts_what_they_do_not_name(dfew: Path) -> None:
    (dfew / "lists").mkdir()
    (dfew / "lists" / "DFEW_set_1_test.txt").write_text("00041 3 6\n00082 3 6")
    root = dfew / "DFEW-part2" / "Clip" / "clip_224x224"
    (root / "extra.avi").touch()
    unread = {"folders in no list": 33, ".avi files": 1}
    assert read_dataset("dfew", root, dfew / "lists").unread == unread


def test_shards_are_not_written_into_the_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    check_out(tmp_path / "data", tmp_path / "data shards")
    check_out(tmp_path / "data", tmp_path)
    for out in ("data", "data/shards", "link/a/b", "data/../data/c"):
        with pytest.raises(UserError, match=r"is in --root .*: choose a folder next to it"):
            check_out(tmp_path / "data", tmp_path / out)


def test_read_dataset_rejects_arguments_that_exclude_each_other(dfew: Path) -> None:
    with pytest.raises(UserError, match="omit --seed for dfew"):
        read_dataset("dfew", dfew, seed=1)
    with pytest.raises(UserError, match="omit --lists"):
        read_dataset("folder", dfew, dfew)
    with pytest.raises(UserError, match="give --root instead of --frames"):
        read_dataset("dfew", dfew, dfew, frames=dfew)
    with pytest.raises(UserError, match="--frames is for --dataset dfew"):
        read_dataset("folder", dfew, frames=dfew)
    with pytest.raises(UserError, match="demo needs --lists"):
        read_dataset("demo", dfew)
    with pytest.raises(UserError, match=r"unknown data set 'affew': choose one of .*, folder, .*"):
        read_dataset("affew", dfew)
    with pytest.raises(UserError, match="list needs --lists, one or more lists of clips"):
        read_dataset("list", dfew)
    with pytest.raises(UserError, match="dfew has one folder of lists: give --lists once"):
        read_dataset("dfew", dfew, [dfew, dfew])
    with pytest.raises(
        UserError, match="--classes is for --dataset list, folder: omit --classes for dfew"
    ):
        read_dataset("dfew", dfew, classes=["a", "b"])
    with pytest.raises(UserError, match="--images is for --dataset folder: omit --images for dfew"):
        read_dataset("dfew", dfew, images=True)
