"""Output of FaceXFormer for each frame, as its ``inference.py`` writes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.facexformer import read_map
from dfer_dist.data.faces.parsing_maps import LABELS, decode_maps
from dfer_dist.data.faces.precomputed import load_landmarks, load_maps
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.sidecars import read_array
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import read_members

SIDE = 32  # of a frame of the demo
# Names of ours in the order of its labels.
ORDER = ["background", "skin", "right brow", "left brow", "right eye", "left eye", "nose"]
ORDER += ["upper lip", "inner mouth", "lower lip", "hair"]


def regions() -> np.ndarray:
    """A frame of its labels, uint8 [32, 32]."""
    return (np.add.outer(np.arange(SIDE) // 3, np.arange(SIDE) // 5) % 11).astype(np.uint8)


def write_frame(folder: Path, points: np.ndarray) -> None:
    """Write what inference.py does for a crop; ``points`` are pixels of the frame."""
    left, top, right, bottom = box = (3, 1, 30, 32)
    folder.mkdir(parents=True)
    np.savetxt(folder / "box.txt", [box], fmt="%d")
    shares = (points + 0.5 - (left, top)) / (right - left, bottom - top)
    # its denorm_points, of coordinates in -1..1
    crop = (((2 * shares - 1) + 1) * 224 - 1) / 2
    (folder / "landmarks.txt").write_text("".join(f"{x} {y}\n" for x, y in crop))
    image = Image.fromarray(regions()).crop(box)
    image.resize((224, 224), Image.Resampling.NEAREST).save(folder / "parsing.png")


def test_landmarks_and_maps_are_those_of_the_frames(
    shards: Index, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    for file in (source / "landmarks").iterdir():
        for t, points in enumerate(np.load(file)):
            write_frame(output / file.stem / str(t), points)
        # no face was found in the second frame
        for path in (output / file.stem / "1").iterdir():
            path.unlink()
    enrich(
        Path(str(shards.root)),
        EnrichRequest(landmarks_from=output, parsing_from=output),
        workers=1,
    )
    for key, members in read_members(shards, "landmarks").items():
        found, points = read_array(members["found.npy"]), read_array(members["landmarks.npy"])
        assert np.flatnonzero(~found).tolist() == [1]
        expected = np.load(source / "landmarks" / f"{key}.npy")
        np.testing.assert_allclose(points[2:], expected[2:], atol=1e-4)
    ours = np.array([LABELS.index(name) for name in ORDER])[regions()]
    ours[:1], ours[:, :3], ours[:, 30:] = 0, 0, 0
    for members in read_members(shards, "parsing").values():
        maps = decode_maps(members["maps.png"], read_array(members["starts.npy"]), [0, 1, 2])
        np.testing.assert_array_equal(maps, [ours, 0 * ours, ours])


def test_left_of_the_image_is_right_of_the_face(tmp_path: Path) -> None:
    write_frame(tmp_path / "0", np.zeros((68, 2)))
    labels = np.zeros((224, 224), np.uint8)
    labels[:, :112], labels[:, 112:] = 2, 3  # brows on the left and on the right of the image
    Image.fromarray(labels).save(tmp_path / "0" / "parsing.png")
    found = read_map(tmp_path / "0", (SIDE, SIDE))
    assert LABELS[found[10, 5]] == "right brow"
    assert LABELS[found[10, 28]] == "left brow"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The output for a clip of two frames."""
    for frame in ("0", "1"):
        write_frame(tmp_path / "clip" / frame, np.full((68, 2), 9.0))
    return tmp_path / "clip"


def damage(clip: Path, kind: str) -> None:
    if kind == "no box":
        (clip / "0" / "box.txt").unlink()
    elif kind == "no files":
        for frame in clip.iterdir():
            (frame / "landmarks.txt").unlink()
    elif kind == "less":
        shutil.rmtree(clip / "0")
    elif kind == "box":
        (clip / "0" / "box.txt").write_text("3 1 30 33\n")
    else:
        (clip / "0" / "landmarks.txt").write_text("1 2\n")


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("no box", "0 has no box.txt: inference.py does not write"),
        ("no files", "has no landmarks.txt in the folder of any frame"),
        ("less", "has 1 frames, clip clip has 2"),
        ("box", "is no box in the clip's frames of 32 x 32 pixels"),
        ("points", "cannot be read: .1, 2. numbers, not .68, 2."),
    ],
)
def test_landmarks_that_cannot_be_mapped_are_refused(clip: Path, kind: str, part: str) -> None:
    assert load_landmarks(clip.parent, "clip", 2, (SIDE, SIDE))[1].all()
    damage(clip, kind)
    with pytest.raises(UserError, match=part) as e:
        load_landmarks(clip.parent, "clip", 2, (SIDE, SIDE))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("size", "label"), [((224, 224), 11), ((112, 112), 0)])
def test_map_of_other_labels_or_size_is_refused(
    clip: Path, size: tuple[int, int], label: int
) -> None:
    assert len(list(load_maps(clip.parent, "clip", 2, (SIDE, SIDE)))) == 2
    # not in the folder of a frame: the other format, next to which folders do not matter
    Image.new("L", (5, 5)).save(clip / "0.png")
    assert [x.shape for x in load_maps(clip.parent, "clip", 1, (SIDE, SIDE))] == [(5, 5)]
    (clip / "0.png").unlink()
    Image.fromarray(np.full(size, label, np.uint8)).save(clip / "1" / "parsing.png")
    with pytest.raises(UserError, match="1 cannot be read: no map of labels 0 to 10"):
        list(load_maps(clip.parent, "clip", 2, (SIDE, SIDE)))
