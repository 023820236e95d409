from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.sources.folder import read_folder
from dfer_dist.data.sources.records import ClipRecord, clip_files
from dfer_dist.utils.errors import UserError

# three known classes of different sizes
SIZES = {"Sad": 23, "angry": 12, "Happy": 41}


def make(root: Path, sizes: dict[str, int], group: str = "") -> Path:
    """Clips as empty files: reading a folder does not open them."""
    for name, count in sizes.items():
        for i in range(count):
            clip = root / name / f"{group}{name[:2]}{i:03d}"
            clip.mkdir(parents=True)
            (clip / "1.jpg").touch()
    return root


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return make(tmp_path / "mine", SIZES)


def table(records: list[ClipRecord]) -> dict[str, list[int]]:
    """Clips by fold and label."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for record in records:
        counts[record.split][record.label] += 1
    return dict(sorted(counts.items()))


def write_groups(file: Path, groups: dict[str, str], column: str = "person") -> Path:
    file.write_text(
        f"clip,age,{column}\n" + "".join(f"{clip},30,{group}\n" for clip, group in groups.items())
    )
    return file


def test_classes_known_in_any_case_get_canonical_names(mine: Path) -> None:
    listing = read_folder(mine)
    records, classes = listing.records, listing.classes
    assert classes == ("happiness", "sadness", "anger")
    assert Counter(r.label for r in records) == {0: 41, 1: 23, 2: 12}
    assert {r.source.partition("/")[0] for r in records if r.label == 0} == {"Happy"}
    make(mine, {"joy": 3})
    assert read_folder(mine).classes == ("Happy", "Sad", "angry", "joy")
    make(mine, {"happiness": 3})
    (mine / "joy").rename(mine.parent / "joy")
    with pytest.raises(UserError, match=r"two folders of .* mean the same class"):
        read_folder(mine)


def test_folds_are_balanced_and_depend_on_the_seed_only(mine: Path) -> None:
    records = read_folder(mine).records
    counts = np.array(list(table(records).values()))
    assert counts.shape == (5, 3) and counts.sum() == 76
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 1
    assert read_folder(mine).records == records
    other = read_folder(mine, seed=1).records
    moved = sum(a.split != b.split for a, b in zip(records, other, strict=True))
    assert 40 < moved < 76 and np.ptp(np.array(list(table(other).values())), axis=0).max() <= 1
    assert len(table(read_folder(mine, folds=3).records)) == 3


def test_clip_with_folder_and_video_uses_the_preferred_one(mine: Path) -> None:
    others = ("2.flv", "3.WMV", "4.mpg", "5.m4v", "6.3gp")
    for name in ("Sa000.mp4", "video 1.MOV", *others, "notes.txt", ".hidden.mp4"):
        (mine / "Sad" / name).touch()
    (mine / "readme.md").touch()
    for videos in (False, True):
        clips = {r.source: r for r in read_folder(mine, prefer_videos=videos).records}
        assert len(clips) == 77 + len(others)
        assert clip_files(clips["Sad/Sa000"]) == (
            mine / "Sad" / ("Sa000.mp4" if videos else "Sa000/1.jpg"),
        )
        assert clip_files(clips["Sad/video 1"]) == (mine / "Sad" / "video 1.MOV",)
        assert clips["Sad/video 1"].key == "Sad_video_1"


def test_what_is_not_read_is_counted_by_kind(mine: Path) -> None:
    for name in ("Sa000.mp4", "Sa000.AVI", "notes.txt", "table.CSV", "more.csv", "LICENSE"):
        (mine / "Sad" / name).touch()
    for name in ("readme.md", "left.mp4", "part2.zip", "face.png"):
        (mine / name).touch()
    assert read_folder(mine).unread == {
        ".txt files": 1,
        ".csv files": 2,
        "files without a suffix": 1,
        "clips of the same name as another": 2,
        ".mp4 files": 1,
        ".zip files": 1,
        ".png files": 1,
    }


def test_what_systems_make_is_no_class_and_no_clip(mine: Path) -> None:
    before = read_folder(mine)
    for name in ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints"):
        (mine / name).mkdir()
        (mine / "Sad" / name).mkdir()
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._Sa000.mp4"):
        (mine / "Sad" / name).touch()
    assert read_folder(mine) == before


def test_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    names = {"高兴": "happy", "a" * 200: "long", os.fsdecode(b"\xb1\xaf\xc9\xcb"): "gbk"}
    for name in names:
        for clip in ("你好", os.fsdecode(b"\xc4\xe3\xba\xc3"), " blanks  ", "b" * 250, "x\ny"):
            (tmp_path / "mine" / name / clip).mkdir(parents=True)
            (tmp_path / "mine" / name / clip / "1.jpg").touch()
    listing = read_folder(tmp_path / "mine", folds=3)
    assert listing.classes == ("a" * 200, "高兴", r"\xb1\xaf\xc9\xcb")
    assert len({record.key for record in listing.records}) == 15
    for record in listing.records:
        (frame,) = clip_files(record)
        assert frame.is_file() and record.source.encode() and "\n" not in record.source


def make_splits(root: Path, names: dict[str, dict[str, int]]) -> Path:
    for split, sizes in names.items():
        make(root / split, sizes, split[:2])
    return root


def test_split_above_the_classes_is_kept(tmp_path: Path) -> None:
    root = make_splits(
        tmp_path / "mine",
        {
            "train": {"Happy": 3, "Sad": 2},
            "Validation": {"happy": 1, "Sad": 1},
            "Test_AFEW": {"sad": 2},
        },
    )
    (root / "annotations").mkdir()
    listing = read_folder(root)
    assert listing.classes == ("happiness", "sadness")
    assert Counter((r.split, r.label) for r in listing.records) == {
        ("train", 0): 3,
        ("train", 1): 2,
        ("val", 0): 1,
        ("val", 1): 1,
        ("test", 1): 2,
    }
    assert listing.unread == {"folders next to train": 1}
    assert "Test_AFEW is test, Validation is val, train is train" in listing.notes[0]
    with pytest.raises(UserError, match="kept as they are: omit --folds, or move the classes"):
        read_folder(root, folds=2)


def test_split_without_test_tests_the_validation_part(tmp_path: Path) -> None:
    root = make_splits(tmp_path / "mine", {"Training": {"joy": 2, "awe": 1}, "dev": {"awe": 1}})
    listing = read_folder(root)
    assert listing.classes == ("awe", "joy")
    assert [(r.split, r.source, r.key) for r in listing.records if r.split == "test"] == [
        ("test", "dev/awe/deaw000", "dev_awe_deaw000")
    ]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test1", "test2"), ("train", "test", "test")),
        (("trainval", "testset"), ("train", "test")),
        (("Training", "eval"), ("train", "test")),
        (("训练集", "验证集", "测试集"), ("train", "val", "test")),
        (("fold_0", "fold_9", "fold_10"), ("fold1", "fold2", "fold3")),
        (("Fold1", "Fold2"), ("fold1", "fold2")),
        (("train", "dev", "eval"), ("train", "val", "test")),
        (("Training", "PublicTest", "PrivateTest"), ("train", "val", "test")),
        (("1_train", "2_test"), ("train", "test")),
        (("AFEW-train", "AFEW-val"), ("train", "test")),
    ],
)
def test_split_of_any_usual_name_is_kept(
    tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    root = make_splits(tmp_path / "mine", {name: {"joy": 2, "awe": 1} for name in folders})
    listing = read_folder(root)
    assert listing.classes == ("awe", "joy")
    found = {record.source.partition("/")[0]: record.split for record in listing.records}
    assert found == dict(zip(folders, splits, strict=True))


@pytest.mark.parametrize(
    "folders",
    [("train", "notes"), ("joy", "awe", "test"), ("joy", "fold_1"), ("val", "test", "fold1")],
)
def test_split_without_another_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = make_splits(tmp_path / "mine", {name: {"joy": 5, "awe": 5} for name in folders})
    with pytest.raises(
        UserError, match=r"but not train and another split: give --root .* or rename it"
    ):
        read_folder(root)


@pytest.mark.parametrize(
    "clip", ["AFEWTrain/{}/1.jpg", "fold1/train/{}/1.jpg", "fold1/train/{}.mp4", "s1/{}/c/1.jpg"]
)
def test_classes_at_a_lower_level_are_no_clips(tmp_path: Path, clip: str) -> None:
    for folder in (clip, clip.replace("rain", "est").replace("1/", "2/", 1)):
        for name in ("Angry", "Happy"):
            file = tmp_path / folder.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    with pytest.raises(UserError, match="holds Angry, Happy: these are classes or splits, not cl"):
        read_folder(tmp_path, folds=None if "fold" in clip else 2)


def test_only_clip_of_a_class_may_have_its_name(tmp_path: Path) -> None:
    for name in ("Happy", "Sad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mp4").touch()
    assert len(read_folder(tmp_path, folds=2).records) == 2


def test_splits_below_the_classes_are_no_clips(tmp_path: Path) -> None:
    for name in ("joy", "awe"):
        make(tmp_path / name, {"train": 2, "test": 1})
    with pytest.raises(UserError, match="holds test, train: these are classes or splits, not cl"):
        read_folder(tmp_path, folds=2)


def test_class_that_ends_like_a_split_is_a_class(tmp_path: Path) -> None:
    root = make(tmp_path / "mine", {"rest": 3, "stress_test": 3})
    assert read_folder(root, folds=2).classes == ("rest", "stress_test")


@pytest.mark.parametrize("split", ["test", "train"])
def test_split_without_clips_is_refused(tmp_path: Path, split: str) -> None:
    root = make_splits(
        tmp_path / "mine", {name: {"joy": 2, "awe": 1} for name in ("train", "val", "test")}
    )
    for clip in (root / split).glob("*/*"):
        shutil.rmtree(clip)
    with pytest.raises(UserError, match=f"{split} holds no clip of any class: fill or rename it"):
        read_folder(root)
    # a class may be in some splits only
    make(root / split, {"joy": 1})
    assert len(read_folder(root).records) == 7


@pytest.mark.parametrize(
    ("train", "test"),
    [("Joy", "joy"), ("ému", "e\u0301mu"), ("高兴", os.fsdecode("高兴".encode("gb18030")))],
)
def test_class_of_two_splits_may_be_written_differently(
    tmp_path: Path, train: str, test: str
) -> None:
    root = make_splits(
        tmp_path / "mine", {"train": {train: 2, "zeal": 1}, "test": {test: 1, "zeal": 1, "zest": 1}}
    )
    listing = read_folder(root)
    assert len(listing.classes) == 3
    (label,) = {r.label for r in listing.records if not r.source.split("/")[1].startswith("ze")}
    splits = Counter(record.split for record in listing.records if record.label == label)
    assert splits == {"train": 2, "test": 1}
    assert listing.notes[1:] == ("train has no clip of zest",)
    make(root / "train", {test: 1})
    with pytest.raises(UserError, match=r"two folders of .* mean the same class"):
        read_folder(root)


def test_still_images_are_no_clips(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("Happy", "Sad"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / split / name / f"{i}.jpg").touch()
    for root, folder in ((tmp_path, "test/Happy"), (tmp_path / "train", "Happy")):
        with pytest.raises(UserError, match=rf"{folder} holds 4 still images and no clip"):
            read_folder(root)


def test_images_are_clips_if_asked_for_and_folders_may_be_numbered(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in (1, 2, 3):
            (tmp_path / split / str(number)).mkdir(parents=True)
            for i in range(number):
                (tmp_path / split / str(number) / f"{i}.png").touch()
    names = ["Surprise", "Fear", "Disgust"]
    listing = read_folder(tmp_path, images=True, names=names)
    assert listing.classes == ("surprise", "fear", "disgust")
    counts = Counter((record.split, record.label) for record in listing.records)
    assert counts == {(s, label): label + 1 for s in ("train", "test") for label in range(3)}
    first = listing.records[0]
    assert clip_files(first) == (tmp_path / "val" / "1" / "0.png",) and first.source == "val/1/0"
    with pytest.raises(UserError, match=r"train/2: label 2 is out of range: --classes names 2"):
        read_folder(tmp_path, images=True, names=names[:2])
    with pytest.raises(UserError, match=r"--images makes each image a clip of one frame"):
        read_folder(tmp_path)


def test_class_without_clips_is_named_with_what_it_holds(mine: Path) -> None:
    (mine / "joy").mkdir()
    for name in ("a.wav", "b.wav", "notes.txt"):
        (mine / "joy" / name).touch()
    with pytest.raises(UserError, match=r"joy holds no clip, .*, but 2 \.wav files, 1 \.txt files"):
        read_folder(mine)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_groups_file_may_have_any_separator_and_encoding(
    separator: str, mine: Path, tmp_path: Path
) -> None:
    records = read_folder(mine).records
    rows = {record.source.replace("/", "\\"): f"g{i % 5}" for i, record in enumerate(records)}
    file = write_groups(tmp_path / "g.csv", rows)
    expected = read_folder(mine, groups=file, group_by="person").records
    file.write_text(file.read_text().replace(",", separator), encoding="utf-16")
    assert read_folder(mine, groups=file, group_by="person").records == expected


def test_folds_with_groups_are_disjoint_and_balanced(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    people = [f"p{i:02d}" for i in range(40)]
    for i, person in enumerate(people):
        make(root, {"happy": 2 + i % 3, "sad": 1 + i % 2, "fear": 1}, person)
    groups = write_groups(
        tmp_path / "g.csv", {c.name: c.name[:3] for k in root.iterdir() for c in k.iterdir()}
    )
    records = read_folder(root, groups=groups, group_by="person").records
    folds = defaultdict(set)
    for record in records:
        folds[record.source.split("/")[1][:3]].add(record.split)
    assert len(folds) == 40 and all(len(f) == 1 for f in folds.values())
    counts = np.array(list(table(records).values()))
    assert counts.shape == (5, 3) and np.abs(counts / counts.sum(0) - 0.2).max() < 0.05
    assert np.abs(counts.sum(1) / counts.sum() - 0.2).max() < 0.03
    assert read_folder(root, groups=groups, group_by="person").records == records
    assert read_folder(root, seed=3, groups=groups, group_by="person").records != records


def test_groups_as_many_as_folds_become_a_fold_each(tmp_path: Path) -> None:
    """The groups are very unequal: one of a single class, and one much larger than the others."""
    root = tmp_path / "mine"
    for group, sizes in {
        "A": {"sad": 50, "happy": 50},
        "B": {"sad": 1},
        "C": {"happy": 1},
        "D": {"sad": 1},
        "E": {"sad": 2},
    }.items():
        make(root, sizes, group)
    groups = write_groups(
        tmp_path / "g.csv",
        {f"{k.name}/{c.name}": c.name[0] for k in root.iterdir() for c in k.iterdir()},
    )
    for seed in range(3):
        records = read_folder(root, seed=seed, groups=groups, group_by="person").records
        assert {(r.split, r.source.split("/")[1][0]) for r in records} == {
            (f"fold{i + 1}", g) for i, g in enumerate("ABCDE")
        }
    with pytest.raises(UserError, match="5 groups are too few for 6 folds: give --folds 5"):
        read_folder(root, folds=6, groups=groups, group_by="person")


def test_groups_file_accepts_clip_names_and_rejects_others(mine: Path, tmp_path: Path) -> None:
    records = read_folder(mine).records
    names = {r.source.split("/")[1]: f"g{i % 9}" for i, r in enumerate(records)}
    groups, file = dict(names), tmp_path / "g.csv"
    groups["Sad/Sa000.mp4"] = groups.pop("Sa000")
    write_groups(file, groups | {"of another set": "g1"})
    assert len(read_folder(mine, groups=file, group_by="person").records) == 76
    cases = {
        "no row for clip Ha007": {k: v for k, v in names.items() if k != "Ha007"},
        "without a clip or without a group": names | {"Ha007": " "},
        "clip Ha001 is in two groups": names | {"Ha001.mp4": "g9"},
    }
    for message, wrong in cases.items():
        write_groups(file, wrong)
        with pytest.raises(UserError, match=message):
            read_folder(mine, groups=file, group_by="person")
    write_groups(file, names)
    with pytest.raises(
        UserError, match=r"columns clip, age, person: 'clip' and 'source' are needed"
    ):
        read_folder(mine, groups=file, group_by="source")
    with pytest.raises(UserError, match="--groups and --group-by together"):
        read_folder(mine, groups=file)
    with pytest.raises(UserError, match="is missing"):
        read_folder(mine, groups=tmp_path / "none.csv", group_by="person")
    make(mine, {"fear": 1})
    (mine / "fear" / "fe000").rename(mine / "fear" / "Sa000")
    with pytest.raises(UserError, match="clips of several classes are named Sa000: write"):
        read_folder(mine, groups=write_groups(file, names), group_by="person")


def test_read_folder_rejects_what_is_no_data_set(tmp_path: Path) -> None:
    cases = {
        "is not a folder": {},
        "holds 1 folders": {"sad": 9},
        "holds 4 clips, too few for 5 folds": {"sad": 2, "happy": 2},
    }
    for number, (message, sizes) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            read_folder(make(tmp_path / str(number), sizes))
    root = make(tmp_path / "empty", {"sad": 9})
    (root / "happy").mkdir()
    with pytest.raises(UserError, match="happy holds no clip"):
        read_folder(root)
    with pytest.raises(UserError, match="2 or more"):
        read_folder(make(tmp_path / "two", {"sad": 5, "happy": 5}), folds=1)
