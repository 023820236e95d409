"""Votes in tables, and DFEW's annotation file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.sources.records import CLASSES, SEVEN, ClipRecord
from dfer_dist.data.sources.votes import add_votes, most_voted, read_votes
from dfer_dist.utils.errors import UserError
from tests.helpers.data.official_layouts import (
    Clip,
    link_clips,
    write_dfer_clip_lists,
    write_dfew_lists,
    write_pool,
)

DFEW_HEADER = "1happy,2sad,3neutral,4angry,5surprise,6disgust,7fear,order,label"
CLIPS = [Clip(f"{i * 41:05d}", i % 7, f"fold{i % 5 + 1}", 1) for i in range(1, 36)]


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))
    return file


def votes_of(label: int, others: int = 3) -> list[int]:
    """Return ten votes, most of them for a label, others for the next one."""
    return [10 - others if i == label else others * (i == (label + 1) % 7) for i in range(7)]


@pytest.fixture
def dfew(tmp_path: Path) -> Path:
    """DFEW with votes for all clips, and for four more without a majority, of which two exist."""
    pool = write_pool(tmp_path / "pool", 1, width=16, height=16)
    root = tmp_path / "DFEW"
    write_dfew_lists(root, CLIPS)
    more = [Clip(f"{number:05d}", 0, "", 1) for number in (7, 8)]
    link_clips(root / "Clip" / "clip_224x224", [*CLIPS, *more], pool)
    lines = [
        f"{','.join(map(str, votes_of(clip.label)))},{int(clip.source)},{clip.label + 1}"
        for clip in CLIPS
    ]
    lines += ["4,4,2,0,0,0,0,7,0", "0,0,3,3,4,0,0,8,0", "5,5,0,0,0,0,0,9,0", "5,5,0,0,0,0,0,6,0"]
    write(root / "Annotation" / "annotation.csv", DFEW_HEADER, *lines)
    return root


def test_dfew_gets_the_votes_of_its_annotation_file(dfew: Path) -> None:
    listing = read_dataset("dfew", dfew)
    records = {record.source: record for record in listing.records}
    for clip in CLIPS:
        record = records.pop(clip.source)
        assert (record.label, record.split) == (clip.label, clip.split)
        assert record.votes == tuple(votes_of(clip.label)) and record.faults == ()
    assert {source: (r.label, r.split, r.votes[:4]) for source, r in records.items()} == {
        "00007": (0, "ambiguous", (4, 4, 2, 0)),
        "00008": (4, "ambiguous", (0, 0, 3, 3)),
    }
    assert listing.unread == {}
    assert listing.notes[1:] == (
        "votes are read from annotation.csv; 0 clips have none",
        "2 clips without a majority do not exist",
    )


def test_dfew_without_its_votes_is_read_as_before(dfew: Path) -> None:
    listings = [read_dataset("dfew", dfew, votes="none")]
    (dfew / "Annotation" / "annotation.csv").rename(dfew.parent / "elsewhere.csv")
    listings.append(read_dataset("dfew", dfew))
    for listing in listings:
        assert len(listing.records) == 35 and not any(r.votes for r in listing.records)
        assert listing.unread == {"folders in no list": 2} and len(listing.notes) == 1
    given = read_dataset("dfew", dfew, votes=str(dfew.parent / "elsewhere.csv"))
    assert sum(record.split == "ambiguous" for record in given.records) == 2


def test_votes_are_added_to_dfer_clips_lists_too(dfew: Path) -> None:
    write_dfer_clip_lists(dfew.parent / "lists", CLIPS, "DFEW")
    frames, file = dfew / "Clip" / "clip_224x224", dfew / "Annotation" / "annotation.csv"
    records = read_dataset("dfew", frames, dfew.parent / "lists", votes=str(file)).records
    assert len(records) == 35
    assert all(r.votes == tuple(votes_of(r.label)) for r in records)


def test_most_voted_is_the_smallest_of_equals() -> None:
    assert most_voted((0, 3, 1, 3)) == (1, False)
    assert most_voted((0, 2.5, 2, 0)) == (1, True)


@pytest.mark.parametrize(
    "lines",
    [
        ("clip,anger,fear,joy", "x.mp4,1,0,5", "y,2,2,0"),
        ("joy;votes_fear;clip;vote_anger", "5;0;x;1", "0;2;y;2"),
        ("clip\tvotes", "x.mp4\t1;0;5", "y\t2,2,0"),
        ("clip,votes", 'x,"[1, 0, 5]"', 'y,"2 2 0"', "z,"),
    ],
)
def test_table_of_votes_may_have_a_column_for_each_class_or_for_all(
    lines: tuple[str, ...], tmp_path: Path
) -> None:
    votes = read_votes(write(tmp_path / "v.csv", *lines), ("anger", "fear", "joy"))
    assert {clip: (of.votes, of.is_ambiguous) for clip, of in votes.items()} == {
        "x": ((1, 0, 5), False),
        "y": ((2, 2, 0), True),
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("clip,anger,fear", "x,1,2"), "votes for joy have no column in clip, anger, fear"),
        (
            ("clip,age", "x,1"),
            "'clip', and 'votes' or one for each of anger, fear, joy, are needed",
        ),
        (("anger,fear,joy,label", "1,1,1,2"), "'clip', and 'votes' or one for each"),
        (("clip,anger,1anger,fear,joy", "x,1,1,1,1"), "columns anger and 1anger are of one class"),
        (("clip,votes", "x,1;2"), "v.csv:2: 2 votes, 1;2, for 3 classes"),
        (("clip,votes", "x,1;2;-3"), "v.csv:2: votes 1;2;-3 are not all zero or more"),
        (("clip,votes", "x,0;0;0"), "v.csv:2: votes 0;0;0 have no vote at all"),
        (("clip,votes", "x,1;2;nan"), "v.csv:2: votes 1;2;nan are not all zero or more"),
        (("clip,votes", "x,1;2;3", "x.mp4,1;2;3"), "v.csv:3: clip x has two rows: remove one"),
    ],
)
def test_tables_that_do_not_sum_up_are_refused(
    lines: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_votes(write(tmp_path / "v.csv", *lines), ("anger", "fear", "joy"))


def test_votes_of_other_clips_are_refused(dfew: Path) -> None:
    file = dfew / "Annotation" / "annotation.csv"
    record = ClipRecord("k", 0, "fold1", "other/name", dfew)
    with pytest.raises(UserError, match=r"votes for none of the clips, such as other/name, but"):
        add_votes([record], read_votes(file, CLASSES["dfew"]), SEVEN, file)


def test_other_majority_than_the_label_is_a_fault(tmp_path: Path) -> None:
    for name in ("Happy/a", "Happy/b", "Sad/c", "Sad/d"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    file = write(tmp_path / "v.csv", "clip,sad,happy", "a,3,1", "b,0,4", "Sad/c,2,2")
    listing = read_dataset("folder", tmp_path / "mine", folds=2, votes=str(file))
    faults = {r.source: [(f.kind, f.left_out) for f in r.faults] for r in listing.records}
    assert faults == {
        "Happy/a": [("votes differ", False)],
        "Happy/b": [],
        "Sad/c": [],
        "Sad/d": [],
    }
    assert [r.votes for r in listing.records] == [(1, 3), (4, 0), (2, 2), ()]
    assert "1 clips have none" in listing.notes[-1]
