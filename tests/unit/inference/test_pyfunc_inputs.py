from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dfer_dist.inference.pyfunc_inputs import SERVE_VIDEOS, parse_inputs
from dfer_dist.utils.errors import UserError

BYTES = bytes(range(256))
BASE64 = base64.b64encode(BYTES).decode()
CLIP = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


@pytest.fixture(autouse=True)
def outside_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVE_VIDEOS, raising=False)
    monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", raising=False)


@pytest.fixture(params=["mlflow", "mlserver"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "mlflow":
        monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    else:
        monkeypatch.setitem(sys.modules, "mlserver", ModuleType("mlserver"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with a video; ``secret.mp4`` is next to it."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    return tmp_path / "videos"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "data",
    [
        BASE64,
        [BASE64],
        np.array(BASE64, object),
        np.array([BASE64]),
        np.array([BASE64], object),
        pd.DataFrame({"any name": [BASE64]}, index=[7]),
        [f"data:video/mp4;base64,{BASE64}"],
        ["\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76))],
    ],
)
def test_video_in_base64_is_decoded(data: Any) -> None:
    assert parse_inputs(data) == [BYTES]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "data",
    [
        [CLIP.tolist()],
        np.array([CLIP.tolist()], object),
        CLIP[None].astype(np.int64),
        pd.DataFrame({"clip": [CLIP.tolist()]}),
    ],
)
def test_pixels_are_integers_in_lists(data: Any) -> None:
    (clip,) = parse_inputs(data)
    assert isinstance(clip, np.ndarray)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, CLIP)


def test_items_may_differ_in_kind_and_length() -> None:
    data = np.empty(3, object)
    data[:] = [CLIP.tolist(), CLIP[:1, :2].tolist(), BASE64]
    first, second, third = parse_inputs(data)
    assert np.array_equal(first, CLIP)
    assert np.array_equal(second, CLIP[:1, :2])
    assert third == BYTES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no clip and no video: give frames"),
        ({"video": [BASE64]}, r"input 1 is object \[\]: give frames"),
        ([None], r"input 1 is object \[\]: give frames"),
        ([b"x"], r"input 1 is \|S1 \[\]: give frames"),
        ([BASE64, CLIP[0].tolist()], r"input 2 is int64 \[4, 5, 3\]: give frames"),
        ([CLIP[..., :1].tolist()], r"input 1 is int64 \[2, 4, 5, 1\]: give frames"),
        ([CLIP[:0]], r"input 1 is float64 \[0\]: give frames"),
        ([(CLIP / 255).tolist()], "input 1 is float64 "),
        ([(CLIP > 3).tolist()], "input 1 is bool "),
        (
            [(CLIP.astype(int) - 1).tolist()],
            r"input 1 is int64 \[2, 4, 5, 3\]: give frames, integers from 0 to 255",
        ),
        (
            [(CLIP.astype(int) + 150).tolist()],
            r"input 1 is int64 \[2, 4, 5, 3\]: give frames, integers from 0 to 255",
        ),
        ([[[[[2**80, 0, 0]]]]], "input 1 is object "),
        ([[[[[1, 2, 3]]], [[[1, 2, 3], [1, 2, 3]]]]], "input 1 has frames of several sizes"),
    ],
)
def test_other_inputs_are_named_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_inputs(data)
    assert "\n" not in str(caught.value)


def test_paths_are_opened_where_no_server_runs(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos)
    for data in ("a.mp4", Path("a.mp4"), np.array(["a.mp4"]), pd.DataFrame({"x": ["a.mp4"]})):
        assert parse_inputs(data) == [Path("a.mp4")]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", ["a.mp4", "b.mp4", "/etc/hostname", "data:,a.mp4", ""])
def test_server_opens_no_path_by_default(
    videos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(videos)
    for data in (np.array([name]), pd.DataFrame({"video": [name]})):
        with pytest.raises(UserError, match=f"may open: start it with {SERVE_VIDEOS}=FOLDER"):
            parse_inputs(data)


@pytest.mark.usefixtures("server")
def test_server_opens_paths_in_its_folder_alone(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVE_VIDEOS, str(videos))
    for name in ("a.mp4", str(videos / "a.mp4"), "../videos/a.mp4"):
        assert parse_inputs([name]) == [videos / "a.mp4"]
    assert parse_inputs([BASE64]) == [BYTES]
    (videos / "link.mp4").symlink_to(videos.parent / "secret.mp4")
    (videos / "loop.mp4").symlink_to("loop.mp4")
    outside = [str(videos.parent / "secret.mp4"), "../secret.mp4", "../none.mp4", "link.mp4"]
    missing = ["b.mp4", "loop.mp4", "a\0.mp4", "\ud800", "a" * 5000 + "."]
    for name in (*outside, *missing, str(videos), ""):
        with pytest.raises(UserError, match="neither a base64 video nor one in the folder") as e:
            parse_inputs([name])
        assert len(str(e.value)) < 250 and "\n" not in str(e.value)


def test_path_of_letters_alone_is_no_base64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("frames/clip0001")
    assert parse_inputs(["frames/clip0001/"]) == [Path("frames/clip0001")]
