from __future__ import annotations

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
    records, classes = read_folder(mine)
    assert classes == ("happiness", "sadness", "anger")
    assert Counter(r.label for r in records) == {0: 41, 1: 23, 2: 12}
    assert {r.source.partition("/")[0] for r in records if r.label == 0} == {"Happy"}
    make(mine, {"joy": 3})
    assert read_folder(mine)[1] == ("Happy", "Sad", "angry", "joy")
    make(mine, {"happiness": 3})
    (mine / "joy").rename(mine.parent / "joy")
    with pytest.raises(UserError, match=r"two folders of .* mean the same class"):
        read_folder(mine)


def test_folds_are_balanced_and_depend_on_the_seed_only(mine: Path) -> None:
    records, _ = read_folder(mine)
    counts = np.array(list(table(records).values()))
    assert counts.shape == (5, 3) and counts.sum() == 76
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 1
    assert read_folder(mine)[0] == records
    other, _ = read_folder(mine, seed=1)
    moved = sum(a.split != b.split for a, b in zip(records, other, strict=True))
    assert 40 < moved < 76 and np.ptp(np.array(list(table(other).values())), axis=0).max() <= 1
    assert len(table(read_folder(mine, folds=3)[0])) == 3


def test_clip_with_folder_and_video_uses_the_preferred_one(mine: Path) -> None:
    for name in ("Sa000.mp4", "video 1.MOV", "notes.txt", ".hidden.mp4"):
        (mine / "Sad" / name).touch()
    (mine / "readme.md").touch()
    for videos in (False, True):
        clips = {r.source: r for r in read_folder(mine, prefer_videos=videos)[0]}
        assert len(clips) == 77
        assert clip_files(clips["Sad/Sa000"]) == (
            mine / "Sad" / ("Sa000.mp4" if videos else "Sa000/1.jpg"),
        )
        assert clip_files(clips["Sad/video 1"]) == (mine / "Sad" / "video 1.MOV",)
        assert clips["Sad/video 1"].key == "Sad_video_1"


def test_folds_with_groups_are_disjoint_and_balanced(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    people = [f"p{i:02d}" for i in range(40)]
    for i, person in enumerate(people):
        make(root, {"happy": 2 + i % 3, "sad": 1 + i % 2, "fear": 1}, person)
    groups = write_groups(
        tmp_path / "g.csv", {c.name: c.name[:3] for k in root.iterdir() for c in k.iterdir()}
    )
    records, _ = read_folder(root, groups=groups, group_by="person")
    folds = defaultdict(set)
    for record in records:
        folds[record.source.split("/")[1][:3]].add(record.split)
    assert len(folds) == 40 and all(len(f) == 1 for f in folds.values())
    counts = np.array(list(table(records).values()))
    assert counts.shape == (5, 3) and np.abs(counts / counts.sum(0) - 0.2).max() < 0.05
    assert np.abs(counts.sum(1) / counts.sum() - 0.2).max() < 0.03
    assert read_folder(root, groups=groups, group_by="person")[0] == records
    assert read_folder(root, seed=3, groups=groups, group_by="person")[0] != records


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
        records, _ = read_folder(root, seed=seed, groups=groups, group_by="person")
        assert {(r.split, r.source.split("/")[1][0]) for r in records} == {
            (f"fold{i + 1}", g) for i, g in enumerate("ABCDE")
        }
    with pytest.raises(UserError, match="5 groups are too few for 6 folds: give --folds 5"):
        read_folder(root, folds=6, groups=groups, group_by="person")


def test_groups_file_accepts_clip_names_and_rejects_others(mine: Path, tmp_path: Path) -> None:
    records, _ = read_folder(mine)
    names = {r.source.split("/")[1]: f"g{i % 9}" for i, r in enumerate(records)}
    groups, file = dict(names), tmp_path / "g.csv"
    groups["Sad/Sa000.mp4"] = groups.pop("Sa000")
    write_groups(file, groups | {"of another set": "g1"})
    assert len(read_folder(mine, groups=file, group_by="person")[0]) == 76
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
        read_folder(root, folds=1)
