from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.video.decode import DamagedVideo, Video
from dfer_dist.data.video.truncation import find_truncation
from tests.helpers.data.videos import encode

# by file name: codec, ffmpeg's name of the format, what is said of a truncated file
KINDS = {
    "a.wmv": ("wmv2", "asf", "the last [0-9,]+ bytes are missing"),
    "a.ts": ("mpeg2video", "mpegts", r"it ends within a packet \(truncated\?\)"),
    "a.m2ts": ("mpeg2video", "mpegts", r"it ends within a packet \(truncated\?\)"),
    "a.ogv": ("libvpx", "ogg", r"its last page is missing \(truncated\?\)"),
}
PACKET = {"a.ts": 188, "a.m2ts": 192}


def write_video(file: Path) -> bytes:
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(30))
    return encode(file, noise, codec=KINDS[file.name][0]).read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_truncated_video_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    data = write_video(file)
    assert sum(1 for _ in Video(file)) == 30
    _, container, reason = KINDS[name]
    for end in (len(data) // 2, len(data) * 3 // 4, len(data) - 500):
        # within a packet
        file.write_bytes(data[: end - end % PACKET.get(name, 1) + 100])
        assert re.fullmatch(reason, find_truncation(str(file), container) or "whole")
        with pytest.raises(DamagedVideo):
            list(Video(file))
    # what programs add to the end is no fault
    file.write_bytes(data + b"TAG and more")
    assert sum(1 for _ in Video(file)) == 30


def test_end_between_two_packets_of_a_transport_stream_is_not_known(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.ts")
    (tmp_path / "a.ts").write_bytes(data[: len(data) // 188 // 2 * 188])
    assert find_truncation(str(tmp_path / "a.ts"), "mpegts") is None


@pytest.mark.parametrize("change", ["missing", "altered"])
def test_damaged_page_of_an_ogg_stream_is_named(tmp_path: Path, change: str) -> None:
    """ffmpeg would show the frame before it for as long."""
    file = tmp_path / "a.ogv"
    data = bytearray(write_video(file))
    first, second = [part.start() for part in re.finditer(b"OggS", data)][3:5]
    if change == "missing":
        del data[first:second]
    else:
        data[second - 9] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedVideo, match=f"its page {4 - (change == 'altered')} is damaged"):
        list(Video(file))


def test_truncated_video_may_be_kept(tmp_path: Path) -> None:
    """How many frames are missing is not known: it counts as one."""
    file = tmp_path / "a.ogv"
    file.write_bytes(write_video(file)[:-2000])
    video = Video(file, max_bad_frames=10)
    assert 20 < len(list(video)) < 30
    assert (video.num_bad, video.fault) == (1, "its last page is missing (truncated?)")
