from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.parsing_maps import LABELS, decode_maps
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.data.shards.sidecars import read_array, sidecar_tar_path
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import pack_frames, read_members


def test_text_landmarks_and_png_maps_are_imported(
    shards: Index, source: Path, tmp_path: Path
) -> None:
    """Texts have any separator, and nan for a missing face; the images of labels are grey."""
    root, texts, maps = Path(str(shards.root)), tmp_path / "texts", tmp_path / "maps"
    texts.mkdir()
    forms = cycle([(",", "utf-8"), (" ", "utf-8-sig"), ("; ", "utf-16"), ("\t", "utf-16-le")])
    for file, (separator, encoding) in zip((source / "landmarks").iterdir(), forms, strict=False):
        points = np.load(file)
        points[1] = np.nan
        lines = [separator.join(f"{x:.3f}" for x in row.ravel()) for row in points]
        (texts / f"{file.stem}.txt").write_text("\r\n".join(lines) + "\n", encoding)
        (maps / file.stem).mkdir(parents=True)
        for t in range(len(points)):
            labels = np.full((4, 4), t % len(LABELS), np.uint8)
            Image.fromarray(labels).save(maps / file.stem / f"{t}.png")
    added = enrich(root, EnrichRequest(landmarks_from=texts, parsing_from=maps), workers=1)
    assert sum(a.made["without_face"] for a in added if a.kind == "landmarks") == 35
    for key, members in read_members(shards, "landmarks").items():
        found, points = read_array(members["found.npy"]), read_array(members["landmarks.npy"])
        assert np.flatnonzero(~found).tolist() == [1] and np.isnan(points[1]).all()
        expected = np.load(source / "landmarks" / f"{key}.npy")
        np.testing.assert_allclose(points[2:], expected[2:], atol=1e-3)
    key, own = next(iter(read_members(shards, "parsing").items()))
    labels = decode_maps(own["maps.png"], read_array(own["starts.npy"]), [3, 11])
    assert labels[:, 0, 0].tolist() == [3, 11], key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:-1], "has {less} frames, clip {key} has {frames}"),
        (lambda p: p[:, :67], "68 points .x, y. are needed"),
        (lambda p: p + 500, "outside of the clip's frames of 32 x 32 pixels"),
        (lambda p: None, "has neither {key}.npy nor {key}.txt"),
        (lambda p: np.array([{}], dtype=object), "cannot be read: .*allow_pickle"),
    ],
)
def test_landmarks_that_do_not_fit_are_rejected(
    change: Callable[[np.ndarray], np.ndarray | None],
    message: str,
    shards: Index,
    source: Path,
    tmp_path: Path,
) -> None:
    given = shutil.copytree(source / "landmarks", tmp_path / "given")
    key = ClipReader(shards).key(3, 1)
    points = np.load(given / f"{key}.npy")
    (given / f"{key}.npy").unlink()
    changed = change(points)
    if changed is not None:
        np.save(given / f"{key}.npy", changed)
    expected = message.format(key=key, less=len(points) - 1, frames=len(points))
    with pytest.raises(UserError, match=expected):
        enrich(Path(str(shards.root)), EnrichRequest(landmarks_from=given), workers=1)
    assert not sidecar_tar_path(shards.path(3), "landmarks").exists()


def test_texts_and_maps_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    index = pack_frames([np.zeros((16, 24, 3), np.uint8)] * 2, tmp_path)
    root, given = Path(str(index.root)), tmp_path / "given"
    given.mkdir()
    (given / "portrait.txt").write_text("1 2 3\n")
    message = r"portrait\.txt cannot be read: line 1 has 3 numbers, not 136"
    with pytest.raises(UserError, match=message):
        enrich(root, EnrichRequest(landmarks_from=given), workers=1)
    with pytest.raises(UserError, match="has no folder portrait"):
        enrich(root, EnrichRequest(parsing_from=given), workers=1)
    (given / "portrait").mkdir()
    Image.fromarray(np.full((4, 4), 19, np.uint8)).save(given / "portrait" / "0.png")
    with pytest.raises(UserError, match="has 1 maps, clip portrait has 2 frames"):
        enrich(root, EnrichRequest(parsing_from=given), workers=1)
    for pixels, message in (
        (np.zeros((4, 4), np.uint8), "up to 19"),
        (np.zeros((4, 4, 3), np.uint8), "no map of labels"),
    ):
        Image.fromarray(pixels).save(given / "portrait" / "1.png")
        with pytest.raises(UserError, match=message):
            enrich(root, EnrichRequest(parsing_from=given), workers=1)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(given / "portrait" / "0.png")
    with pytest.raises(UserError, match="drawn from landmarks: give --landmarks too"):
        enrich(root, EnrichRequest(parsing=True), workers=1)
    with pytest.raises(UserError, match="nothing to add"):
        enrich(root, EnrichRequest(), workers=1)
