"""Checkpoint folders, without an engine."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.schema import Config
from dfer_dist.utils.errors import UserError


def corrupt(file: Path, harm: str) -> None:
    """Harm a file: remove, cut or change it."""
    if harm == "gone":
        file.unlink()
        return
    data = bytearray(file.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if harm == "cut" else data)


@pytest.fixture
def written(tmp_path):
    model = nn.Linear(3, 2)
    config = Config()
    config.data.shards = "none"
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in (10, 20, 30, 40):
        target = tmp_path / f"step-{step:08d}"
        state = {
            "step": step,
            "frozen_sha256": checkpoint.frozen_checksum(model, dict(model.named_parameters())),
        }
        checkpoint.write(target, weights, {}, config, state)
    checkpoint.set_pointer(tmp_path, "LATEST", tmp_path / "step-00000040")
    checkpoint.set_pointer(tmp_path, "BEST", tmp_path / "step-00000010")
    return tmp_path, model


def test_latest_is_read_by_folder_and_by_name(written):
    folder, _ = written
    assert (
        checkpoint.read(folder).state["step"]
        == checkpoint.read(folder / "LATEST").state["step"]
        == 40
    )
    assert checkpoint.read(folder / "BEST").state["step"] == 10


def test_reading_for_the_weights_only_gives_their_average(written, tmp_path):
    model, path = written[1], tmp_path / "step-00000050"
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    average = {n: w + 1 for n, w in weights.items()}
    config = checkpoint.read(written[0]).config
    checkpoint.write(path, weights, {}, config, {"step": 50}, ema=average)
    tested, whole = checkpoint.read(path, weights_only=True), checkpoint.read(path)
    for name, weight in weights.items():
        assert torch.equal(tested.model[name], weight + 1)
        assert torch.equal(whole.model[name], weight)
        assert torch.equal(whole.ema[name], weight + 1)
    corrupt(path / "ema.safetensors", "flipped")
    for weights_only in (True, False):
        with pytest.raises(UserError, match=r"ema\.safetensors is not what was written"):
            checkpoint.read(path, weights_only)


def test_pruning_keeps_the_last_ones_and_pointer_targets(written):
    folder, _ = written
    checkpoint.prune(folder, 1)
    assert sorted(d.name for d in folder.glob("step-*")) == ["step-00000010", "step-00000040"]


def test_folder_without_complete_mark_is_ignored(written):
    folder, _ = written
    (folder / "step-00000040" / checkpoint.COMPLETE).unlink()
    assert checkpoint.read_pointer(folder, "LATEST") is None
    assert "step-00000040" not in [d.name for d in checkpoint.complete(folder)]
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint.read(folder / "step-00000040")


@pytest.mark.parametrize(
    "name", [checkpoint.COMPLETE, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.CONFIG]
)
@pytest.mark.parametrize("harm", ["gone", "cut", "flipped"])
def test_damaged_latest_falls_back_to_the_one_before(written, caplog, name, harm):
    folder, _ = written
    caplog.set_level(logging.INFO, "dfer_dist")
    assert checkpoint.newest(folder).name == "step-00000040"
    corrupt(folder / "step-00000040" / name, harm)
    assert checkpoint.newest(folder).name == "step-00000030"
    said = caplog.text
    caplog.clear()
    assert (
        "step-00000040 is damaged (" in said
        and (name in said or name == checkpoint.COMPLETE)
        and "resuming from step-00000030" in said
    )
    assert (folder / "damaged-step-00000040").is_dir()
    assert checkpoint.newest(folder).name == "step-00000030" and not caplog.text


def test_only_damaged_checkpoints_refuse_a_fresh_start(written):
    folder, _ = written
    for left in folder.glob("step-*/COMPLETE"):
        left.unlink()
    with pytest.raises(UserError, match="train from the start"):
        checkpoint.newest(folder)
    with pytest.raises(UserError, match="train from the start"):
        checkpoint.newest(folder)
    assert checkpoint.newest(folder / "nothing") is None


@pytest.mark.parametrize("moment", range(3))
def test_kill_while_replacing_a_step_leaves_one_of_the_two(written, monkeypatch, moment):
    """As after a test that was cut short: the same step is saved once more."""
    folder, model = written
    for other in checkpoint.complete(folder)[:-1]:
        other.rename(folder / f"gone-{other.name}")
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = checkpoint.read(folder).config
    real, done = type(folder).rename, []

    def killed(self, target):
        if self.name.endswith("step-00000040") or "-00000040-" in self.name:
            if len(done) == moment:
                raise SystemExit
            done.append(self)
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(type(folder), "rename", killed)
        patched.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)
        with suppress(SystemExit):
            checkpoint.write(
                folder / "step-00000040", weights, {}, config, {"step": 40, "again": True}
            )
    assert checkpoint.newest(folder) == folder / "step-00000040"
    assert bool(checkpoint.read(folder / "step-00000040").state.get("again")) == (moment == 2)
    assert not list(folder.glob(".*"))


def test_kill_while_pruning_leaves_no_complete_mark(written, monkeypatch):
    folder, _ = written

    def killed(path):
        (path / checkpoint.MODEL).unlink()
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            checkpoint.prune(folder, 1)
    assert all(checkpoint.find_corruption(d) is None for d in checkpoint.complete(folder))
    assert checkpoint.newest(folder).name == "step-00000040" and not list(folder.glob(".*"))


def test_all_files_have_the_same_mode(written):
    folder, _ = written
    assert len({f.stat().st_mode for f in (folder / "step-00000040").iterdir()}) == 1


def test_newest_counts_before_latest_points_to_it(written):
    folder, _ = written
    checkpoint.set_pointer(folder, "LATEST", folder / "step-00000030")
    assert checkpoint.newest(folder).name == "step-00000040"


def test_leftovers_of_a_killed_writer_are_removed(written):
    folder, _ = written
    (folder / ".step-00000050-1").mkdir()
    (folder / ".LATEST.abc").write_text("x")
    checkpoint.newest(folder)
    assert not list(folder.glob(".*"))


def test_pruning_keeps_the_best_of_each_kept_checkpoint(written):
    """If the last checkpoint is damaged, the one before needs the best one that it names."""
    folder, model = written
    state = checkpoint.read(folder / "step-00000030").state | {"best": {"step": 20}}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    checkpoint.write(folder / "step-00000030", weights, {}, checkpoint.read(folder).config, state)
    checkpoint.prune(folder, 2)
    assert [d.name[-2:] for d in checkpoint.complete(folder)] == ["10", "20", "30", "40"]


def test_full_disk_leaves_nothing_behind(written, monkeypatch):
    folder, _ = written
    before = sorted(folder.rglob("*"))

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(
            folder / "step-00000050", {}, {}, checkpoint.read(folder).config, {"step": 50}
        )
    assert sorted(folder.rglob("*")) == before


def test_damaged_file_is_refused(written):
    folder, _ = written
    file = folder / "step-00000040" / checkpoint.MODEL
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.read(folder)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 4), r"the shape of bias is \(2,\) in it and \(4,\) in the model"),
        (nn.Sequential(nn.Linear(3, 2)), r"the shape of 0\.bias is none in it and \(2,\) in the"),
    ],
)
def test_checkpoint_of_another_model_is_refused(written, other, message):
    folder, _ = written
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(other, dict(other.named_parameters()), checkpoint.read(folder))


def test_other_frozen_weights_are_refused(written):
    folder, model = written
    model.extra = nn.Linear(2, 2)
    trained = {n: p for n, p in model.named_parameters() if not n.startswith("extra")}
    with pytest.raises(UserError, match="frozen weights"):
        checkpoint.load_weights(model, trained, checkpoint.read(folder))


def test_load_weights_restores_the_weights(written):
    folder, model = written
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        model.weight.zero_()
    checkpoint.load_weights(model, dict(model.named_parameters()), checkpoint.read(folder))
    assert torch.equal(model.weight, before["weight"])


def test_incomplete_folder_is_replaced(written):
    folder, model = written
    target = folder / "step-00000040"
    (target / checkpoint.COMPLETE).unlink()
    config = Config()
    config.data.shards = "none"
    checkpoint.write(
        target, {n: p.detach() for n, p in model.named_parameters()}, {}, config, {"step": 40}
    )
    assert checkpoint.read(folder).state["step"] == 40
