from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.parsing_maps import RIGHT_EYE, decode_maps
from dfer_dist.data.shards import frame_buffer
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import read_array, sidecar_tar_path
from dfer_dist.data.verify import verify
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import pack_frames, read_members, sidecar_bytes
from tests.helpers.data.videos import Pose, draw


def test_dlib_landmarks_and_maps_span_frames_without_a_face(tmp_path: Path) -> None:
    """A portrait moves, and is absent in the middle: maps are interpolated there."""
    poses = [[] if t in (3, 4) else [Pose(150 + 10 * t, 100, 1.2, 8)] for t in range(8)]
    index = pack_frames(list(draw(poses, 320, 240)), tmp_path)
    landmarks, maps = enrich(
        Path(str(index.root)), EnrichRequest(landmarks=True, parsing=True), workers=1
    )
    assert landmarks.made["by"] == "dlib"
    assert (landmarks.made["without_face"], maps.made["without_face"]) == (2, 0)
    members = read_members(index, "landmarks")["portrait"]
    points, found = read_array(members["landmarks.npy"]), read_array(members["found.npy"])
    assert found.tolist() == [bool(p) for p in poses] and np.isnan(points[~found]).all()
    for t in np.flatnonzero(found):
        assert points[t, 36:48].mean(0) == pytest.approx([150 + 10 * t, 100], abs=4)
    own = read_members(index, "parsing")["portrait"]
    labels = decode_maps(own["maps.png"], read_array(own["starts.npy"]), range(8))
    assert labels.shape == (8, 240, 320)
    x = [np.argwhere(m == RIGHT_EYE)[:, 1].mean() for m in labels]
    assert np.diff(x) == pytest.approx([10] * 7, abs=4), "between two faces the map moves steadily"


def test_changed_landmarks_redraw_maps_but_are_not_overwritten(
    shards: Index, source: Path, tmp_path: Path
) -> None:
    root, given = Path(str(shards.root)), shutil.copytree(source / "landmarks", tmp_path / "given")
    enrich(root, EnrichRequest(parsing=True, landmarks_from=given), workers=1)
    before = sidecar_bytes(root)
    key = ClipReader(shards).key(2, 0)
    np.save(given / f"{key}.npy", np.load(given / f"{key}.npy") + 1)
    with pytest.raises(UserError, match=r"landmarks\.tar exists, made in another way \(import\)"):
        enrich(root, EnrichRequest(landmarks_from=given), workers=1)
    sidecar_tar_path(shards.path(2), "landmarks").unlink()
    enrich(root, EnrichRequest(landmarks_from=given), workers=1)
    added = enrich(root, EnrichRequest(parsing=True), workers=1)
    assert [a.kept for a in added] == [i != 2 for i in range(len(shards.shards))]
    changed = {name for name, data in sidecar_bytes(root).items() if before[name] != data}
    stem = shards.path(2).stem
    assert changed == {
        f"{stem}.{kind}.{end}" for kind in ("landmarks", "parsing") for end in ("tar", "json")
    }


def test_damaged_sidecars_and_shards_are_detected(shards: Index, source: Path) -> None:
    root = Path(str(shards.root))
    enrich(root, EnrichRequest(parsing=True, landmarks_from=source / "landmarks"), workers=1)
    tar = sidecar_tar_path(shards.path(1), "parsing")
    data = bytearray(tar.read_bytes())
    data[900] ^= 4
    tar.write_bytes(data)
    (damage,) = verify(str(root))[1]
    assert damage.file == tar.name and "differs from its hash" in damage.reason
    for name in list(sidecar_bytes(root)):
        (root / name).unlink()
    frames = bytearray(shards.path(1).read_bytes())
    frames[5000] ^= 4
    shards.path(1).write_bytes(frames)
    with pytest.raises(UserError, match=r"has another CRC32.*: copy the shard again"):
        enrich(root, EnrichRequest(landmarks_from=source / "landmarks"), workers=1)


def test_maps_of_a_long_clip_are_added_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its JPEGs, its maps and the PNGs of these are each larger than the bound."""
    limit = 1 << 18  # bytes of a clip in memory
    monkeypatch.setattr(frame_buffer, "_MAX_IN_MEMORY", limit)
    rng = np.random.default_rng(0)
    index = pack_frames(
        (rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(60)), tmp_path
    )
    root, maps = Path(str(index.root)), tmp_path / "maps"
    (maps / "portrait").mkdir(parents=True)
    labels = rng.integers(0, 19, (60, 240, 320), np.uint8)
    for t, own in enumerate(labels):
        Image.fromarray(own).save(maps / "portrait" / f"{t}.png")
    np.save(tmp_path / "portrait.npy", rng.uniform(0, 240, (60, 68, 2)).astype(np.float32))
    # imports what it needs
    enrich(root, EnrichRequest(landmarks_from=tmp_path, parsing=True), workers=1)
    for name in sidecar_bytes(root):
        (root / name).unlink()

    for request in (
        EnrichRequest(landmarks_from=tmp_path, parsing=True),
        EnrichRequest(parsing_from=maps),
    ):
        tracemalloc.start()
        enrich(root, request, workers=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * limit, request
        added = read_members(index, "parsing")["portrait"]
        sidecar_tar_path(index.path(0), "parsing").unlink()
    larger = (index.shards[0].bytes, labels.nbytes, len(added["maps.png"]))
    assert min(larger) > 8 * limit, "the test needs a clip that is larger than the bound"
    imported = decode_maps(added["maps.png"], read_array(added["starts.npy"]), range(60))
    np.testing.assert_array_equal(imported, labels)
    assert not list(root.glob(".*"))
