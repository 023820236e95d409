from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.sources.probe import is_video


def encode(file: Path, container: str, codec: str, frames: int = 3) -> Path:
    """Write a video of frames of 176 x 144."""
    with av.open(str(file), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for i in range(frames):
            image = np.full((144, 176, 3), 40 * i, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        output.mux(stream.encode())
    return file


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.flv", "flv", "flv"),
        ("a.WMV", "asf", "wmv2"),
        ("a.ts", "mpegts", "mpeg2video"),
        ("a.dat", "mpeg", "mpeg1video"),
        ("a.vob", "vob", "mpeg2video"),
        ("a.rm", "avi", "mpeg4"),
        ("without a suffix", "mp4", "mpeg4"),
        ("1.5", "nut", "mpeg4"),
    ],
)
def test_video_of_any_name_is_one(name: str, container: str, codec: str, tmp_path: Path) -> None:
    assert is_video(encode(tmp_path / name, container, codec))


def write_image(file: Path, kind: str, frames: int = 1) -> None:
    images = [Image.new("RGB", (16, 16), (90 * i, 0, 0)) for i in range(frames)]
    images[0].save(file, kind, save_all=frames > 1, append_images=images[1:])


def test_other_files_are_no_videos(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        write_image(tmp_path / f"{kind} still", kind)
    for kind in ("GIF", "WEBP", "PNG"):
        write_image(tmp_path / f"{kind} animated", kind, 3)
    encode(tmp_path / "one frame", "mp4", "mpeg4", frames=1)
    np.save(tmp_path / "landmarks.npy", np.random.default_rng(0).random((50, 68, 2)))
    with av.open(str(tmp_path / "sound"), "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    encode(tmp_path / "clip.mkv", "matroska", "mpeg4")
    texts = {
        "notes": "a text\n",
        "art": "\x1b[2J\x1b[1;31m" + "colours of a terminal\n" * 99,
        "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nhi\n\n2\n00:00:03,000 --> 00:00:04,000\nyo\n",
        "playlist": "ffconcat version 1.0\nfile clip.mkv\n",
        "pointer.ts": "version https://git-lfs.github.com/spec/v1\nsize 12345\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").touch()
    (tmp_path / "broken link").symlink_to("nowhere")
    found = {file.name for file in tmp_path.iterdir() if is_video(file)}
    assert found == {"clip.mkv"}


def test_file_of_a_usual_suffix_is_not_opened(tmp_path: Path) -> None:
    assert is_video(tmp_path / "missing.MP4")
    assert is_video(tmp_path / "missing.mjpeg")
    assert not is_video(tmp_path / "missing.png")
