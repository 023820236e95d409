from __future__ import annotations

import io
import pickle
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from dfer_dist.data.sources.probe import is_video
from dfer_dist.data.video.decode import PYAV_VERSIONS, DamagedVideo, Video
from dfer_dist.utils.errors import UserError
from tests.helpers.data.videos import damage_frames, encode
from tests.helpers.paths import ROOT


def patches(frames: int = 30, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Return frames with their number as brightness, and a red upper left corner."""
    out = []
    for t in range(frames):
        image = np.full((height, width, 3), 40 + 5 * t, np.uint8)
        image[: height // 2, : width // 2] = (220, 30, 30)
        out.append(image)
    return out


def frame_numbers(video: Path) -> list[int]:
    return [round((float(f[-20:, -20:].mean()) - 40) / 5) for f in Video(video)]


def read_until_damage(file: Path) -> tuple[int, DamagedVideo]:
    frames: list[int] = []
    with pytest.raises(DamagedVideo) as caught:
        frames.extend(1 for _ in Video(file))
    return len(frames), caught.value


def test_video_yields_all_frames_in_order_each_time(tmp_path: Path) -> None:
    video = Video(encode(tmp_path / "a.mp4", patches()))
    first, second = list(video), list(video)
    assert frame_numbers(video.path) == list(range(30))
    assert first[0].shape == (64, 96, 3) and first[0].dtype == np.uint8
    # red is the first channel
    assert np.abs(first[0][10, 10].astype(int) - (220, 30, 30)).max() < 12
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
def test_rotated_video_is_shown_upright(
    tmp_path: Path, degrees: float, shape: tuple[int, int], corner: tuple[int, int]
) -> None:
    """A rotation by +90 degrees is counter-clockwise: the top of the image is at the left then."""
    frame = next(iter(Video(encode(tmp_path / "a.mp4", patches(3), rotation=degrees))))
    assert frame.shape[:2] == shape
    assert frame[corner][0] > 180 and frame[corner][1] < 80
    assert frame[-corner[0], -corner[1]].std() < 5


def test_rotation_is_read_from_other_containers(tmp_path: Path) -> None:
    frame = next(iter(Video(encode(tmp_path / "a.mkv", patches(3), rotation=90))))
    assert frame.shape[:2] == (96, 64)
    assert frame[-10, 10][0] > 180 and frame[-10, 10][1] < 80


def test_mirrored_video_is_shown_mirrored(tmp_path: Path) -> None:
    frame = next(iter(Video(encode(tmp_path / "a.mp4", patches(3), rotation=0, mirror=True))))
    assert frame[10, -10][0] > 180 and frame[10, 10].std() < 5


@pytest.mark.parametrize("orientation", [1, 2, 6, 7])
def test_photos_of_a_camera_as_a_video_are_upright(tmp_path: Path, orientation: int) -> None:
    """Motion JPEG may have Exif data, which the enumeration of PyAV lacks."""
    photo, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(patches(1)[0]).save(photo, "JPEG", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.avi"), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for time in range(3):
            packet = av.Packet(photo.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = time
            packet.is_keyframe = True
            output.mux(packet)
    frames = list(Video(tmp_path / "a.avi"))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(photo)))
    assert len(frames) == 3 and frames[0].shape == upright.shape
    assert np.abs(frames[0].astype(int) - upright).mean() < 3
    # raw Motion JPEG
    (tmp_path / "a.mjpg").write_bytes(3 * photo.getvalue())
    assert np.array_equal(list(Video(tmp_path / "a.mjpg")), frames)


@pytest.mark.parametrize("name", ["12:30.mp4", "concat:a|b.mp4", "-i.mp4", "100%d.mp4"])
def test_name_is_no_protocol_of_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    encode(tmp_path / "a.mp4", patches(3)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(Video(Path(name)))) == 3
    Path(name).rename(Path(name).stem)
    assert is_video(Path(Path(name).stem))


def test_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    assert read_until_damage(tmp_path / "a.mp4")[1].reason == (
        "a pointer of Git LFS: run git lfs pull"
    )


def test_uneven_times_are_resampled_to_a_steady_rate(tmp_path: Path) -> None:
    # a frame that is held, one that is early, and a reset of the clock
    times = [0, 40, 80, 120, 280, 320, 330, 360, 5000, 5040]
    video = encode(tmp_path / "a.mkv", patches(10), times=times)
    assert frame_numbers(video) == [0, 1, 2, 3, 3, 3, 3, 4, 6, 7, 8, 9]


def test_rounding_to_milliseconds_changes_no_frame(tmp_path: Path) -> None:
    video = encode(tmp_path / "a.mkv", patches(30), times=[round(t * 1000 / 60) for t in range(30)])
    assert frame_numbers(video) == list(range(30))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")],
)
def test_truncated_video_is_reported_with_decoded_frames(
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
    num_frames, damage = read_until_damage(file)
    assert 5 < damage.frames < 25 and damage.frames - 1 <= num_frames <= damage.frames
    assert str(file) in str(damage) and f"{damage.frames} frames decoded" in str(damage)
    assert str(pickle.loads(pickle.dumps(damage))) == str(damage)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_zeroed_bytes_in_the_middle_are_detected(tmp_path: Path, codec: str) -> None:
    """One codec stops at the damage, the other conceals it and reports it."""
    rng = np.random.default_rng(0)
    file = encode(
        tmp_path / "a.mp4",
        [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)],
        codec=codec,
    )
    data = bytearray(file.read_bytes())
    middle, length = len(data) // 2, len(data) // 8
    data[middle : middle + length] = bytes(length)
    file.write_bytes(data)
    _, damage = read_until_damage(file)
    assert damage.frames < 30


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_file_that_is_no_video_is_damaged(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(content)
    assert read_until_damage(file)[0] == 0


def test_playlist_opens_no_other_file(tmp_path: Path) -> None:
    segment = encode(tmp_path / "a.ts", patches(10))
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:0.4,\n{segment}\n#EXT-X-ENDLIST\n",
        "video": "ffconcat version 1.0\nfile a.ts\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with av.open(str(tmp_path / name)) as container:
            assert len(list(container.decode(video=0))) == 10
        assert read_until_damage(tmp_path / name)[0] == 0


def test_audio_only_file_is_reported(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "no video" in str(read_until_damage(tmp_path / "a.mp4")[1])


def test_unknown_codec_is_named(tmp_path: Path) -> None:
    file = encode(tmp_path / "a.avi", patches(3), codec="mpeg4")
    file.write_bytes(file.read_bytes().replace(b"FMP4", b"ZZZZ"))
    assert "its codec is not known" in str(read_until_damage(file)[1])


def test_few_damaged_frames_may_be_dropped(tmp_path: Path) -> None:
    # only key frames: damage stays in its frame
    file = encode(tmp_path / "a.avi", patches(), codec="mpeg4", gop_size=1)
    whole = list(Video(file))
    damage_frames(file, [0, 7, 29])
    video = Video(file, max_bad_frames=10)
    for _ in range(2):
        frames = list(video)
        assert len(frames) == 27 and video.num_bad == 3
        assert "cleanly" in video.fault
        kept = [whole[i] for i in range(30) if i not in (0, 7, 29)]
        assert all(np.array_equal(a, b) for a, b in zip(frames, kept, strict=True))
    for percentage in (0, 9.9):
        with pytest.raises(DamagedVideo):
            list(Video(file, max_bad_frames=percentage))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264")])
def test_end_of_a_truncated_video_counts_as_damaged(tmp_path: Path, name: str, codec: str) -> None:
    options = {"movflags": "faststart"} if name == "a.mp4" else None
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
    file = encode(tmp_path / name, noise, codec=codec, options=options)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    video = Video(file, max_bad_frames=60)
    num_frames = len(list(video))
    assert 10 < num_frames < 25 and num_frames + video.num_bad == 30
    with pytest.raises(DamagedVideo):
        list(Video(file, max_bad_frames=20))


def test_other_versions_of_pyav_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = PYAV_VERSIONS[0], PYAV_VERSIONS[-1]
    bounds = f"av>={first},<{last + 1}"
    assert f"\n    {bounds}\n" in (ROOT / "setup.cfg").read_text()
    file = encode(tmp_path / "a.mp4", patches(2))
    for version in (f"{first - 1}.1.0", f"{last + 1}.0.0"):
        monkeypatch.setattr(av, "__version__", version)
        with pytest.raises(UserError, match=f"PyAV {version} is installed.*pip install '{bounds}'"):
            list(Video(file))


def test_missing_pyav_names_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        next(iter(Video(tmp_path / "a.mp4")))


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (None, 0.2, range(5)),
        (0.4, None, range(10, 30)),
        # rounded to milliseconds: frame 3 is at 0.12 s
        (0.1204, 0.2801, range(3, 7)),
        (0.41, 0.43, range(0)),
        (1.0, 9.0, range(25, 30)),
    ],
)
def test_part_of_a_video_has_the_frames_between_its_times(
    start: float | None, end: float | None, frames: range, tmp_path: Path
) -> None:
    file = encode(tmp_path / "a.mp4", patches())
    video = Video(file, start=start, end=end)
    if not frames:
        with pytest.raises(DamagedVideo, match=r"it has no frame from 0\.41 s on"):
            list(video)
        return
    expected = list(Video(file))[frames.start : frames.stop]
    found = list(video)
    assert len(found) == len(frames)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_damage_counts_only_before_the_end_of_a_part(tmp_path: Path) -> None:
    file = encode(tmp_path / "a.avi", patches(), codec="mpeg4", gop_size=1)
    damage_frames(file, [20])
    assert len(list(Video(file, start=0.2, end=0.6))) == 10
    for part in ({"end": 1.0}, {"start": 0.9}):
        with pytest.raises(DamagedVideo):
            list(Video(file, **part))
    with pytest.raises(DamagedVideo, match="it has no frame from 2 s on"):
        list(Video(encode(tmp_path / "b.mp4", patches(5)), start=2.0))
