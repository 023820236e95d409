"""Clustering of people, on made descriptors and on drawn faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from dfer_dist.data.folds.faces import (
    Faces,
    People,
    _jpeg,
    cluster_faces,
    describe_faces,
    draw_people,
)
from dfer_dist.data.shards.index import Index
from dfer_dist.utils.errors import UserError


def made_faces(people: int, clips: int, spread: float, seed: int = 0) -> tuple[Faces, np.ndarray]:
    """Clips of people whose centers are 0.85 apart; ``spread`` is a clip's distance to its own."""
    rng = np.random.default_rng(seed)
    truth = np.sort(rng.integers(people, size=clips))
    centers, noise = rng.normal(size=(people, 128)), rng.normal(size=(clips, 128))
    centers *= 0.6 / np.linalg.norm(centers, axis=1, keepdims=True)
    noise *= spread / np.linalg.norm(noise, axis=1, keepdims=True)
    keys = [f"{i:05d}" for i in range(clips)]
    picture = _jpeg(np.full((8, 8, 3), 128, np.uint8))
    descriptors = (centers[truth] + noise).astype(np.float32)
    return Faces(keys, descriptors, [picture] * clips), truth


def agreement(people: People, truth: np.ndarray) -> float:
    return float(adjusted_rand_score(truth, list(people.group_of.values())))


@pytest.mark.parametrize(("spread", "lowest"), [(0.1, 1.0), (0.25, 1.0), (0.33, 0.95)])
def test_clusters_are_the_people(spread: float, lowest: float) -> None:
    faces, truth = made_faces(40, 600, spread)
    people = cluster_faces(faces)
    assert agreement(people, truth) >= lowest
    sure = np.array(list(people.confidence.values()))
    assert sure.min() > 0 and sure.mean() == pytest.approx(1 - spread * 2**0.5 / 0.95, abs=0.12)
    groups = list(people.group_of.values())
    counts = np.bincount(truth)
    assert groups.count("face-0001") == counts.max()


def test_a_smaller_distance_splits_and_a_larger_one_joins() -> None:
    faces, truth = made_faces(10, 100, 0.3)
    split, joined = cluster_faces(faces, 0.2), cluster_faces(faces, 2.0)
    assert len(set(split.group_of.values())) > 10 > len(set(joined.group_of.values())) == 1
    assert set(joined.confidence.values()) == {0.0}
    assert agreement(split, truth) < agreement(cluster_faces(faces), truth) == 1.0


def test_clips_without_a_face_are_groups_of_their_own() -> None:
    faces, _ = made_faces(3, 12, 0.1)
    faces.descriptors[4:6] = np.nan
    people = cluster_faces(faces)
    assert people.group_of["00004"] == "no-face-00004" != people.group_of["00005"]
    assert people.confidence.keys() == set(faces.keys) - {"00004", "00005"}
    faces.descriptors[1:] = np.nan
    with pytest.raises(UserError, match="1 of 12 clips have a face: too few"):
        cluster_faces(faces)


def test_sheet_shows_the_clusters(tmp_path: Path) -> None:
    faces, truth = made_faces(4, 30, 0.1)
    shown = draw_people(faces, cluster_faces(faces), tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert (shown, sheet.size) == (4, (190 + 12 * 64, 4 * 64))
    count = min(int(np.bincount(truth).max()), 12)
    assert sheet.getpixel((190 + 64 * count - 32, 32)) == (128, 128, 128)


def test_descriptors_are_stored_for_the_same_set(
    tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Models:
        def describe_largest(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
            calls.append(frame)
            if len(calls) <= 5:
                return None
            return np.full(128, float(len(calls))), frame

    monkeypatch.setattr("dfer_dist.data.faces.tracking.load_models", Models)
    faces = describe_faces(tiny_shards, tmp_path / "faces.npz", workers=1)
    assert len(calls) == 300 and faces.found.tolist() == [False] + [True] * 59
    assert faces.descriptors[1, 0] == np.mean([6, 7, 8, 9, 10])
    assert faces.pictures[0] == b"" and faces.pictures[1].startswith(b"\xff\xd8")
    again = describe_faces(tiny_shards, tmp_path / "faces.npz", workers=1)
    assert len(calls) == 300 and again.keys == faces.keys and again.pictures == faces.pictures
    assert np.array_equal(again.descriptors, faces.descriptors, equal_nan=True)
