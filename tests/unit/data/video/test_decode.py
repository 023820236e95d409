"""Films: upright, at a steady rate, and never cut short in silence."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from dfer_dist.data.video.decode import DamagedVideo, Video
from dfer_dist.utils.errors import UserError
from tests.helpers.videos import encode


def patches(frames: int = 30, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frames that tell their number by their brightness and their sides by a red upper left corner."""
    out = []
    for t in range(frames):
        image = np.full((height, width, 3), 40 + 5 * t, np.uint8)
        image[: height // 2, : width // 2] = (220, 30, 30)
        out.append(image)
    return out


def numbers(video: Path) -> list[int]:
    return [round((float(f[-20:, -20:].mean()) - 40) / 5) for f in Video(video)]


def read_until_damage(file: Path) -> tuple[int, DamagedVideo]:
    given: list[int] = []
    with pytest.raises(DamagedVideo) as caught:
        given.extend(1 for _ in Video(file))
    return len(given), caught.value


def test_frames_come_whole_in_order_and_again(tmp_path: Path) -> None:
    video = Video(encode(tmp_path / "a.mp4", patches()))
    first, second = list(video), list(video)
    assert numbers(video.path) == list(range(30))
    assert first[0].shape == (64, 96, 3) and first[0].dtype == np.uint8
    assert np.abs(first[0][10, 10].astype(int) - (220, 30, 30)).max() < 12  # red first, not blue
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("degrees", "shape", "corner"),
    [
        (0, (64, 96), (10, 10)),
        (90, (96, 64), (-10, 10)),
        (-90, (96, 64), (10, -10)),
        (180, (64, 96), (-10, -10)),
    ],
)
def test_telephones_films_stand_upright(
    tmp_path: Path, degrees: float, shape: tuple[int, int], corner: tuple[int, int]
) -> None:
    """A turn of +90 degrees is counter-clockwise: what was above is at the left then."""
    frame = next(iter(Video(encode(tmp_path / "a.mp4", patches(3), turn=degrees))))
    assert frame.shape[:2] == shape
    assert frame[corner][0] > 180 and frame[corner][1] < 80
    assert frame[-corner[0], -corner[1]].std() < 5


def test_mirrored_film_is_shown_mirrored(tmp_path: Path) -> None:
    frame = next(iter(Video(encode(tmp_path / "a.mp4", patches(3), turn=0, mirror=True))))
    assert frame[10, -10][0] > 180 and frame[10, 10].std() < 5


def test_uneven_times_become_a_steady_rate(tmp_path: Path) -> None:
    times = [
        0,
        40,
        80,
        120,
        280,
        320,
        330,
        360,
        5000,
        5040,
    ]  # a picture held, one in a hurry, a clock set anew
    video = encode(tmp_path / "a.mkv", patches(10), times=times)
    assert numbers(video) == [0, 1, 2, 3, 3, 3, 3, 4, 6, 7, 8, 9]


def test_jitter_of_a_container_with_milliseconds_changes_nothing(tmp_path: Path) -> None:
    video = encode(tmp_path / "a.mkv", patches(30), times=[round(t * 1000 / 60) for t in range(30)])
    assert numbers(video) == list(range(30))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")],
)
def test_cut_films_are_named_with_the_frames_that_were_decoded(
    tmp_path: Path, name: str, codec: str
) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
    file = encode(
        tmp_path / name,
        noise,
        codec=codec,
        options={"movflags": "faststart"} if name == "a.mp4" else None,
    )
    assert sum(1 for _ in Video(file)) == 30
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    given, damage = read_until_damage(file)
    assert 5 < damage.frames < 25 and damage.frames - 1 <= given <= damage.frames
    assert str(file) in str(damage) and f"{damage.frames} frames decoded" in str(damage)
    assert str(pickle.loads(pickle.dumps(damage))) == str(damage)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_bytes_lost_in_the_middle_are_noticed(tmp_path: Path, codec: str) -> None:
    """One codec stops at them, the other covers them up and says so."""
    rng = np.random.default_rng(0)
    file = encode(
        tmp_path / "a.mp4",
        [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)],
        codec=codec,
    )
    data = bytearray(file.read_bytes())
    middle, many = len(data) // 2, len(data) // 8
    data[middle : middle + many] = bytes(many)
    file.write_bytes(data)
    _, damage = read_until_damage(file)
    assert damage.frames < 30


@pytest.mark.parametrize("content", [b"", b"no film at all" * 50])
def test_what_is_no_film_is_damaged(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(content)
    assert read_until_damage(file)[0] == 0


def test_sound_without_pictures_is_said(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "no video" in str(read_until_damage(tmp_path / "a.mp4")[1])


def test_without_pyav_the_command_that_helps_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'dfer_dist\[faces\]'"):
        next(iter(Video(tmp_path / "a.mp4")))
