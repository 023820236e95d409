from __future__ import annotations

import random
from pathlib import Path

import pytest

from dfer_dist.data.sources.frame_order import find_sequences, sort_frames

# milliseconds
TIMES = (0, 41, 975, 1013, 1900, 59_307, 60_002, 61_004)

# names in temporal order
ORDERS = {
    "integers of any width": ["9.jpg", "10.jpg", "00011.jpg", "100.jpg"],
    "seconds": ["t_0.0.jpg", "t_0.25.jpg", "t_0.5.jpg", "t_0.75.jpg", "t_1.0.jpg"],
    "seconds of one width": ["0.000.jpg", "0.040.jpg", "0.080.jpg", "10.000.jpg"],
    "seconds with a comma": ["t=9,5s.jpg", "t=9,75s.jpg", "t=10s.jpg"],
    "integers between decimals": ["1.jpg", "1.5.jpg", "2.jpg", "2.25.jpg"],
    "two counters with a dot": [f"c{1 + i // 12}.{i % 12 + 1}.jpg" for i in range(24)],
    "a date": ["2021.01.02.9.jpg", "2021.01.02.10.jpg", "2021.01.02.11.jpg"],
    "a face of OpenFace": ["frame_det_00_000009.bmp", "frame_det_00_000010.bmp"],
    "a score before the frame": [
        "s0.98_f1.jpg",
        "s0.97_f2.jpg",
        "s0.98_f3.jpg",
        "s0.5_f4.jpg",
    ],
    "a frame before the score": ["1_0.5.jpg", "2_0.98.jpg", "3_0.5.jpg", "4_0.97.jpg"],
    "minutes and seconds": [f"{s // 60:02d}-{s % 60:02d}.jpg" for s in range(50, 200, 5)],
    "minutes, seconds and milliseconds": [
        f"00_{ms // 60000:02d}_{ms // 1000 % 60:02d}_{ms % 1000:03d}.jpg"
        for ms in [round(59_000 + i * 100 / 3) for i in range(90)]
    ],
    "seconds that pass a minute": ["00h00m40s.jpg", "00h01m00s.jpg", "00h01m20s.jpg"],
    "a time of day at uneven times": [
        f"2021-01-02_10-0{ms // 60000}-{ms // 1000 % 60:02d}.{ms % 1000:03d}.jpg"
        for ms in (58_000, 58_041, 59_975, 60_013, 60_900, 61_307)
    ],
    "a time of day at even times": [
        f"10-0{ms // 60000}-{ms / 1000 % 60:06.3f}.jpg"
        for ms in [round(i * 100 / 3) for i in range(1795, 1890)]
    ],
    **{
        f"a time of day at uneven times until {last} ms: {pattern}": [
            pattern.format(m=ms // 60_000, s=ms // 1000 % 60, ms=ms % 1000) for ms in (*TIMES, last)
        ]
        # another millisecond than all others, and that of another frame
        for last in (121_040, 121_041)
        for pattern in (
            "2019-01-02-12.{m:02d}.{s:02d}.{ms:03d}.jpg",
            "00_{m:02d}_{s:02d}_{ms:03d}.jpg",
            "vlcsnap-2021-01-02-12h{m:02d}m{s:02d}s{ms:03d}.png",
            "IMG_20210102_12{m:02d}{s:02d}_{ms:03d}.jpg",
            "12-{m:02d}-{s:02d}-{ms:03d}999.jpg",
        )
    },
    "seconds at uneven times": ["12-00-58.jpg", "12-01-03.jpg", "12-01-40.jpg"],
    "frames of a second": [f"s{i // 25:02d}_f{i % 25:02d}.jpg" for i in range(60)],
    "frames of a second at 29.97 Hz": [
        f"s{s}_f{t}.jpg" for s, rate in enumerate((30, 29, 30, 7)) for t in range(rate)
    ],
    "frames of a second of any rate": [f"sec{i // 16}_f{i % 16}.jpg" for i in range(320)],
    "frames of a shot": ["shot1_1.jpg", "shot1_2.jpg", "shot1_3.jpg", "shot2_1.jpg", "shot2_2.jpg"],
    "frames of a subject of CK+": [f"S005_001_{t:08d}.png" for t in range(1, 12)],
    "frame and face": [f"frame{t:04d}_face0.jpg" for t in range(8, 12)],
    "frame and face by a hyphen": [f"{t:05d}-1.jpg" for t in range(8, 12)],
    "frame and microseconds": [f"{t:08d}_{33_367 * t:016d}.jpg" for t in range(8, 40)],
    "a place before the frame": [f"x{7 * t % 5 + 9}_y{t % 3}_{t:04d}.jpg" for t in (1, 2, 3, 5, 8)],
    "frames of a burst": [f"{t:05d}IMG_{t:05d}_BURST20210102123456789.jpg" for t in range(8, 12)],
    "milliseconds": [f"{t}ms.jpg" for t in range(0, 400, 40)],
    "seconds since 1970": [f"{1_546_430_401.123 + t / 25:.3f}.jpg" for t in range(60)],
    "numbers as Windows writes them": [f"frame ({t}).jpg" for t in range(8, 12)],
    "a frame and its time": [f"frame_{t:04d}_t={t * 0.04:.2f}.jpg" for t in range(8, 30)],
    "a frame and a box": [f"{t:04d}_{99 + t % 3}_{50 - t % 2}_200.jpg" for t in range(8, 20)],
    "versions": ["v1.9.jpg", "v1.10.jpg", "v2.1.jpg", "v2.3.jpg"],
    "seconds before and after an event": [f"t_{i / 4}.jpg" for i in range(-3, 4)],
    "frames before and after an event": ["t-20.jpg", "t-15.jpg", "t-10.jpg", "t0.jpg", "t5.jpg"],
    "digits of another script": ["２.jpg", "９.jpg", "１０.jpg"],
    "parts of one numbering": [f"part{1 + i // 40}_{i}.jpg" for i in range(80)],
    "text without numbers": ["apex.jpg", "onset.jpg"],
}


@pytest.mark.parametrize("kind", ORDERS)
def test_frames_are_sorted_by_time(kind: str) -> None:
    files = [Path("clip") / name for name in ORDERS[kind]]
    shuffled = random.Random(0).sample(files, len(files))
    assert sort_frames(shuffled) == files
    if kind != "two counters with a dot":
        assert find_sequences(shuffled) == []


SEQUENCES = {
    "faces of OpenFace": ["frame_det_0{face}_{t:06d}.bmp", 2],
    "face after the frame": ["{t:05d}_{face}.jpg", 3],
    "face after a word": ["{t}_face{face}.png", 2],
    "faces as letters": ["{letter}_{t:04d}.jpg", 2],
    "aligned next to whole frames": ["{t}{suffix}.jpg", 2],
    "frames of two programs": ["frame{hyphen}{t}.jpg", 2],
    "face of another number": ["face_00{face}_{t}.jpg", 2],
    "face after a hyphen": ["{t:05d}-{face}.jpg", 2],
    "frames of sequences": ["s{face:02d}_f{t:02d}.jpg", 4],
    "faces of a second": ["s01_f{t:02d}_face{face}.jpg", 2],
    "subjects": ["S005_00{face}_{t:08d}.png", 2],
    "recordings": ["{face}_{t:04d}.jpg", 2],
    "cameras": ["cam{face}_{t:04d}.jpg", 2],
    "copies": ["{t:04d}{copy}.jpg", 2],
    "copies of another suffix": ["{t:04d}.jp{e}g", 2],
    "copies by Windows": ["frame{t}{windows}.jpg", 2],
    "images and masks": ["{t:04d}_{mask}.png", 2],
    "image and its faces": ["img{t:04d}_det_{face:02d}.bmp", 3],
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_several_sequences_in_one_folder_are_found(kind: str) -> None:
    pattern, count = SEQUENCES[kind]
    names = [
        pattern.format(
            face=face,
            letter="ABC"[face % 3],
            suffix=["", "_aligned"][face % 2],
            hyphen="-"[face:],
            copy=["", " (1)"][face % 2],
            e="e"[face:],
            windows=["", " - 副本"][face % 2],
            mask=["rgb", "mask"][face % 2],
            t=t,
        )
        for t in range(1, 101)
        for face in range(count)
    ]
    found = find_sequences(map(Path, names))
    assert {file.name for file in found} == set(names[:count])


def test_second_face_of_few_frames_is_found() -> None:
    names = [f"frame_det_00_{t:06d}.jpg" for t in range(1, 51)]
    assert len(find_sequences(map(Path, [*names, "frame_det_01_000017.jpg"]))) == 2
    # the number of a face, though no frame has both faces
    assert len(find_sequences(map(Path, [*names, "frame_det_01_000051.jpg"]))) == 2
