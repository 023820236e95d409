"""Videos over time: equal to packing and evaluating them, one-line errors."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.video.decode import Video
from dfer_dist.evaluation.evaluate import predict
from dfer_dist.inference.exported import ExportedModel, load
from dfer_dist.inference.predict import cut_windows, predict_video
from dfer_dist.inference.pyfunc import PyfuncModel
from dfer_dist.inference.sources import through_jpeg
from dfer_dist.utils.errors import UserError
from launch import cli
from tests.helpers.data.clips import HUGE_IMAGE
from tests.helpers.data.videos import Pose, draw, encode
from tests.helpers.models.exported import Case

FRAMES = 16


@pytest.fixture(scope="module")
def model(exported: Case) -> ExportedModel:
    return load(exported.out, device="cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with a video each of a face that moves, 16 frames at 25 a second."""
    root = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(("Happy", "Sad")):
        (root / name).mkdir()
        heads = [[Pose(130 + 2 * t, 90, 0.9, 10 * i + t)] for t in range(FRAMES)]
        encode(root / name / f"{name}.mp4", draw(heads, 320, 240))
    return root


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 61 frames at 25 a second, each another pattern."""
    rng = np.random.default_rng(0)
    frames = [
        rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        for _ in range(61)
    ]
    return encode(tmp_path_factory.mktemp("waves") / "waves.mp4", frames)


def dfer(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dfer", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.mark.parametrize("faces", [False, True])
def test_video_in_one_window_equals_packing_and_evaluating(
    model: ExportedModel, videos: Path, tmp_path: Path, faces: bool
) -> None:
    listing = read_dataset("folder", videos, folds=2, prefer_videos=True)
    index = pack(listing.records, "mine", tmp_path, workers=1, classes=listing.classes, faces=faces)
    clips = all_clips(index, range(len(index.shards)))
    batches = evaluation_loader(index, model.config.data, clips, batch=model.config.eval.batch)
    rows = predict(lambda frames: model.model(frames, model.text_features), batches, model.device)
    assert sorted(rows) == ["Happy_Happy", "Sad_Sad"]
    for key, (_, logits) in rows.items():
        name = key.partition("_")[0]
        course = predict_video(model, videos / name / f"{name}.mp4", math.inf, faces=faces)
        assert course.logits.shape == (1, 7) and course.spans.tolist() == [
            [0, pytest.approx(FRAMES / 25)]
        ]
        np.testing.assert_allclose(course.logits[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_folder_of_frames_equals_packing_and_evaluating(
    model: ExportedModel, videos: Path, tmp_path: Path, suffix: str
) -> None:
    clip = tmp_path / "frames" / "Happy" / "one"
    clip.mkdir(parents=True)
    for t, frame in enumerate(Video(videos / "Happy" / "Happy.mp4")):
        # Without zeros before the number: 10 comes after 9.
        Image.fromarray(frame).save(clip / f"f{t}.{suffix}")
    shutil.copytree(tmp_path / "frames" / "Happy", tmp_path / "frames" / "Sad")
    listing = read_dataset("folder", tmp_path / "frames", folds=2)
    index = pack(listing.records, "mine", tmp_path / "set", workers=1, classes=listing.classes)
    clips = all_clips(index, range(len(index.shards)))
    batches = evaluation_loader(index, model.config.data, clips, batch=model.config.eval.batch)
    rows = predict(lambda frames: model.model(frames, model.text_features), batches, model.device)
    assert not predict_video(model, clip).has_times
    course = predict_video(model, clip, math.inf, fps=10)
    assert course.has_times
    assert course.spans.tolist() == [[0, pytest.approx(FRAMES / 10)]]
    np.testing.assert_allclose(course.logits[0], rows["Happy_one"][1], rtol=1e-4, atol=1e-4)


def test_image_is_a_clip_of_one_frame(model: ExportedModel, waves: Path, tmp_path: Path) -> None:
    frame = next(iter(Video(waves)))
    Image.fromarray(frame).save(tmp_path / "one.png")
    # A suffix says nothing.
    (tmp_path / "one.png").rename(tmp_path / "one.dat")
    course = predict_video(model, tmp_path / "one.dat")
    assert course.is_image and course.num_predicted == 1
    want = model.logits(through_jpeg(frame)[None, None])
    np.testing.assert_allclose(course.logits, want, rtol=1e-4, atol=1e-4)


def test_moving_image_is_a_video(model: ExportedModel, waves: Path, tmp_path: Path) -> None:
    first, *more = [Image.fromarray(frame) for frame in islice(Video(waves), 10)]
    first.save(tmp_path / "moving.gif", save_all=True, append_images=more, duration=40)
    course = predict_video(model, tmp_path / "moving.gif")
    assert not course.is_image and course.seconds == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("window", "step"), [(1.0, 0.4), (0.5, 0.7), (0.1, 0.04), (2.4, 1.0), (9.0, 1.0)]
)
def test_each_window_is_seen_as_a_clip_of_its_own(
    model: ExportedModel, waves: Path, window: float, step: float
) -> None:
    course = predict_video(model, waves, window, step)
    frames = np.stack([through_jpeg(frame) for frame in Video(waves)])
    spans = np.rint(course.spans * 25).astype(int)
    np.testing.assert_allclose(spans, course.spans * 25, atol=1e-6)
    assert spans[0, 0] == 0 and spans[-1, 1] == 61 and course.seconds == pytest.approx(61 / 25)
    assert set(np.diff(spans).ravel().tolist()) == {min(round(25 * window), 61)}
    want = np.concatenate([model.logits(frames[None, a:b]) for a, b in spans.tolist()])
    np.testing.assert_allclose(course.logits, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(course.overall, course.probabilities.mean(0), atol=1e-6)
    assert course.overall.sum() == pytest.approx(1, abs=1e-5) and course.num_predicted == len(spans)
    assert course.top == [model.classes[i] for i in want.argmax(1)]
    middles = [
        frame for i, frame in enumerate(Video(waves)) if i in (3, 11, 19, 26, 34, 41, 49, 57)
    ]
    np.testing.assert_array_equal(course.thumbnails, middles)


def test_windows_are_explained_as_the_clips_that_they_are(
    model: ExportedModel, waves: Path
) -> None:
    """Three of eleven windows: the frames are those that the model read."""
    found = predict_video(model, waves, window=0.84, step=0.16, explain=3)
    assert sorted(found.explained) == [1, 5, 9] and len(found.spans) == 11
    frames = [*Video(waves)]
    for i, (seen, explanation) in found.explained.items():
        assert explanation.predicted == found.logits[i].argmax()
        begin = round(found.spans[i, 0] / found.interval)
        chosen = begin + eval_frames(21, model.config.data, model.config.eval.views)[0]
        expected = model.preprocess(np.stack([through_jpeg(frames[t]) for t in chosen]), None)
        assert np.array_equal(seen, expected[:, 0, 0].permute(0, 2, 3, 1))
    assert predict_video(model, waves, window=0.84).explained == {}


@given(frames=st.integers(1, 300), length=st.integers(2, 100), step=st.floats(0.01, 120))
def test_windows_cover_video_in_order(frames: int, length: int, step: float) -> None:
    spans = cut_windows(frames, length, step)
    assert spans[0, 0] == 0 and spans[-1, 1] == frames
    assert set((spans[:, 1] - spans[:, 0]).tolist()) == {min(length, frames)}
    gaps = np.diff(spans[:, 0])
    assert (gaps > 0).all() and (gaps <= max(step, 1) + 1).all()
    on_grid = spans[:-1, 0] if len(spans) > 1 else spans[:, 0]
    assert np.abs(on_grid - np.arange(len(on_grid)) * max(step, 1)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("times", "interval"),
    [
        (None, 0.04),
        ([round(t * 1000 / 60) for t in range(30)], 29 / 1740),
        ([0, 40, 80, 120, 280, 320, 330, 360, 5000, 5040], 0.04),
    ],
)
def test_seconds_between_frames(tmp_path: Path, times: list[int] | None, interval: float) -> None:
    frames = [np.full((48, 64, 3), t, np.uint8) for t in range(len(times or range(10)))]
    video = Video(encode(tmp_path / "a.mkv", frames, times=times))
    assert video.interval() == pytest.approx(interval, rel=3e-3)


def test_windows_without_the_face_have_no_prediction(model: ExportedModel, tmp_path: Path) -> None:
    heads = [[Pose(160, 90, 0.9, t / 2)] if t < 20 or t >= 40 else [] for t in range(50)]
    video = encode(tmp_path / "away.mp4", draw(heads, 320, 240))
    course = predict_video(model, video, 0.4, 0.4, faces=True)
    assert course.faces is not None and (course.faces >= 0.5).tolist() == [
        bool(top) for top in course.top
    ]
    blank = [i for i, (a, b) in enumerate(course.spans.tolist()) if a >= 0.8 and b <= 1.6]
    assert blank and all(not course.top[i] for i in blank) and course.top[0] and course.top[-1]
    assert np.isfinite(course.overall).all() and course.overall.sum() == pytest.approx(1, abs=1e-5)
    rows = list(csv.DictReader(io.StringIO(course.csv())))
    assert [row["prediction"] for row in rows] == course.top
    assert rows[blank[0]]["fear"] == "" and float(rows[blank[0]]["face"]) < 0.5


def test_command_writes_tables_and_names_unreadable_videos(
    exported: Case,
    videos: Path,
    waves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = waves.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(encode(tmp_path / "whole.mkv", Video(waves)).read_bytes()[: len(whole) // 2])
    (tmp_path / "huge.ppm").write_bytes(HUGE_IMAGE)
    out = tmp_path / "out"
    status = dfer(
        monkeypatch,
        "predict",
        exported.out,
        tmp_path / "huge.ppm",
        waves,
        cut,
        videos / "Happy" / "Happy.mp4",
        "--window",
        1,
        "--out",
        out,
    )
    said = capsys.readouterr()
    assert status == 2 and said.err.count("\n") == 2 and f"error: {cut}: " in said.err
    assert "huge.ppm cannot be decoded (it has more than 89 million pixels)" in said.err
    assert sorted(f.name for f in out.iterdir()) == [
        "Happy.mp4.csv",
        "Happy.mp4.png",
        "overall.csv",
        "waves.mp4.csv",
        "waves.mp4.png",
    ]
    rows = list(csv.DictReader((out / "waves.mp4.csv").open()))
    classes = load(exported.out).classes
    assert list(rows[0]) == ["start", "end", "prediction", *classes]
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [
        (0, 1),
        (1, 2),
        (1.44, 2.44),
    ]
    probabilities = np.array([[float(row[c]) for c in classes] for row in rows])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    overall = {row["video"]: row for row in csv.DictReader((out / "overall.csv").open())}
    mean = [float(overall[str(waves)][c]) for c in classes]
    np.testing.assert_allclose(mean, probabilities.mean(0), atol=1e-5)
    best = classes[int(np.argmax(mean))]
    assert overall[str(waves)]["prediction"] == best and overall[str(waves)]["windows"] == "3"
    assert f"waves.mp4: {best} {max(mean):.2f} (mean of 3 windows of 1 s)" in said.out
    assert "1.4 to 2.4" in said.out and "whole video" in said.out
    assert (out / "waves.mp4.png").read_bytes().startswith(b"\x89PNG")


def test_command_reads_a_video_of_any_name(
    exported: Case,
    waves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, video = tmp_path / "out", tmp_path / os.fsdecode(b"$_$ caf\xe9\n1")
    shutil.copy(waves, video)
    assert dfer(monkeypatch, "predict", exported.out, video, "--out", out) == 0
    assert r"$_$ caf\xe9\x0a1: " in capsys.readouterr().out
    names = {f"{video.name}.csv", f"{video.name}.png", "overall.csv"}
    assert {file.name for file in out.iterdir()} == names
    (row,) = csv.DictReader((out / "overall.csv").open())
    assert row["video"] == str(tmp_path / r"$_$ caf\xe9\x0a1")


def test_unusable_video_is_one_line_error(
    model: ExportedModel, waves: Path, tmp_path: Path
) -> None:
    single = encode(tmp_path / "one.mp4", [np.zeros((48, 64, 3), np.uint8)])
    empty = encode(tmp_path / "nobody.mp4", draw([[] for _ in range(8)], 320, 240))
    (tmp_path / "text.mp4").write_text("kein Vidéo")
    (tmp_path / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    (tmp_path / "song.mp4").write_bytes(bytes(1000))
    (tmp_path / "nothing.mp4").touch()
    for video, options, message in [
        (single, {}, "one.mp4 has a single frame"),
        (tmp_path / "none.mp4", {}, "none.mp4 is missing"),
        (tmp_path / "text.mp4", {}, "text.mp4 is a text file: give a video, an image"),
        (tmp_path / "pointer.mp4", {}, "pointer.mp4 is a pointer of Git LFS: run git lfs pull"),
        (tmp_path / "song.mp4", {}, "song.mp4 cannot be read as a video: "),
        (tmp_path / "nothing.mp4", {}, "nothing.mp4 is empty"),
        (tmp_path, {}, "holds no image of a known kind"),
        (waves, {"fps": 0.0}, "fps=0: it must be greater than 0"),
        (empty, {"faces": True, "window": math.inf}, "nobody.mp4: one face is in at most 0 %"),
        (
            empty,
            {"faces": True, "window": 0.2, "step": 0.1},
            "one face is in at most 0 % of a window's frames",
        ),
        (waves, {"window": 0.05}, "less than two of its frames, 25 a second"),
        (waves, {"step": 0.0}, "must be greater than 0"),
        (waves, {"window": math.nan}, "must be greater than 0"),
    ]:
        with pytest.raises(UserError) as caught:
            predict_video(model, video, **options)  # type: ignore[arg-type]
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_pyfunc_model_predicts_videos_and_frames(model: ExportedModel, waves: Path) -> None:
    pyfunc = PyfuncModel(model)
    course = predict_video(model, waves, 1.0, 0.5)
    for asked in (str(waves), [str(waves)], [waves]):
        table = pyfunc.predict(asked, {"window": 1.0, "step": 0.5, "faces": False})
        assert list(table.columns) == list(model.classes) and list(table.index) == [str(waves)]
        np.testing.assert_allclose(table.to_numpy()[0], course.overall, atol=1e-6)
    for wrong in ([], 3, [b"x"], {"frames": 1}):
        with pytest.raises(UserError, match="give frames"):
            pyfunc.predict(wrong)
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 40, 30, 3), dtype=np.uint8)
    encoded = base64.b64encode(waves.read_bytes()).decode()
    table = pyfunc.predict([encoded, frames[0].tolist()], {"window": 1.0, "step": 0.5})
    assert list(table.index) == [0, 1]
    np.testing.assert_allclose(table.to_numpy()[0], course.overall, atol=1e-6)
    np.testing.assert_allclose(table.to_numpy()[1], model.probabilities(frames)[0], atol=1e-6)


def test_pyfunc_error_answers_with_its_line_alone(model: ExportedModel, waves: Path) -> None:
    from mlflow.exceptions import MlflowException

    encoded = base64.b64encode(waves.read_bytes()[:2000]).decode()
    with pytest.raises(MlflowException) as caught:
        PyfuncModel(model).predict([encoded])
    # as MLflow's server does
    caught.value.message = f"Failed to predict data '{encoded}'. \nError: {caught.value.message}"
    answer = json.loads(caught.value.serialize_as_json())
    assert caught.value.get_http_status_code() == 400
    assert answer["message"].startswith("input 1 cannot be read as a video: ")
    assert "\n" not in answer["message"] and "stack_trace" not in answer


def test_two_videos_of_one_name_are_refused(
    exported: Case, waves: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dfer(monkeypatch, "predict", exported.out, waves, waves) == 2
    assert "two videos are called waves.mp4" in capsys.readouterr().err
    assert dfer(monkeypatch, "predict", exported.out, waves.parent / "overall") == 2
    assert "would have the table of whole videos" in capsys.readouterr().err
