from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline

from dfer_dist import UserError
from dfer_dist.data.demo import FOLDS, IDENTITIES, SHARES, contact_sheet, plan_demo, render_demo
from dfer_dist.data.face_parts import AUS
from dfer_dist.data.faces import FRAMES, draw_track, render_clip
from dfer_dist.data.layouts import SEVEN, read_lists
from dfer_dist.data.media import clip_files

SMALL = {"clips": 35, "size": 32}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_demo(tmp_path_factory.mktemp("demo") / "set", **SMALL, workers=2)


def test_two_workers_and_one_write_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    again = render_demo(tmp_path / "again", **SMALL, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert contents(again) == contents(demo)
    assert seen == [(n, 35) for n in range(1, 36)]


def test_a_clip_is_the_same_each_time_and_another_with_another_seed() -> None:
    first = render_clip(4, 3, (0, 1), 32)
    assert first.frames.dtype == np.uint8 and first.frames.shape[1:] == (32, 32, 3)
    assert np.array_equal(first.frames, render_clip(4, 3, (0, 1), 32).frames)
    other = render_clip(4, 3, (0, 2), 32).frames
    assert other.shape != first.frames.shape or not np.array_equal(other, first.frames)


def test_plan_keeps_identities_apart_and_classes_in_their_shares() -> None:
    plan = plan_demo()
    assert sorted(c.name for c in plan) == [f"{n:05d}" for n in range(1, 701)]
    homes = {c.identity: {d.fold for d in plan if d.identity == c.identity} for c in plan}
    assert len(homes) == IDENTITIES and all(len(folds) == 1 for folds in homes.values())
    for fold in range(1, FOLDS + 1):
        counts = np.bincount([c.label for c in plan if c.fold == fold], minlength=7)
        assert counts.sum() == 140 and len({c.identity for c in plan if c.fold == fold}) == IDENTITIES // FOLDS
        assert np.abs(counts - 140 * np.array(SHARES)).max() < 1
    assert plan_demo() == plan != plan_demo(seed=1)


@pytest.mark.parametrize("clips", [35, 36, 311, 1500])
def test_every_fold_has_every_class(clips: int) -> None:
    plan = plan_demo(clips)
    assert len(plan) == clips and {(c.fold, c.label) for c in plan} == {(f, y) for f in range(1, 6) for y in range(7)}


def test_lists_and_frames_agree(demo: Path) -> None:
    rows = {r["name"]: r for r in json.loads((demo / "demo.json").read_text())["rows"]}
    records = read_lists("demo", demo / "frames", demo / "lists")
    assert {r.source for r in records} == set(rows) == {p.name for p in (demo / "frames").iterdir()}
    for record in records:
        row = rows[record.source]
        assert (record.label, record.split) == (row["label"], f"fold{row['fold']}")
        assert [p.name for p in clip_files(record)] == [f"{n:05d}.jpg" for n in range(row["frames"])]
        assert FRAMES[0] <= row["frames"] <= FRAMES[1] and 0 <= row["apex"] < row["frames"]
    for fold in range(1, FOLDS + 1):
        train, test = ((demo / "lists" / f"DEMO_set_{fold}_{part}.txt").read_text().splitlines() for part in ("train", "test"))
        assert len(train) + len(test) == len({line.split()[0] for line in train + test}) == 35
        assert all(rows[name]["fold"] == fold for name, _, _ in map(str.split, test))
    assert simplejpeg.decode_jpeg(clip_files(records[0])[0].read_bytes()).shape == (32, 32, 3)


def test_a_whole_set_is_left_alone_and_a_broken_one_is_finished(demo: Path, tmp_path: Path) -> None:
    copy, before = tmp_path / "copy", contents(demo)
    shutil.copytree(demo, copy)
    stamp = (copy / "demo.json").stat().st_mtime_ns
    render_demo(copy, **SMALL)
    assert (copy / "demo.json").stat().st_mtime_ns == stamp
    (copy / "demo.json").rename(copy / ".unfinished.json")  # holds the same arguments as the mark that an interrupted run leaves
    (copy / "frames" / "00001" / "00000.jpg").write_bytes(b"cut")
    shutil.rmtree(copy / "frames" / "00002")
    render_demo(copy, **SMALL, workers=1)
    assert contents(copy) == before
    render_demo(copy, clips=35, size=32, seed=1, workers=1)
    assert contents(copy).keys() != before.keys()
    assert {
        len(list((copy / "frames" / r["name"]).iterdir())) - r["frames"]
        for r in json.loads((copy / "demo.json").read_text())["rows"]
    } == {0}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "frames" / "holiday").mkdir(parents=True)
    with pytest.raises(UserError, match="choose another folder"):
        render_demo(tmp_path, **SMALL)
    assert (tmp_path / "frames" / "holiday").is_dir()


@pytest.mark.parametrize("wrong", [{"clips": 34}, {"clips": 100_000}, {"size": 16}, {"workers": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        render_demo(tmp_path / "set", **wrong)


@pytest.mark.parametrize(("early", "late"), [("surprise", "fear"), ("disgust", "anger")])
def test_paired_classes_are_the_reverse_of_each_other(early: str, late: str) -> None:
    for seed in range(20):
        frames = 12 + 2 * seed
        a, course_a = draw_track(SEVEN.index(early), frames, np.random.default_rng(seed))
        b, course_b = draw_track(SEVEN.index(late), frames, np.random.default_rng(seed))
        assert np.array_equal(a, b[::-1]) and np.array_equal(course_a, course_b[::-1])
        assert course_a.argmax() < frames * 0.4 < frames * 0.6 <= course_b.argmax() + 1


def test_units_stay_in_range_and_only_sadness_has_tears() -> None:
    for label, name in enumerate(SEVEN):
        track, _ = draw_track(label, 30, np.random.default_rng(label))
        assert track.shape == (30, len(AUS)) and track.dtype == np.float32 and track.min() >= 0 and track.max() <= 1
        assert (track[:, AUS.index("tears")].max() > 0.3) == (name == "sadness")


def test_a_model_that_ignores_time_loses() -> None:
    labels = np.tile([4, 6], 90)
    people = np.arange(180) // 2 % IDENTITIES
    clips = []
    for n, (label, person) in enumerate(zip(labels, people, strict=True)):
        frames = render_clip(int(label), int(person), (5, n), 32).frames
        chosen = frames[((np.arange(8) + 0.5) / 8 * len(frames)).astype(int)]
        clips.append(chosen.mean(-1).reshape(8, 16, 2, 16, 2).mean((2, 4)).reshape(8, -1))
    pixels = np.stack(clips)
    test = people >= 50

    def accuracy(features: np.ndarray) -> float:
        model = make_pipeline(PCA(20, random_state=0), LinearDiscriminantAnalysis()).fit(features[~test], labels[~test])
        return float(model.score(features[test], labels[test]))

    ordered = accuracy((pixels - pixels.mean(1, keepdims=True)).reshape(len(pixels), -1))
    blind = accuracy(pixels.mean(1))
    assert ordered > 0.85 and blind < 0.7, (ordered, blind)


def test_contact_sheet_is_a_picture_of_seven_rows(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "a" / "sheet.png", size=32)
    contact_sheet(tmp_path / "b.png", size=32)
    assert (tmp_path / "a" / "sheet.png").read_bytes() == (tmp_path / "b.png").read_bytes()
