from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.sources.official import read_official
from dfer_dist.data.sources.records import ELEVEN, SEVEN, clip_files
from dfer_dist.utils.errors import UserError
from tests.helpers.data.official_layouts import (
    Clip,
    link_clips,
    write_dfew_lists,
    write_ferv39k_lists,
    write_mafw_lists,
    write_pool,
)

SCENES = ("Action", "Crime", "School")

DFEW = [Clip(f"{i * 41:05d}", i % 7, f"fold{i % 5 + 1}", i % 3 + 1) for i in range(1, 36)]
MAFW = [Clip(f"{i * 41:05d}", i % 11, f"fold{i % 5 + 1}", i % 3 + 1) for i in range(1, 56)]
FERV = [
    Clip(
        f"{SCENES[i % 3]}/Emotion{i % 7}/{i:04d}",
        i % 7,
        "test" if i % 5 == 0 else "train",
        i % 3 + 1,
    )
    for i in range(42)
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool"), 3, width=16, height=16)


@pytest.fixture
def dfew(pool: Path, tmp_path: Path) -> Path:
    write_dfew_lists(tmp_path / "DFEW-part2", DFEW)
    link_clips(tmp_path / "DFEW-part2" / "Clip" / "clip_224x224", DFEW, pool)
    return tmp_path


@pytest.fixture
def mafw(pool: Path, tmp_path: Path) -> Path:
    write_mafw_lists(tmp_path, MAFW)
    link_clips(tmp_path / "data" / "frames", MAFW, pool)
    return tmp_path


@pytest.fixture
def ferv39k(pool: Path, tmp_path: Path) -> Path:
    write_ferv39k_lists(tmp_path, FERV)
    link_clips(tmp_path / "2_ClipsforFaceCrop", FERV, pool)
    return tmp_path


def read(dataset: str, root: Path) -> list[Clip]:
    records = read_official(dataset, root).records
    assert not any(r.faults for r in records)
    return sorted(Clip(r.source, r.label, r.split, len(clip_files(r))) for r in records)


def check_refused(dataset: str, root: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        read_official(dataset, root)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def write_videos(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_dfew_labels_start_at_1_and_names_are_padded(dfew: Path) -> None:
    assert read("dfew", dfew) == sorted(DFEW)
    first = (
        (dfew / "DFEW-part2/EmoLabel_DataSplit/test(single-labeled)/set_2.csv").read_text().split()
    )
    # sadness has label 2 in the file, and 1 here
    assert first[:2] == ["video_name,label", "41,2"]
    assert SEVEN[next(c for c in DFEW if c.source == "00041").label] == "sadness"
    lists, clips = read_official("dfew", dfew).folders
    assert lists.name == "test(single-labeled)" and clips.name == "clip_224x224"


def test_dfew_uses_clip_224x224_or_the_original_videos(dfew: Path, pool: Path) -> None:
    clip = dfew / "DFEW-part2" / "Clip"
    link_clips(clip / "clip_224x224_16f", [c._replace(frames=1) for c in DFEW], pool)
    link_clips(clip / "a_copy", [c._replace(frames=1) for c in DFEW], pool)
    write_videos(clip / "original", [f"{int(c.source)}.mp4" for c in DFEW])
    assert read("dfew", dfew) == sorted(DFEW)
    assert read("dfew", dfew / "DFEW-part2") == sorted(DFEW)
    listing = read_official("dfew", dfew, prefer_videos=True)
    records, (_, home) = listing.records, listing.folders
    assert home == clip / "original" and [r.source for r in records] == [
        c.source for _, c in sorted((c.split, c) for c in DFEW)
    ]
    assert all(clip_files(r) == (clip / "original" / f"{int(r.source)}.mp4",) for r in records)


def test_dfew_unpacked_in_parts_is_found(dfew: Path) -> None:
    home = dfew / "DFEW-part2" / "Clip" / "clip_224x224"
    home.rename(dfew / "all")
    for i, clip in enumerate(sorted((dfew / "all").iterdir())):
        part = home / "clip_224x224" / f"part_{i % 3}"
        part.mkdir(parents=True, exist_ok=True)
        clip.rename(part / clip.name)
    assert read("dfew", dfew) == sorted(DFEW)


def test_missing_clip_gets_its_expected_path(dfew: Path) -> None:
    gone = dfew / "DFEW-part2" / "Clip" / "clip_224x224" / "00041"
    gone.unlink()
    records = read_official("dfew", dfew).records
    record = next(r for r in records if r.source == "00041")
    assert record.media == gone and clip_files(record) == ()


def test_unusual_folder_with_most_listed_clips_is_used(dfew: Path, pool: Path) -> None:
    clip = dfew / "DFEW-part2" / "Clip"
    (clip / "clip_224x224").rename(dfew / "my faces")
    link_clips(clip / "few", [DFEW[0]._replace(frames=3)], pool)
    assert read("dfew", dfew) == sorted(DFEW)


@pytest.mark.parametrize(
    "name",
    [
        *("jpg_224_16f", "faces_16_frames", "interpolated", "16-frames", "frames16", "resampled"),
        *("clip_224x224_16", "clips16f", "TI16", "interp_32", "uniform_8", "upsampling"),
    ],
)
def test_interpolated_frames_are_never_taken_unasked(dfew: Path, pool: Path, name: str) -> None:
    clip = dfew / "DFEW-part2" / "Clip"
    link_clips(clip / name, [c._replace(frames=1) for c in DFEW], pool)
    (clip / "clip_224x224").rename(clip / "jpg_256")
    assert read("dfew", dfew) == sorted(DFEW)
    (choice,) = read_official("dfew", dfew).notes
    assert "from DFEW-part2/Clip/jpg_256 (35 folders of frames)" in choice
    assert f"not from DFEW-part2/Clip/{name} (35 folders of frames, interpolated)" in choice
    (clip / "jpg_256").rename(dfew / "away")
    check_refused("dfew", clip.parent, "only interpolated", f"--frames Clip/{name}")
    asked = read_official("dfew", clip.parent, frames=Path("Clip") / name)
    assert all(len(clip_files(r)) == 1 for r in asked.records)


def test_one_of_two_folders_that_fit_is_asked_for(mafw: Path, pool: Path) -> None:
    link_clips(mafw / "data" / "faces", [c._replace(frames=3) for c in MAFW], pool)
    # frames is the usual name
    listing = read_official("mafw", mafw)
    assert listing.folders[1] == mafw / "data" / "frames"
    assert "not from data/faces (55 folders of frames)" in listing.notes[0]
    faces = read_official("mafw", mafw, frames=Path("data/faces"))
    assert {len(clip_files(r)) for r in faces.records} == {3}
    assert read_official("mafw", mafw, frames=mafw / "data" / "faces").records == faces.records
    (mafw / "data" / "frames").rename(mafw / "data" / "whole")
    check_refused("mafw", mafw, "data/faces (55", "data/whole (55", "--frames data/faces")
    with pytest.raises(UserError, match="--frames data/none holds no listed clip: choose one of"):
        read_official("mafw", mafw, frames=Path("data/none"))


def test_what_no_list_names_is_counted(mafw: Path, pool: Path) -> None:
    link_clips(mafw / "data" / "frames", [Clip(f"9{i:04d}", 0, "", 1) for i in range(3)], pool)
    for name in ("notes.txt", "00041.txt", "a.wav", "Thumbs.db"):
        (mafw / "data" / "frames" / name).touch()
    listing = read_official("mafw", mafw)
    assert listing.unread == {"folders in no list": 3, ".txt files": 2, ".wav files": 1}
    assert len(listing.records) == len(MAFW)


@pytest.mark.parametrize("suffix", [".MP4", ".flv", ".M4V"])
def test_mafw_videos_may_have_another_suffix_than_their_list(mafw: Path, suffix: str) -> None:
    shutil.rmtree(mafw / "data" / "frames")
    write_videos(mafw / "clips", [f"{c.source}{suffix}" for c in MAFW])
    assert all(clip_files(r)[0].suffix == suffix for r in read_official("mafw", mafw).records)
    for file in (mafw / "Train & Test Set").rglob("*.txt"):
        file.write_text(file.read_text().replace(".mp4", ".MP4"))
    assert len(read_official("mafw", mafw).records) == len(MAFW)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace("\n", ",\n"),
        lambda text: text.replace(",", "\t"),
        lambda text: re.sub("^([0-9]+)", r"D:\\My DFEW\\\1.MP4", text, flags=re.MULTILINE),
        lambda text: re.sub("([0-9])$", r"\1.0", text, flags=re.MULTILINE),
        lambda text: re.sub(",([0-9])", lambda m: f",{SEVEN[int(m[1]) - 1].title()}", text),
        lambda text: "\n".join(
            ",".join(f'"{field}"' for field in line.split(",")) for line in text.splitlines()
        ),
    ],
)
def test_dfew_lists_may_be_written_by_any_spreadsheet(
    dfew: Path, change: Callable[[str], str]
) -> None:
    for file in dfew.rglob("set_*.csv"):
        file.write_text(change(file.read_text()), encoding="utf-16")
    assert read("dfew", dfew) == sorted(DFEW)


@pytest.mark.parametrize("before", ["", "D:/FERV39k v1/"])
def test_ferv39k_lists_may_have_paths_of_windows(ferv39k: Path, before: str) -> None:
    for file in (ferv39k / "4_setups").rglob("*.csv"):
        text = re.sub("(?m)^(?=.)", before, file.read_text())
        file.write_text(text.replace("/", "\\"))
    assert read("ferv39k", ferv39k) == sorted(FERV)


def test_mafw_classes_have_the_order_of_dfer_clip(mafw: Path) -> None:
    assert read("mafw", mafw) == sorted(MAFW)
    assert read_dataset("mafw", mafw).classes == ELEVEN
    text = (mafw / "Train & Test Set/single/no_caption/set_2/test.txt").read_text()
    assert text.startswith("00041.mp4 sadness\n00246.mp4 fear\n00451.mp4 happiness\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_mafw_lists_may_vary_in_encoding_case_and_folder(mafw: Path, encoding: str) -> None:
    (mafw / "Train & Test Set").rename(mafw / "训练集")
    for file in (mafw / "训练集").rglob("*.txt"):
        file.write_bytes(
            file.read_text().title().replace("Mp4", "mp4").replace("\n", "\r\n").encode(encoding)
        )
    # with a path of another machine
    file.write_text(re.sub("(?m)^(?=.)", "/data/My MAFW/", file.read_text(encoding)), encoding)
    write_mafw_lists(mafw, MAFW[:5], "single/with_caption")
    write_mafw_lists(mafw, MAFW[:5], "multiple/no_caption")
    assert read("mafw", mafw) == sorted(MAFW)


def test_mafw_compound_classes_are_43_with_the_labels_of_their_emotions(
    mafw: Path, pool: Path
) -> None:
    clips = [Clip(f"{i:05d}", i % 43, f"fold{i % 5 + 1}", 1) for i in range(20_000, 20_086)]
    write_mafw_lists(mafw, clips, "compound/no_caption")
    link_clips(mafw / "data" / "frames", clips, pool)
    assert read("mafw-compound", mafw) == sorted(clips)
    # the single lists are next to them
    assert read("mafw", mafw) == sorted(MAFW)
    listing = read_dataset("mafw-compound", mafw)
    assert len(listing.classes) == 43 and listing.classes[:11] == ELEVEN
    by_class = {listing.classes[r.label]: r.labels for r in listing.records}
    assert by_class["fear"] == (6,)
    # their order is that of the labels, not of the name
    assert by_class["disgust+sadness"] == (1, 5)
    assert by_class["anger+disgust+contempt"] == (3, 5, 7)
    file = mafw / "Train & Test Set/compound/no_caption/set_2/test.txt"
    for written, label in [("Disgust_Angry", "anger+disgust"), ("sad", "sadness")]:
        file.write_text(f"90000.mp4 {written}\n")
        records = read_official("mafw-compound", mafw).records
        assert [listing.classes[r.label] for r in records if r.source == "90000"] == [label]
    for unknown in ("anger_happiness", "anger_love", "anger_anger", "_"):
        file.write_text(f"00000.mp4 fear\n90000.mp4 {unknown}\n")
        check_refused("mafw-compound", mafw, "test.txt:2", unknown, "MAFW's 43 classes")


def test_single_lists_of_mafw_are_no_compound_lists(mafw: Path) -> None:
    check_refused("mafw-compound", mafw, "no listed clip has a compound class", "--dataset mafw")
    with pytest.raises(UserError, match="omit --lists"):
        read_dataset("mafw-compound", mafw, mafw)


def test_mafw_videos_are_used_if_preferred_or_alone(mafw: Path) -> None:
    write_videos(mafw / "data" / "clips", [f"{c.source}.mp4" for c in MAFW])
    # folders of frames are the default
    assert read("mafw", mafw) == sorted(MAFW)
    for _ in range(2):
        listing = read_official("mafw", mafw, prefer_videos=True)
        records, (_, home) = listing.records, listing.folders
        assert home == mafw / "data" / "clips" and {r.source for r in records} == {
            c.source for c in MAFW
        }
        assert all(clip_files(r) == (home / f"{r.source}.mp4",) for r in records)
        shutil.rmtree(mafw / "data" / "frames", ignore_errors=True)
    # videos are used if there are no frames
    records = read_official("mafw", mafw).records
    assert all(clip_files(r)[0].suffix == ".mp4" for r in records)


def test_ferv39k_reads_one_pair_of_lists_without_header(ferv39k: Path, pool: Path) -> None:
    assert read("ferv39k", ferv39k) == sorted(FERV)
    link_clips(ferv39k / "0_scene_images", [c._replace(frames=3) for c in FERV], pool)
    other = ferv39k / "4_setups" / "22_scenes"
    other.mkdir()
    for part in ("train", "test"):
        (other / f"{part}_All.csv").write_text("")
    assert read("ferv39k", ferv39k) == sorted(FERV)
    records = read_official("ferv39k", ferv39k).records
    assert {r.key for r in records} == {c.source.replace("/", "_") for c in FERV}


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("41,0", ["set_2.csv:3", "'41,0'", "1 to 7"]),
        ("41,8", ["set_2.csv:3", "'41,8'"]),
        ("41", ["set_2.csv:3", "'41'"]),
        ("41,2,3", ["set_2.csv:3"]),
        ("2,1\n41,1", ["00041", "two labels: sadness in fold1, happiness in fold2"]),
    ],
)
def test_invalid_line_is_rejected_and_label_conflict_reported(
    dfew: Path, line: str, parts: list[str]
) -> None:
    folder = dfew / "DFEW-part2" / "EmoLabel_DataSplit" / "test(single-labeled)"
    if "00041" in parts:
        (folder / "set_2.csv").write_text(f"video_name,label\n246,7\n{line}\n41,2\n")
        records = read_official("dfew", dfew).records
        (fault,) = [f for r in records for f in r.faults if f.kind == "label conflict"]
        assert fault.left_out and "sadness" in fault.reason and "happiness in fold2" in fault.reason
    else:
        (folder / "set_2.csv").write_text(f"video_name,label\n246,7\n{line}\n")
        check_refused("dfew", dfew, *parts)


def test_clip_in_two_folds_is_rejected(dfew: Path) -> None:
    file = dfew / "DFEW-part2" / "EmoLabel_DataSplit" / "test(single-labeled)" / "set_1.csv"
    file.write_text(file.read_text() + "41,2\n")
    check_refused("dfew", dfew, "00041", "two splits", "fold1", "fold2")


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda r: shutil.rmtree(r / "EmoLabel_DataSplit"),
            ["EmoLabel_DataSplit/test(single-labeled)/set_K.csv", "--lists"],
        ),
        (lambda r: shutil.rmtree(r / "Clip"), ["holds the listed clips, such as 00"]),
        (
            lambda r: shutil.copytree(r / "EmoLabel_DataSplit", r / "copy"),
            ["EmoLabel_DataSplit", "copy", "give --root of one"],
        ),
        (
            lambda r: (r / "EmoLabel_DataSplit/test(single-labeled)/set_3.csv").unlink(),
            ["[1, 2, 4, 5]", "without a gap"],
        ),
        (
            lambda r: (r / "EmoLabel_DataSplit/test(single-labeled)/set_3.csv").write_text(""),
            ["set_3.csv is empty"],
        ),
        (lambda r: r.rename(r.parent / "away"), ["not a folder"]),
    ],
)
def test_missing_or_duplicate_lists_are_named(dfew: Path, change: Change, parts: list[str]) -> None:
    change(dfew / "DFEW-part2")
    check_refused("dfew", dfew / "DFEW-part2", *parts)


def test_test_list_without_training_list_is_rejected(ferv39k: Path) -> None:
    (ferv39k / "4_setups" / "All_scenes" / "train_All.csv").unlink()
    check_refused("ferv39k", ferv39k, "train_All.csv is missing")
