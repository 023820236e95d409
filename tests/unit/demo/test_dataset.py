from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline

from dfer_dist.data.captions.label_leakage import clean
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.sources.records import SEVEN, clip_files
from dfer_dist.demo.captions import AT_REST, MAX_MOVEMENTS, MOVEMENTS, STILL, VISIBLE, describe_clip
from dfer_dist.demo.dataset import (
    DESCRIPTIONS,
    FOLDS,
    SHARES,
    plan_demo,
    render_demo,
)
from dfer_dist.demo.face_parts import AUS
from dfer_dist.demo.faces import FRAMES, IDENTITIES, clip_track, draw_track, render_clip
from dfer_dist.models.tokenizer import CONTEXT, CaptionTokenizer, clip_tokenizer
from dfer_dist.utils.errors import UserError

SMALL = {"clips": 35, "size": 32}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_demo(tmp_path_factory.mktemp("demo") / "set", **SMALL, workers=1)


def test_demo_is_rendered_again_to_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    again = render_demo(
        tmp_path / "again",
        **SMALL,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert contents(again) == contents(demo)
    assert seen == [(n, 35) for n in range(1, 36)]


def test_clip_depends_on_seed_alone() -> None:
    first = render_clip(4, 3, (0, 1), 32)
    assert first.frames.dtype == np.uint8 and first.frames.shape[1:] == (32, 32, 3)
    assert np.array_equal(first.frames, render_clip(4, 3, (0, 1), 32).frames)
    other = render_clip(4, 3, (0, 2), 32).frames
    assert other.shape != first.frames.shape or not np.array_equal(other, first.frames)


def test_plan_separates_people_and_keeps_class_shares() -> None:
    plan = plan_demo()
    assert sorted(c.name for c in plan) == [f"{n:05d}" for n in range(1, 701)]
    homes = {c.identity: {d.fold for d in plan if d.identity == c.identity} for c in plan}
    assert len(homes) == IDENTITIES and all(len(folds) == 1 for folds in homes.values())
    for fold in range(1, FOLDS + 1):
        counts = np.bincount([c.label for c in plan if c.fold == fold], minlength=7)
        assert (
            counts.sum() == 140
            and len({c.identity for c in plan if c.fold == fold}) == IDENTITIES // FOLDS
        )
        assert np.abs(counts - 140 * np.array(SHARES)).max() < 1
    assert plan_demo() == plan != plan_demo(seed=1)


@pytest.mark.parametrize("clips", [35, 36, 311, 1500])
def test_every_fold_has_every_class(clips: int) -> None:
    plan = plan_demo(clips)
    assert len(plan) == clips and {(c.fold, c.label) for c in plan} == {
        (f, y) for f in range(1, 6) for y in range(7)
    }


def test_lists_and_frames_agree(demo: Path) -> None:
    rows = {r["name"]: r for r in json.loads((demo / "demo.json").read_text())["rows"]}
    records = read_lists("demo", demo / "frames", demo / "lists")
    assert {r.source for r in records} == set(rows) == {p.name for p in (demo / "frames").iterdir()}
    for record in records:
        row = rows[record.source]
        assert (record.label, record.split) == (row["label"], f"fold{row['fold']}")
        assert [p.name for p in clip_files(record)] == [
            f"{n:05d}.jpg" for n in range(row["frames"])
        ]
        assert FRAMES[0] <= row["frames"] <= FRAMES[1] and 0 <= row["apex"] < row["frames"]
    for fold in range(1, FOLDS + 1):
        train, test = (
            (demo / "lists" / f"DEMO_set_{fold}_{part}.txt").read_text().splitlines()
            for part in ("train", "test")
        )
        assert len(train) + len(test) == len({line.split()[0] for line in train + test}) == 35
        assert all(rows[name]["fold"] == fold for name, _, _ in map(str.split, test))
    assert simplejpeg.decode_jpeg(clip_files(records[0])[0].read_bytes()).shape == (32, 32, 3)


def test_complete_set_is_kept_and_partial_set_finished(demo: Path, tmp_path: Path) -> None:
    copy, before = tmp_path / "copy", contents(demo)
    shutil.copytree(demo, copy)
    stamp = (copy / "demo.json").stat().st_mtime_ns
    render_demo(copy, **SMALL)
    assert (copy / "demo.json").stat().st_mtime_ns == stamp
    (copy / DESCRIPTIONS).unlink()  # as earlier versions left it
    render_demo(copy, **SMALL)
    assert (copy / "demo.json").stat().st_mtime_ns == stamp and contents(copy) == before
    (copy / "demo.json").rename(
        copy / ".unfinished.json"
    )  # holds the same arguments as the mark that an interrupted run leaves
    (copy / "frames" / "00001" / "00000.jpg").write_bytes(b"cut")
    shutil.rmtree(copy / "frames" / "00002")
    render_demo(copy, **SMALL, workers=1)
    assert contents(copy) == before
    render_demo(copy, clips=35, size=32, seed=1, workers=1)
    assert contents(copy).keys() != before.keys()
    assert contents(copy)[DESCRIPTIONS] != before[DESCRIPTIONS]
    assert {
        len(list((copy / "frames" / r["name"]).iterdir())) - r["frames"]
        for r in json.loads((copy / "demo.json").read_text())["rows"]
    } == {0}


def track(*thirds: dict[str, float]) -> np.ndarray:
    """Units of a clip of 30 frames, the same for ten frames each."""
    return np.repeat(
        [[units.get(name, 0.0) for name in AUS] for units in thirds], 10, axis=0
    ).astype(np.float32)


def needed(phrase: str) -> set[str]:
    """Return the units of a movement; none for a part at rest."""
    return {units for (units, _), own in MOVEMENTS.items() if phrase in own}


def phrases(caption: str) -> list[list[str]]:
    """What each sentence says."""
    return [sentence.split(", ") for sentence in caption.removesuffix(".").split(". ")]


def test_caption_orders_movements_by_time_and_strength() -> None:
    smile = {"AU12": 0.9, "AU20": 0.4, "AU6": 0.7, "AU25": 0.5, "AU17": 0.2}
    for seed in range(30):
        said = phrases(
            describe_clip(track({}, smile, {"AU6": 0.3, "AU12": 0.4}), np.random.default_rng(seed))
        )
        assert [[needed(phrase) for phrase in sentence] for sentence in said] == [
            [set()],
            [{"AU12"}, {"AU6"}, {"AU25"}],
            [{"AU12"}],
        ]
        assert said[0][0] in AT_REST
        said = phrases(describe_clip(track(smile, {}, {}), np.random.default_rng(seed)))
        assert [len(sentence) for sentence in said] == [MAX_MOVEMENTS, 1]
        blink = track({}, {"AU4": 0.5}, {})
        blink[3:6, AUS.index("AU43")] = 1
        assert [
            needed(phrase)
            for (phrase,) in phrases(describe_clip(blink, np.random.default_rng(seed)))
        ] == [
            set(),
            {"AU4"},
            set(),
        ]
        brows, eyes, mouth = ({*own} for own in STILL.values())
        still = describe_clip(
            track({"AU4": 0.2, "AU26": 0.1}, {}, {"AU17": 0.15, "AU7": 0.05}),
            np.random.default_rng(seed),
        )
        ((rest, first, second),) = phrases(still)
        assert rest in AT_REST and first in eyes and second in mouth and second not in brows


def test_each_clip_s_description_is_true_of_what_was_drawn(demo: Path) -> None:
    with (demo / DESCRIPTIONS).open(encoding="utf-8", newline="") as f:
        captions = {row["clip"]: row["caption"] for row in csv.DictReader(f)}
    rows = json.loads((demo / "demo.json").read_text())["rows"]
    assert list(captions) == [row["name"] for row in rows]
    for row in rows:
        units, course, _ = clip_track(row["label"], (0, int(row["name"])))
        assert (len(units), course.argmax()) == (row["frames"], row["apex"])
        shown = [
            {name for name, u in zip(AUS, np.median(part, 0), strict=True) if u >= VISIBLE}
            for part in np.array_split(units, 3)
        ]
        moving = [
            [needed(phrase) for phrase in sentence if needed(phrase)]
            for sentence in phrases(captions[row["name"]])
        ]
        there = [seen for seen in shown if seen]
        assert len(there) == sum(map(bool, moving))
        for seen, sentence in zip(there, filter(None, moving), strict=True):
            assert all(any(set(units.split()) <= seen for units in choices) for choices in sentence)


def test_captions_name_no_label_and_fit_text_tower() -> None:
    known = {
        word
        for own in (*MOVEMENTS.values(), *STILL.values(), AT_REST)
        for phrase in own
        for word in phrase.split()
    }
    captions = list[str]()
    for clip in plan_demo():
        units = clip_track(clip.label, (0, int(clip.name)))[0]
        captions.append(describe_clip(units, np.random.default_rng(int(clip.name))))
        assert (
            any(needed(phrase) for sentence in phrases(captions[-1]) for phrase in sentence)
            or SEVEN[clip.label] == "neutral"
        )
    assert [clean(caption, SEVEN) for caption in captions] == captions
    assert set(re.findall(r"\w+", " ".join(captions))) <= known
    assert (
        CaptionTokenizer(clip_tokenizer(1000))(captions).shape[1] <= 36 < CONTEXT
    )  # the longest caption in the pretraining has 33
    assert len(set(captions)) > 600


def test_captions_of_a_class_differ_in_content() -> None:
    for label, name in enumerate(SEVEN):
        said = set()
        for number in range(30):
            caption = describe_clip(clip_track(label, (3, number))[0], np.random.default_rng(0))
            said.add(
                str(
                    [
                        [sorted(needed(phrase)) for phrase in sentence]
                        for sentence in phrases(caption)
                    ]
                )
            )
        assert len(said) >= 8, (name, len(said))


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
        assert (
            track.shape == (30, len(AUS))
            and track.dtype == np.float32
            and track.min() >= 0
            and track.max() <= 1
        )
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
        model = make_pipeline(PCA(20, random_state=0), LinearDiscriminantAnalysis()).fit(
            features[~test], labels[~test]
        )
        return float(model.score(features[test], labels[test]))

    ordered = accuracy((pixels - pixels.mean(1, keepdims=True)).reshape(len(pixels), -1))
    blind = accuracy(pixels.mean(1))
    assert ordered > 0.85 and blind < 0.7, (ordered, blind)
