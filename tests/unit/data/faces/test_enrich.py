"""Landmarks and parsing maps beside packed shards: detected, drawn, parsed by a network, imported; resumed and checked."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.parsing_maps import (
    LABELS,
    LEFT_BROW,
    LEFT_EYE,
    LOWER_LIP,
    PALETTE,
    RIGHT_BROW,
    RIGHT_EYE,
    SKIN,
    UPPER_LIP,
    colours,
    decode_maps,
    draw_dots,
    draw_regions,
    fill_missing,
)
from dfer_dist.data.faces.tracking import track_face
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import read_array, read_sidecar_tar, sidecar_tar_path
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.sources.records import ClipRecord
from dfer_dist.data.verify import verify
from dfer_dist.demo.dataset import render_demo
from dfer_dist.demo.faces import render_clip
from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.errors import UserError
from launch.commands.enrich import enrich as command
from tests.helpers.paths import ROOT
from tests.helpers.videos import Pose, draw


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set of 35 clips; read only."""
    return render_demo(tmp_path_factory.mktemp("source"), clips=35, size=32, workers=1)


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Index:
    """It packed, ten shards."""
    listing = read_dataset("demo", source / "frames", source / "lists")
    return pack(listing.records, "demo", tmp_path / "shards", 4, workers=1)


def arrays(index: Index, kind: str) -> dict[str, dict[str, bytes]]:
    return {
        key: members
        for i in range(len(index.shards))
        for key, members in read_sidecar_tar(index.path(i), kind)
    }


def extras(root: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(root.iterdir()) if f.name.count(".") > 1}


def test_regions_lie_on_what_was_drawn() -> None:
    """Lips are redder than skin, and brows darker: so the geometry of the landmarks is that of the picture."""
    for label in range(7):
        clip = render_clip(label, 7 * label + 1, (3, label), 64)
        maps = np.stack([draw_regions(points, 64, 64) for points in clip.landmarks])
        frames = clip.frames.astype(float)
        red = frames[..., 0] / frames.sum(-1).clip(1)
        skin = maps == SKIN
        assert red[np.isin(maps, (UPPER_LIP, LOWER_LIP))].mean() > red[skin].mean() + 0.015, label
        assert frames[np.isin(maps, (LEFT_BROW, RIGHT_BROW))].mean() < 0.95 * frames[skin].mean(), (
            label
        )
        assert 0.1 < skin.mean() < 0.6
        eyes = [np.argwhere(maps == side)[:, 2].mean() for side in (RIGHT_EYE, LEFT_EYE)]
        assert eyes[0] + 8 < eyes[1], "the person's right eye is at the left of the picture"


def test_dlib_finds_the_same_landmarks_on_a_drawn_face() -> None:
    """It knows photographs alone, but some drawn faces pass for faces: each of the 68 points is the same part there."""
    for label in (0, 3):
        clip = render_clip(label, 9 * label + 2, (3, label), 64)
        track = track_face(list(clip.frames[::6]))
        assert track.found.all()
        apart = np.linalg.norm(track.points - clip.landmarks[::6], axis=-1).mean(0)
        assert apart.mean() < 3 and apart.max() < 7, "pixels of a frame of 64"


def test_drawn_landmarks_follow_the_action_units() -> None:
    happy, alarmed = render_clip(0, 3, 5, 64), render_clip(4, 3, 5, 64)
    for clip, sign in ((happy, 1), (alarmed, -1)):
        rest, apex = clip.landmarks[clip.course.argmin()], clip.landmarks[clip.course.argmax()]
        width = [np.hypot(*(p[54] - p[48])) / np.hypot(*(p[45] - p[36])) for p in (rest, apex)]
        assert (width[1] - width[0]) * sign > 0.05, (
            "a smile widens the mouth, a dropped jaw narrows it"
        )
    opening = [np.hypot(*(p[66] - p[62])) for p in alarmed.landmarks]
    assert np.argmax(opening) == pytest.approx(alarmed.course.argmax(), abs=2)


def test_imported_landmarks_and_the_maps_drawn_from_them(
    shards: Index, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(str(shards.root))
    before = {f.name: f.read_bytes() for f in root.iterdir()}
    command(root, landmarks_from=source / "landmarks", parsing=True, workers=2)
    out = capsys.readouterr().out
    assert (
        f"landmarks: 35 clips in {len(shards.shards)} shards (import); 0 of" in out
        and "(regions)" in out
    )
    marks, maps = arrays(shards, "landmarks"), arrays(shards, "parsing")
    assert len(marks) == len(maps) == 35
    for key, members in marks.items():
        points = read_array(members["landmarks.npy"])
        np.testing.assert_array_equal(points, np.load(source / "landmarks" / f"{key}.npy"))
        assert points.dtype == np.float32 and read_array(members["found.npy"]).all()
        starts = read_array(maps[key]["starts.npy"])
        assert len(starts) == len(points) + 1
        some = [0, len(points) - 1, 0]
        labels = decode_maps(maps[key]["maps.png"], starts, some)
        np.testing.assert_array_equal(labels, [draw_regions(points[t], 32, 32) for t in some])
    with Image.open(io.BytesIO(maps[key]["maps.png"])) as picture:  # any viewer shows it in colours
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), PALETTE[labels[0]])
    assert all((root / name).read_bytes() == data for name, data in before.items()), (
        "shards are never written again"
    )
    assert verify(str(root))[1] == [] and len(read_index(root).shards) == len(shards.shards)
    first = extras(root)
    command(root, landmarks_from=source / "landmarks", parsing=True, workers=1)
    assert (
        f"import, {len(shards.shards)} were there" in capsys.readouterr().out
        and extras(root) == first
    )
    for name in first:
        (root / name).unlink()
    enrich(root, EnrichRequest(parsing=True, landmarks_from=source / "landmarks"), workers=1)
    assert extras(root) == first, "the same bytes with one worker as with two"


def test_a_killed_run_goes_on(shards: Index, source: Path, tmp_path: Path) -> None:
    root, whole = Path(str(shards.root)), tmp_path / "whole"
    shutil.copytree(root, whole)
    wish = f"EnrichRequest(parsing=True, landmarks_from=Path({str(source / 'landmarks')!r}))"
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom dfer_dist.data.faces.enrich import EnrichRequest, enrich\n"
        "def die(done, total):\n    if done == 37:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"enrich(Path({str(root)!r}), {wish}, 1, die)\n"
    )
    done = subprocess.run([*python_command(), "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -9 and any(f.name.startswith(".") for f in root.iterdir()), (
        "it died within a file"
    )
    finished = {
        f: f.stat().st_ino
        for f in root.iterdir()
        if f.name.endswith((".landmarks.json", ".parsing.json"))
    }
    assert 8 <= len(finished) < 2 * len(shards.shards)
    for place in (root, whole):
        enrich(place, EnrichRequest(parsing=True, landmarks_from=source / "landmarks"), workers=1)
    assert extras(root) == extras(whole)
    assert {f: f.stat().st_ino for f in finished} == finished, "what was finished is not made again"


def pack_frames(frames: list[np.ndarray], tmp_path: Path) -> Index:
    """One clip of these frames, in a set of its own."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(frames):
        (folder / f"{t}.jpg").write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 95))
    return pack(
        [ClipRecord("portrait", 0, "fold1", "portrait", folder)],
        "dfew",
        tmp_path / "shards",
        workers=1,
    )


def test_a_photograph_by_dlib_and_frames_without_a_face(tmp_path: Path) -> None:
    """A portrait that moves, out of sight in the middle: its landmarks are where the eyes are, and its maps go on between."""
    poses = [[] if t in (3, 4) else [Pose(150 + 10 * t, 100, 1.2, 8)] for t in range(8)]
    index = pack_frames(list(draw(poses, 320, 240)), tmp_path)
    landmarks, maps = enrich(
        Path(str(index.root)), EnrichRequest(landmarks=True, parsing=True), workers=1
    )
    assert landmarks.made["by"] == "dlib" and (
        landmarks.made["without_face"],
        maps.made["without_face"],
    ) == (2, 0)
    members = arrays(index, "landmarks")["portrait"]
    points, found = read_array(members["landmarks.npy"]), read_array(members["found.npy"])
    assert found.tolist() == [bool(p) for p in poses] and np.isnan(points[~found]).all()
    for t in np.flatnonzero(found):
        assert points[t, 36:48].mean(0) == pytest.approx([150 + 10 * t, 100], abs=4)
    own = arrays(index, "parsing")["portrait"]
    labels = decode_maps(own["maps.png"], read_array(own["starts.npy"]), range(8))
    assert labels.shape == (8, 240, 320)
    x = [np.argwhere(m == RIGHT_EYE)[:, 1].mean() for m in labels]
    assert np.diff(x) == pytest.approx([10] * 7, abs=4), "between two faces the map moves on"


def test_missing_faces_are_filled_in() -> None:
    points = np.full((6, 68, 2), np.nan, np.float32)
    points[1], points[4] = 10, 16
    found = np.array([False, True, False, False, True, False])
    assert fill_missing(points, found)[:, 3, 1].tolist() == [10, 10, 12, 14, 16, 16]
    assert np.isnan(fill_missing(points, np.zeros(6, bool))).all()
    assert not draw_regions(points[0], 8, 8).any() and not draw_dots(points[:1], 8).any()


def test_a_mirrored_face_has_its_left_at_the_other_side() -> None:
    points = (render_clip(0, 5, 2, 64).landmarks[0] + 0.5) * 4 - 0.5
    labels = draw_regions(points, 256, 256)
    eyes = [*range(45, 41, -1), 47, 46, *range(39, 35, -1), 41, 40]
    swap = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), *eyes]
    swap += [*range(54, 47, -1), *range(59, 54, -1), 64, 63, 62, 61, 60, 67, 66, 65]
    mirrored = points[swap] * [-1, 1] + [255, 0]
    again = draw_regions(mirrored, 256, 256)
    seen = colours(labels, mirrored=True)[:, ::-1]
    assert (seen == colours(again)).all(-1).mean() > 0.985, "the same but for edges of polygons"
    plain = colours(labels)[:, ::-1]
    changed = (seen != plain).any(-1)
    assert (
        np.isin(labels[:, ::-1][changed], (LEFT_BROW, RIGHT_BROW, LEFT_EYE, RIGHT_EYE)).all()
        and changed.sum() > 20
    )


def test_dots_by_hand() -> None:
    points = np.array([[[2.2, 4.0], [0.0, 0.0], [np.nan, 1.0], [30.0, 3.0]]])
    (dots,) = draw_dots(points, 8)
    assert sorted(map(tuple, np.argwhere(dots[..., 0]).tolist())) == [
        (0, 0),
        (0, 1),
        (1, 0),
        *[(3, 2), (4, 1), (4, 2), (4, 3), (5, 2)],
    ]
    assert (
        set(np.unique(dots)) == {0, 255}
        and draw_dots(np.full((1, 1, 2), 50.0), 224).any(-1).sum() == 13
    )


class ByBrightness(torch.nn.Module):
    """Skin where a frame is bright, at half its size."""

    def __init__(self, scores: bool) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x.mean(1)[:, ::2, ::2] > 0.5).long()
        if self.scores:
            return torch.nn.functional.one_hot(bright, 19).permute(0, 3, 1, 2).float()
        return bright


class Wrong(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0].long() + 19


class TooFew(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0]


def scripted(module: torch.nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), str(file))
    return file


@pytest.mark.parametrize("scores", [True, False])
def test_maps_by_a_network(scores: bool, tmp_path: Path) -> None:
    frames = [np.zeros((16, 24, 3), np.uint8) for _ in range(11)]
    for t, frame in enumerate(frames):
        frame[:, : 2 * t] = 255
    index, parser = (
        pack_frames(frames, tmp_path),
        scripted(ByBrightness(scores), tmp_path / "parser.pt"),
    )
    root = Path(str(index.root))
    (added,) = enrich(root, EnrichRequest(parser=parser), workers=1)
    assert added.made["by"] == "parser" and (added.made["frames"], added.made["without_face"]) == (
        11,
        1,
    )
    own = arrays(index, "parsing")["portrait"]
    labels = decode_maps(own["maps.png"], read_array(own["starts.npy"]), range(11))
    for t in range(11):
        assert (labels[t, :, : 2 * t] == SKIN).all() and not labels[t, :, 2 * t :].any()
    scripted(ByBrightness(not scores), parser)
    with pytest.raises(
        UserError, match=r"is there, made otherwise \(parser\): remove \*\.parsing\.tar"
    ):
        enrich(root, EnrichRequest(parser=parser), workers=1)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Wrong(), "gives label 19: labels are 0 to 18"),
        (TooFew(), r"gives torch.float32 \[3, 16, 24\]"),
        (None, "no TorchScript"),
    ],
)
def test_networks_that_are_none_are_refused(
    module: torch.nn.Module | None, words: str, tmp_path: Path
) -> None:
    index, parser = (
        pack_frames([np.zeros((16, 24, 3), np.uint8)] * 2, tmp_path),
        tmp_path / "parser.pt",
    )
    if module is None:
        parser.write_bytes(b"no zip")
    else:
        scripted(module, parser)
    with pytest.raises(UserError, match=words):
        enrich(Path(str(index.root)), EnrichRequest(parser=parser), workers=1)
    assert not sidecar_tar_path(index.path(0), "parsing").exists()


def test_imports_of_text_and_of_maps(shards: Index, source: Path, tmp_path: Path) -> None:
    """Text with commas, an unknown face as nan; grey pictures of labels in the order of their numbers."""
    root, texts, maps = Path(str(shards.root)), tmp_path / "texts", tmp_path / "maps"
    texts.mkdir()
    for file in (source / "landmarks").iterdir():
        points = np.load(file)
        points[1] = np.nan
        lines = [",".join(f"{x:.3f}" for x in row.ravel()) for row in points]
        (texts / f"{file.stem}.txt").write_text("\n".join(lines) + "\n")
        (maps / file.stem).mkdir(parents=True)
        for t in range(len(points)):
            Image.fromarray(np.full((4, 4), t % len(LABELS), np.uint8)).save(
                maps / file.stem / f"{t}.png"
            )
    added = enrich(root, EnrichRequest(landmarks_from=texts, parsing_from=maps), workers=1)
    assert sum(a.made["without_face"] for a in added if a.kind == "landmarks") == 35
    for key, members in arrays(shards, "landmarks").items():
        found, points = read_array(members["found.npy"]), read_array(members["landmarks.npy"])
        assert np.flatnonzero(~found).tolist() == [1] and np.isnan(points[1]).all()
        np.testing.assert_allclose(
            points[2:], np.load(source / "landmarks" / f"{key}.npy")[2:], atol=1e-3
        )
    key, own = next(iter(arrays(shards, "parsing").items()))
    assert decode_maps(own["maps.png"], read_array(own["starts.npy"]), [3, 11])[
        :, 0, 0
    ].tolist() == [3, 11], key


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p[:-1], "has landmarks of {less} frames, clip {key} has {frames}"),
        (lambda p: p[:, :67], "68 points .x, y. are wanted"),
        (lambda p: p + 500, "outside of the clip's frames of 32 x 32 pixels"),
        (lambda p: None, "has neither {key}.npy nor {key}.txt"),
        (lambda p: np.array([{}], dtype=object), "cannot be read: .*allow_pickle"),
    ],
)
def test_landmarks_that_do_not_fit_are_refused(
    spoil: Callable[[np.ndarray], np.ndarray | None],
    words: str,
    shards: Index,
    source: Path,
    tmp_path: Path,
) -> None:
    given = shutil.copytree(source / "landmarks", tmp_path / "given")
    key = ClipReader(shards).key(3, 1)
    points = np.load(given / f"{key}.npy")
    (given / f"{key}.npy").unlink()
    spoilt = spoil(points)
    if spoilt is not None:
        np.save(given / f"{key}.npy", spoilt)
    with pytest.raises(
        UserError, match=words.format(key=key, less=len(points) - 1, frames=len(points))
    ):
        enrich(Path(str(shards.root)), EnrichRequest(landmarks_from=given), workers=1)
    assert not sidecar_tar_path(shards.path(3), "landmarks").exists()


def test_texts_and_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = pack_frames([np.zeros((16, 24, 3), np.uint8)] * 2, tmp_path)
    root, given = Path(str(index.root)), tmp_path / "given"
    given.mkdir()
    (given / "portrait.txt").write_text("1 2 3\n")
    with pytest.raises(
        UserError, match=r"portrait\.txt cannot be read: line 1 has 3 numbers, not 136"
    ):
        enrich(root, EnrichRequest(landmarks_from=given), workers=1)
    with pytest.raises(UserError, match="has no folder portrait"):
        enrich(root, EnrichRequest(parsing_from=given), workers=1)
    (given / "portrait").mkdir()
    Image.fromarray(np.full((4, 4), 19, np.uint8)).save(given / "portrait" / "0.png")
    with pytest.raises(UserError, match="has 1 maps, clip portrait has 2 frames"):
        enrich(root, EnrichRequest(parsing_from=given), workers=1)
    for pixels, words in (
        (np.zeros((4, 4), np.uint8), "up to 19"),
        (np.zeros((4, 4, 3), np.uint8), "no map of labels"),
    ):
        Image.fromarray(pixels).save(given / "portrait" / "1.png")
        with pytest.raises(UserError, match=words):
            enrich(root, EnrichRequest(parsing_from=given), workers=1)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(given / "portrait" / "0.png")
    with pytest.raises(UserError, match="drawn from landmarks: give --landmarks too"):
        enrich(root, EnrichRequest(parsing=True), workers=1)
    with pytest.raises(UserError, match="nothing to add"):
        enrich(root, EnrichRequest(), workers=1)


def test_maps_of_other_landmarks_are_drawn_again_and_other_landmarks_are_refused(
    shards: Index, source: Path, tmp_path: Path
) -> None:
    root, given = Path(str(shards.root)), shutil.copytree(source / "landmarks", tmp_path / "given")
    enrich(root, EnrichRequest(parsing=True, landmarks_from=given), workers=1)
    before = extras(root)
    key = ClipReader(shards).key(2, 0)
    np.save(given / f"{key}.npy", np.load(given / f"{key}.npy") + 1)
    with pytest.raises(UserError, match=r"landmarks\.tar is there, made otherwise \(import\)"):
        enrich(root, EnrichRequest(landmarks_from=given), workers=1)
    sidecar_tar_path(shards.path(2), "landmarks").unlink()
    enrich(root, EnrichRequest(landmarks_from=given), workers=1)
    added = enrich(root, EnrichRequest(parsing=True), workers=1)
    assert [a.kept for a in added] == [i != 2 for i in range(len(shards.shards))]
    changed = {name for name, data in extras(root).items() if before[name] != data}
    stem = shards.path(2).stem
    assert changed == {
        f"{stem}.{kind}.{end}" for kind in ("landmarks", "parsing") for end in ("tar", "json")
    }


def test_damage_is_found(shards: Index, source: Path) -> None:
    root = Path(str(shards.root))
    enrich(root, EnrichRequest(parsing=True, landmarks_from=source / "landmarks"), workers=1)
    tar = sidecar_tar_path(shards.path(1), "parsing")
    data = bytearray(tar.read_bytes())
    data[900] ^= 4
    tar.write_bytes(data)
    (damage,) = verify(str(root))[1]
    assert damage.file == tar.name and "differs from its hash" in damage.reason
    for name in list(extras(root)):
        (root / name).unlink()
    frames = bytearray(shards.path(1).read_bytes())
    frames[5000] ^= 4
    shards.path(1).write_bytes(frames)
    with pytest.raises(UserError, match=r"has another CRC32.*: copy the shard again"):
        enrich(root, EnrichRequest(landmarks_from=source / "landmarks"), workers=1)
