"""Training on descriptions with real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from dfer_dist.checkpoints.portable import read
from dfer_dist.config.schema import (
    Config,
    Supervision,
)
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import load
from dfer_dist.runs.layout import RunDir
from dfer_dist.training.descriptions import read_descriptions
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from launch.runs import open_run
from tests.helpers.data.descriptions import captioned_copy
from tests.helpers.paths import HELPERS
from tests.helpers.ranks.spawn import run_ranks
from tests.helpers.training.commands import ONE_EPOCH, SMALL, dfer

ENGINE = HELPERS / "ranks" / "tuned_engine.py"


@pytest.fixture(scope="module")
def captioned(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A copy of ``tiny_shards`` in which three of four clips have a description; read only."""
    return captioned_copy(tiny_shards, tmp_path_factory.mktemp("captioned") / "shards")


def test_one_and_two_ranks_learn_the_same_and_resume_as_one(
    tmp_path: Path,
) -> None:
    """Two ranks have half of the clips each; one clip has no description.

    With SGD, changes of the weights are proportional to the gradients.
    """
    arguments = ["--kind", "adapters", "--objective", "both", "--optimizer", "sgd", "--folder"]
    one = run_ranks(ENGINE, 1, *arguments, str(tmp_path / "one"), "--stage", "1")
    two = run_ranks(ENGINE, 2, *arguments, str(tmp_path / "two"), "--stage", "3")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert (
        one["losses"][-1] < one["losses"][0] - 0.01
        and one["changed"] == two["changed"]
        and one["frozen"] == two["frozen"] == 0
    )
    assert any(".parts.description.up" in name for name in one["changed"])
    a, b = (
        load_file(tmp_path / name / "step-00000003" / "model.safetensors")
        for name in ("one", "two")
    )
    for name in one["changed"]:
        assert (a[name] - b[name]).abs().max() <= 1e-4 * a[name].abs().max(), name
    again = run_ranks(
        ENGINE,
        1,
        *arguments,
        str(tmp_path / "again"),
        "--stage",
        "2",
        "--resume",
        str(tmp_path / "two" / "step-00000002"),
    )
    assert again["losses"] == pytest.approx(one["losses"][2:], rel=1e-4)


def test_run_without_descriptions_is_refused(
    tiny_shards: Index, captioned: Index, tmp_path: Path
) -> None:
    plain = [
        "model.context_tokens=0",
        "train.objective=descriptions",
        "tracking.enabled=false",
        "train.global_batch=8",
    ]
    for index, more, message in (
        (tiny_shards, [], "dfer describe makes it"),
        (captioned, ["data.descriptions=x"], "0 sources named x"),
    ):
        with pytest.raises(UserError, match=message):
            open_run(
                tmp_path, "r", "demo", [f"data.shards={index.root}", *plain, *more], [], None, 1
            )
    assert not any(tmp_path.iterdir())


TUNED = [
    "model.context_tokens=0",
    "model.image=adapters",
    "model.text_tower=adapters",
    "model.temporal=mean",
]


@pytest.fixture(scope="module")
def caption_run(captioned: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Fold 2, an epoch on descriptions alone."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["--fold", "2", "--name", "captioned", "--runs", str(runs)]
    arguments += [
        f"data.shards={captioned.root}",
        *SMALL,
        *ONE_EPOCH,
        *TUNED,
        "train.objective=descriptions",
    ]
    dfer("train", "demo", *arguments)
    return RunDir(runs / "captioned")


def test_fold_trained_on_descriptions_alone(
    caption_run: RunDir, captioned: Index, tmp_path: Path
) -> None:
    fold = caption_run.fold(2)
    texts = read_descriptions(
        captioned, all_clips(captioned, captioned.train_shards(2)), 2, Config()
    )
    assert str(texts) in fold.log.read_text()
    result, saved = read_json(fold.result), read(fold.checkpoints / "LATEST")
    assert (result["objective"], result["described_clips"], result["n"]) == (
        "descriptions",
        len(texts.texts),
        12,
    )
    assert (saved.state["objective"], saved.state["texts_sha256"]) == ("descriptions", texts.sha256)
    assert {
        name.split(".parts.")[1].split(".")[0] for name in saved.model if name.startswith("text")
    } == {"positive"}
    assert all(w.any() for name, w in saved.model.items() if ".up." in name), (
        "everything has learned"
    )
    info = export(fold.checkpoints / "LATEST", tmp_path / "out", [])
    assert (
        info.objective == "descriptions"
        and "learned from" in (tmp_path / "out" / "README.md").read_text()
    )
    assert load(tmp_path / "out", device="cpu").config.train.objective is Supervision.descriptions
