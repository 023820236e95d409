"""Corpora whose file names tell the class: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.sources.corpora import read_corpus
from dfer_dist.data.sources.records import clip_files
from dfer_dist.utils.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_clips_may_be_folders_of_frames_or_videos(tmp_path: Path) -> None:
    names = [f"100{i}_DFA_{code}_XX" for i in (1, 2) for code in ("ANG", "SAD")]
    touch(tmp_path, *(f"faces/{name}/{k}.jpg" for name in names[:3] for k in (1, 2)))
    touch(tmp_path, *(f"VideoFlash/{name}.flv" for name in names[1:]))
    touch(tmp_path, "VideoFlash/1001_DFA_XXX_XX.flv", "VideoFlash/notes.txt")
    for prefer, count in ((False, 3), (True, 1)):
        listing = read_corpus("crema-d", tmp_path, folds=2, prefer_videos=prefer)
        assert [r.source for r in sorted(listing.records, key=lambda r: r.key)] == names
        assert sum(len(clip_files(record)) == 2 for record in listing.records) == count
        assert listing.unread == {
            ".flv files": 1,
            ".txt files": 1,
            "clips of the same name as another": 2,
        }
    assert {r.source[:4]: (r.group, r.split) for r in listing.records} == {
        "1001": ("1001", "fold1"),
        "1002": ("1002", "fold2"),
    }


def test_ravdess_without_sound_is_read_if_there_is_no_other(tmp_path: Path) -> None:
    for actor in ("01", "02"):
        touch(tmp_path, f"Actor_{actor}/02-01-02-01-01-01-{actor}.mp4")
        touch(tmp_path, f"Actor_{actor}/02-02-02-01-01-01-{actor}.mp4")
        touch(tmp_path, f"Actor_{actor}/03-01-02-01-01-01-{actor}.wav")
    listing = read_corpus("ravdess", tmp_path, folds=2)
    assert [r.source for r in listing.records] == ["02-01-02-01-01-01-01", "02-01-02-01-01-01-02"]
    assert {listing.classes[r.label] for r in listing.records} == {"calm"}
    assert listing.unread == {"songs": 2, ".wav files": 2}


def test_enterface_is_read_without_its_folders_too(tmp_path: Path) -> None:
    touch(tmp_path, "s1_an_1.avi", "s1_ha_1.avi", "s2_su_5.avi", "s_3_fe_2.avi", "video.avi")
    listing = read_corpus("enterface", tmp_path, folds=3)
    found = {r.source: (listing.classes[r.label], r.group) for r in listing.records}
    assert found == {
        "s1_an_1": ("anger", "1"),
        "s1_ha_1": ("happiness", "1"),
        "s2_su_5": ("surprise", "2"),
        "s_3_fe_2": ("fear", "3"),
    }
    assert listing.unread == {".avi files": 1}
    touch(tmp_path / "b", "subject 6/happy/no sentence.avi", "subject 7/sadness/sentence 2/x.avi")
    listing = read_corpus("enterface", tmp_path / "b", folds=2)
    assert [(listing.classes[r.label], r.group) for r in listing.records] == [
        ("happiness", "6"),
        ("sadness", "7"),
    ]


def test_raf_db_takes_aligned_images_first(tmp_path: Path) -> None:
    names = ("train_00001", "train_00002", "test_0001")
    touch(tmp_path, *(f"basic/Image/original/{name}.jpg" for name in names))
    (tmp_path / "EmoLabel").mkdir()
    file = tmp_path / "EmoLabel" / "list_patition_label.txt"
    file.write_text("train_00001.jpg 5\ntrain_00002.jpg 1\ntest_0001.jpg 7\n")
    listing = read_corpus("raf-db", tmp_path)
    assert listing.notes == ("images are read from basic/Image/original",)
    touch(tmp_path, *(f"basic/Image/aligned/{name}_aligned.jpg" for name in names))
    listing = read_corpus("raf-db", tmp_path)
    assert listing.notes == ("images are read from basic/Image/aligned",)
    assert [(r.source, listing.classes[r.label], r.split) for r in listing.records] == [
        ("train_00001", "sadness", "train"),
        ("train_00002", "surprise", "train"),
        ("test_0001", "neutral", "test"),
    ]
    assert [clip_files(r)[0].name for r in listing.records][2] == "test_0001_aligned.jpg"
    touch(tmp_path, "x/x_1.jpg")
    for line, message in (
        ("x_1.jpg 5", "'x_1' begins with neither train nor test"),
        ("train_00001.jpg 8", "with a label of 1 to 7"),
        ("train_00001.jpg 5", "has no clip of the test split of raf-db"),
        ("train_00009.jpg 5", r"no folder below .* holds the listed images, such as train_00009"),
    ):
        file.write_text(f"{line}\n")
        with pytest.raises(UserError, match=message):
            read_corpus("raf-db", tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"is no list: one list_patition_label\.txt is needed"):
        read_corpus("raf-db", tmp_path)


def test_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "Train_AFEW/Angry/000001.avi")
    with pytest.raises(UserError, match=r"no clip below .* is named as ravdess names them, 01-01"):
        read_corpus("ravdess", tmp_path)
    with pytest.raises(UserError, match="has no clip of the test split of afew"):
        read_corpus("afew", tmp_path)
    with pytest.raises(UserError, match="afew has a split of its own: omit --folds and --seed"):
        read_corpus("afew", tmp_path, folds=3)
    with pytest.raises(UserError, match="is not a folder"):
        read_corpus("afew", tmp_path / "none")
    touch(tmp_path, "1001_DFA_ANG_XX.flv", "1002_DFA_SAD_XX.flv")
    with pytest.raises(UserError, match="holds 2 clips, too few for 5 folds"):
        read_corpus("crema-d", tmp_path)
