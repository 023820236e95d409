from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.lists.reader import FoldRequest, read_general_lists
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.utils.errors import UserError

CLASSES = ["anger", "fear", "joy"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders a to f, which are clips, and a video."""
    for name in "abcdef":
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / "v.mp4").touch()
    return tmp_path / "root"


def write(root: Path, *lines: str, name: str = "list.csv") -> Path:
    file = root.parent / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))
    return file


def read(root: Path, *lines: str, classes: list[str] | None = None) -> dict[str, ClipRecord]:
    request = FoldRequest(folds=2) if "split" not in lines[0] else None
    listing = read_general_lists(root, [write(root, *lines)], classes, request)
    return {record.source: record for record in listing.records}


def test_row_tells_group_frames_votes_labels_and_part(root: Path) -> None:
    records = read(
        root,
        "path,label,split,group,frames,votes,start,end",
        "a,anger,train,Ana,16,7;1;2,,",
        "b,joy+anger,test,Bo,,,,",
        "v.mp4,fear,test,Bo,,0;1;0,1.5,3",
        "v.mp4,fear,train,Bo,,0;1;0,,1.5",
        "v.mp4,fear,train,,,,4,",
        classes=CLASSES,
    )
    a, b, part, start, end = (records[s] for s in ("a", "b", "v#t=1.5,3", "v#t=0,1.5", "v#t=4"))
    assert (a.label, a.split, a.group, a.listed_frames, a.votes) == (
        0,
        "train",
        "Ana",
        16,
        (7, 1, 2),
    )
    assert (b.label, b.labels, b.listed_frames, b.votes) == (2, (0, 2), None, ())
    assert (part.start, part.end, part.media) == (1.5, 3.0, root / "v.mp4")
    assert (start.start, start.end, end.start, end.end) == (None, 1.5, 4.0, None)
    assert {r.key for r in records.values()} == {"a", "b", "v_t_1_5_3", "v_t_0_1_5", "v_t_4"}


def test_votes_without_a_label_choose_the_class_or_none(root: Path) -> None:
    lines = ["path,votes_joy,votes_anger,votes_fear", "a,1,5,2", "b,3,0,3", "c,2,0,0", "d,0,1,1"]
    records = read(root, *lines)
    assert [records[name].votes for name in "abcd"] == [(5, 2, 1), (0, 3, 3), (0, 0, 2), (1, 1, 0)]
    assert [records[name].label for name in "abcd"] == [0, 1, 2, 0]
    assert [records[name].split == "ambiguous" for name in "abcd"] == [False, True, False, True]


def test_label_counts_where_most_votes_are_for_another_class(root: Path) -> None:
    lines = ["path,label,votes", "a,anger,1;5;0", "b,anger,5;5;0", "c,anger,5;0;0", "d,joy,"]
    records = read(root, *lines, classes=CLASSES)
    reason = "its label is anger, but most votes, 5 of 6, are for fear"
    assert [fault.reason for fault in records["a"].faults] == [reason]
    assert records["a"].faults[0].kind == "votes differ" and not records["a"].faults[0].left_out
    assert [records[name].label for name in "abcd"] == [0, 0, 0, 2]
    assert not any(records[name].faults for name in "bcd")


def test_groups_are_in_one_fold_each(root: Path) -> None:
    file = write(
        root,
        "path,label,actor",
        *(f"{c},{CLASSES[i % 2]},{c in 'abc'}" for i, c in enumerate("abcdef")),
    )
    records = read_general_lists(root, [file], None, FoldRequest(2, group_by="Actor")).records
    assert {r.source: (r.split, r.group) for r in records} == {
        **dict.fromkeys("abc", ("fold2", "True")),
        **dict.fromkeys("def", ("fold1", "False")),
    }
    groups = write(root, "clip,origin", *(f"{c},{c in 'ace'}" for c in "abcdef"), name="g.csv")
    made = read_general_lists(root, [file], None, FoldRequest(2, groups=groups, group_by="origin"))
    assert {r.source for r in made.records if r.split == "fold2"} == set("ace")
    write(root, "path,label,group", "a,anger,x", "b,fear,")
    with pytest.raises(UserError, match="clip b has no group, others have"):
        read_general_lists(root, [file], None, FoldRequest(2))


def test_parts_of_a_video_are_in_one_fold(root: Path) -> None:
    for name in "xyz":
        (root / f"{name}.mp4").touch()
    rows = [f"{v}.mp4,{t},{t + 1},{c}" for v in "xyz" for t, c in enumerate(["joy", "fear"] * 3)]
    records = read(root, "path,start,end,label", *rows)
    assert len(records) == 18
    folds = {(record.group, record.split) for record in records.values()}
    assert len(folds) == 3 and {group for group, _ in folds} == set("xyz")
    given = read(
        root, "path,start,end,label,group", *(f"{row},{i % 3}" for i, row in enumerate(rows))
    )
    assert {record.group for record in given.values()} == set("012")


def test_absolute_paths_of_another_machine_are_found_below_the_root(root: Path) -> None:
    lines = [f"/home/x/root/{name} {i % 2}" for i, name in enumerate("abcdef")]
    for below in (root, root.parent):
        home = "root/" * (below == root.parent)
        listing = read_general_lists(below, [write(root, *lines)], ["p", "q"], FoldRequest(2))
        assert [r.source for r in listing.records] == [f"{home}{name}" for name in "abcdef"]
        assert [r.media for r in listing.records] == [root / name for name in "abcdef"]
    lines = [f"{root.resolve()}/{name},{i % 2}" for i, name in enumerate("abc")]
    listing = read_general_lists(root, [write(root, *lines)], ["p", "q"], FoldRequest(2))
    assert [r.source for r in listing.records] == list("abc")
    assert listing.notes == ("labels are 0 p, 1 q",)


def test_suffix_is_part_of_a_name_only_if_two_clips_differ_in_it(root: Path) -> None:
    (root / "v.avi").touch()
    records = read(root, "path,label,split", "a,joy,train", "v.mp4,fear,test")
    assert list(records) == ["a", "v"]
    records = read(root, "path,label,split", "a,joy,train", "v.mp4,fear,test", "v.avi,fear,train")
    assert {r.media.name for r in records.values()} == {"a", "v.mp4", "v.avi"} == set(records)


def test_folders_of_lists_are_read_with_what_they_do_not_name(root: Path) -> None:
    for fold, test in (("1", "abc"), ("2", "def")):
        write(root, *(f"{c} {'abcdef'.index(c) % 2}" for c in test), name=f"org/test_{fold}.txt")
    (root / "left.avi").touch()
    listing = read_general_lists(root, [root.parent / "org"], ["p", "q"])
    assert {r.source: r.split for r in listing.records} == {
        **dict.fromkeys("abc", "fold1"),
        **dict.fromkeys("def", "fold2"),
    }
    assert listing.unread == {".mp4 files": 1, ".avi files": 1}


@pytest.mark.parametrize(
    ("lines", "classes", "message"),
    [
        (["path,group", "a,x"], None, r"list.csv has the columns path, group, but no label"),
        (["label,group", "joy,x"], None, r"has the columns label, group, but no path"),
        (["path,label,split,fold", "a,joy,train,1"], None, "has the columns split and fold"),
        (["path,label,votes", "a,joy,1;2"], None, "has a column of votes: name the classes"),
        (
            ["path,label,votes", "a,joy,1;2"],
            CLASSES,
            r":2: 2 votes, 1;2, for 3 classes, anger,fear",
        ),
        (["path,label,votes", "a,joy,1;2;x"], CLASSES, r":2: votes 1;2;x are no numbers"),
        (["path,label,votes", "a,joy,1;2;-1"], CLASSES, r":2: votes 1;2;-1 are not all zero or"),
        (["path,label,votes", "a,joy,0;0;0"], CLASSES, r":2: votes 0;0;0 have no vote at all"),
        (["path,votes_joy,votes_fear", "a,1,1"], CLASSES, "votes for anger have no column"),
        (["path,label", ",joy"], CLASSES, r":2: the row has no path"),
        (["path,label", "a,"], CLASSES, r":2: the clip has neither a label nor votes"),
        (["path,label,start,end", "v.mp4,joy,3,3"], CLASSES, r":2: start 3 is not before end 3"),
        (["path,label,start", "v.mp4,joy,-1"], CLASSES, r":2: start '-1' is not a time in seconds"),
        (["path,label,frames", "a,joy,x"], CLASSES, r":2: frames 'x' is not a number of frames"),
        (["path,label,split", "a,joy,train", "a,joy,test"], CLASSES, "clip a is in two splits"),
        (["path,label,split", "x,joy,train", "y,joy,test"], CLASSES, "none of the 2 listed clips"),
        (["path,label,split", "a,joy,train", "b,fun,test"], CLASSES, r":3: class 'fun' is none of"),
        (["a 0", "b 3"], CLASSES, r":2: label 3 is out of range: --classes names 3, 0 to 2"),
        (["a 0", "b 3"], None, r":1: labels are numbers, 0 to 3: name the classes"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(
    lines: list[str], classes: list[str] | None, message: str, root: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(root, *lines, classes=classes)


def test_options_and_lists_that_do_not_fit_are_refused(root: Path) -> None:
    split = write(root, "path,label,split", "a,joy,train", "b,fear,test", name="s.csv")
    plain = write(root, "path,label", "a,joy", "b,fear", name="p.csv")
    with pytest.raises(UserError, match="the lists have splits, which are kept: omit --folds"):
        read_general_lists(root, [split], None, FoldRequest(folds=3))
    with pytest.raises(UserError, match=r"s\.csv has a column of splits, .*p\.csv has none"):
        read_general_lists(root, [split, plain])
    with pytest.raises(UserError, match=r"p\.csv has the columns path, label, but no 'actor'"):
        read_general_lists(root, [plain], None, FoldRequest(group_by="actor"))
    with pytest.raises(UserError, match="holds 2 clips, too few for 5 folds"):
        read_general_lists(root, [plain])
    with pytest.raises(UserError, match=r"--groups .*p\.csv needs --group-by, the name of its col"):
        read_general_lists(root, [plain], None, FoldRequest(2, groups=plain))
    (root.parent / "none").mkdir()
    with pytest.raises(UserError, match=r"none holds no list, \.csv, \.tsv, \.txt"):
        read_general_lists(root, [root.parent / "none"])
    with pytest.raises(UserError, match="is not a folder: nothing to pack there"):
        read_general_lists(root / "v.mp4", [plain])


def test_clip_with_two_labels_is_left_out_and_one_listed_twice_is_kept(root: Path) -> None:
    lines = ["path,label,split", "a,joy,train", "a,fear,train", "b,joy,test", "b,joy,test"]
    records = read(root, *lines)
    faults = {name: [(f.kind, f.left_out) for f in records[name].faults] for name in "ab"}
    assert ("label conflict", True) in faults["a"] and faults["b"] == [("listed twice", False)]
