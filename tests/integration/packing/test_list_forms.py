"""Pack 300 clips of each form of general lists and corpora, and compare with what was made."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.packing.report import REPORT, PackReport
from dfer_dist.data.shards.index import Index, read_index
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.data.sources.names import make_keys
from dfer_dist.utils.files import read_json
from tests.helpers.cli import dfer
from tests.helpers.data.list_forms import FORMS, Form, votes_and_parts, write_pool
from tests.helpers.training.commands import dfer as train
from tests.helpers.training.commands import one_epoch

COUNT = 300
FIVE = {f"fold{k}" for k in range(1, 6)}
UNREAD = {
    "crema_d": {".wav files": 1},
    "ravdess": {"songs": 1, "videos without sound": 1},
    "afew": {".avi files": 1},
    "csv_with_header": {},
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool"))


def rows_by_key(index: Index) -> dict[str, dict[str, object]]:
    """Return the rows of all sidecars, with their splits."""
    return {
        row["key"]: {**row, "split": shard.split}
        for i, shard in enumerate(index.shards)
        for row in index.sidecar(i).to_pylist()
    }


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_clips_of_each_form_pack_with_classes_splits_and_groups(
    write: Callable[[Path, Path, int], Form], pool: Path, tmp_path: Path
) -> None:
    form = write(tmp_path / "mine", pool, COUNT)
    listing = read_dataset(form.dataset, form.root, **form.options)
    settings = {"classes": listing.classes, "workers": 1, "unread": listing.unread}
    index = pack(listing.records, listing.name, tmp_path / "out", **settings)
    report = PackReport.read(tmp_path / "out" / REPORT)
    assert report.problems == [] and report.clips == COUNT
    assert report.unread == UNREAD.get(write.__name__, report.unread)
    rows = rows_by_key(index)
    keys = make_keys([clip.source for clip in form.clips])
    assert len(rows) == COUNT and set(keys) == set(rows)
    folds_of_groups = defaultdict(set)
    for key, clip in zip(keys, form.clips, strict=True):
        row = rows[key]
        assert listing.classes[row["label"]] == clip.class_name
        assert row["split"] == clip.split or (not clip.split and row["split"] in FIVE)
        assert row.get("group", "") == clip.group
        assert row.get("votes", []) == list(clip.votes)
        if any(clip.second for clip in form.clips):
            names = {clip.class_name, clip.second} - {""}
            labels = sorted(map(listing.classes.index, names))
            assert row["labels"] == labels
        if not clip.split:
            folds_of_groups[clip.group].add(row["split"])
    made_folds = any(not clip.split for clip in form.clips)
    if made_folds:
        sizes = Counter(row["split"] for row in rows.values())
        sizes.pop("ambiguous", None)
        assert set(sizes) == FIVE and max(sizes.values()) - min(sizes.values()) <= COUNT // 10
    if made_folds and form.clips[0].group:
        assert all(len(folds) == 1 for folds in folds_of_groups.values())


def test_dfer_pack_of_a_list_trains_an_epoch(pool: Path, tmp_path: Path) -> None:
    form = votes_and_parts(tmp_path / "mine", pool, 60)
    command = ["pack", "--dataset", "list", "--root", form.root, "--lists", form.root / "list.csv"]
    command += ["--folds", "3", "--out", tmp_path / "out", "--workers", "1"]
    done = dfer(*command, "--classes", "anger,fear,joy", cwd=tmp_path, COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "60 clips in 4 shards" in done.stdout and "ambiguous" in done.stdout
    index = read_index(tmp_path / "out")
    assert index.classes == ("anger", "fear", "joy") and index.folds == [1, 2, 3]
    settings = ["model.text=names", *one_epoch(index, tmp_path / "runs")]
    train("train", "demo", "--fold", "2", "--nproc", "1", "--name", "one", *settings)
    result = read_json(tmp_path / "runs" / "one" / "fold-2" / "result.json")
    count = sum(shard.clips for shard in index.shards if shard.split == "fold2")
    assert result["n"] == count and result["classes"] == ["anger", "fear", "joy"]
    train("report", str(tmp_path / "runs" / "one"))
