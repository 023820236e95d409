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
from tests.helpers.paths import HELPERS
from tests.helpers.spawn import run_ranks

SCRIPT = HELPERS / "small_engine.py"
STEPS, HALF = 8, 4


def run(folder: Path, ranks: int, steps: int, **options: object) -> dict:
    """Train the toy model on ``ranks`` real processes; returns what rank 0 printed."""
    words = [
        w
        for k, v in options.items()
        for w in (f"--{k}", *map(str, v if isinstance(v, list) else [v]))
    ]
    return run_ranks(SCRIPT, ranks, "--folder", str(folder), "--steps", str(steps), *words)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """AdamW in bf16 on two ranks, never stopped; with the checkpoint of the middle."""
    folder = tmp_path_factory.mktemp("undisturbed")
    half = run(folder, 2, HALF, optimizer="adamw", precision="bf16")
    whole = run(folder / "whole", 2, STEPS, optimizer="adamw", precision="bf16")
    return {"half": half, "whole": whole}


def test_resuming_on_as_many_ranks_is_equal_to_the_bit(undisturbed, tmp_path):
    resumed = run(
        tmp_path, 2, STEPS, optimizer="adamw", precision="bf16", resume=undisturbed["half"]["path"]
    )
    assert undisturbed["half"]["losses"] + resumed["losses"] == undisturbed["whole"]["losses"]
    assert resumed["weights"] == undisturbed["whole"]["weights"]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (4, 3)])
def test_resuming_on_other_ranks_and_stages_stays_on_the_curve(undisturbed, tmp_path, ranks, stage):
    resumed = run(
        tmp_path,
        ranks,
        STEPS,
        stage=stage,
        optimizer="adamw",
        precision="bf16",
        resume=undisturbed["half"]["path"],
    )
    assert resumed["losses"] == pytest.approx(undisturbed["whole"]["losses"][HALF:], rel=2e-2)
    assert resumed["rates"] == undisturbed["whole"]["rates"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_changes_nothing_and_is_saved_as_any_other(
    undisturbed, tmp_path, stage
):
    half = undisturbed["half"]["path"]
    plain, offloaded = (
        run(
            tmp_path / name,
            2,
            STEPS,
            stage=stage,
            optimizer="adamw",
            precision="bf16",
            offload=offload,
            resume=half,
        )
        for name, offload in (("plain", 0), ("offloaded", 1))
    )
    assert offloaded == plain | {"path": offloaded["path"]}


@pytest.mark.faults_full
def test_sgd_with_momentum_resumes_from_zero3(tmp_path):
    whole = run(tmp_path / "a", 2, STEPS, stage=3)
    half = run(tmp_path / "b", 2, HALF, stage=3)
    resumed = run(tmp_path / "c", 2, STEPS, stage=1, resume=half["path"])
    assert half["losses"] + resumed["losses"] == pytest.approx(whole["losses"], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(1, "bf16"), pytest.param(1, "fp32", marks=pytest.mark.faults_full), (2, "bf16"), (3, "bf16")],
)
def test_a_step_with_a_nan_on_one_rank_changes_nothing(tmp_path, stage, precision):
    """Nor does one whose loss is infinite while its gradient is not, which DeepSpeed itself would let pass."""
    seen = run(
        tmp_path, 2, 6, stage=stage, precision=precision, optimizer="adamw", poison=[2], explode=[4]
    )
    assert seen["skipped"] == [False, False, True, False, True, False]
    digests = seen["digests"]
    assert digests[2] == digests[1] and digests[4] == digests[3]
    assert len(set(digests)) == 4


def corrupt(file: Path, harm: str) -> None:
    """Harm a file in one of three ways."""
    if harm == "gone":
        file.unlink()
        return
    data = bytearray(file.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if harm == "cut" else data)


class TestFolder:
    """What stands in a checkpoint folder, without an engine."""

    @pytest.fixture
    def written(self, tmp_path):
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

    def test_latest_is_read_by_folder_and_by_name(self, written):
        folder, _ = written
        assert (
            checkpoint.read(folder).state["step"]
            == checkpoint.read(folder / "LATEST").state["step"]
            == 40
        )
        assert checkpoint.read(folder / "BEST").state["step"] == 10

    def test_pruning_keeps_the_last_ones_and_what_is_pointed_at(self, written):
        folder, _ = written
        checkpoint.prune(folder, 1)
        assert sorted(d.name for d in folder.glob("step-*")) == ["step-00000010", "step-00000040"]

    def test_a_folder_without_its_mark_does_not_exist(self, written):
        folder, _ = written
        (folder / "step-00000040" / checkpoint.COMPLETE).unlink()
        assert checkpoint.read_pointer(folder, "LATEST") is None
        with pytest.raises(UserError, match="no complete checkpoint"):
            checkpoint.read(folder / "step-00000040")

    @pytest.mark.parametrize(
        "name", [checkpoint.COMPLETE, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.CONFIG]
    )
    @pytest.mark.parametrize("harm", ["gone", "cut", "flipped"])
    def test_a_damaged_latest_falls_back_to_the_one_before_and_says_so(
        self, written, caplog, name, harm
    ):
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
            and "going on from step-00000030" in said
        )
        assert (folder / "damaged-step-00000040").is_dir()
        assert checkpoint.newest(folder).name == "step-00000030" and not caplog.text

    def test_without_any_whole_checkpoint_training_does_not_begin_anew_by_itself(self, written):
        folder, _ = written
        for left in folder.glob("step-*/COMPLETE"):
            left.unlink()
        with pytest.raises(UserError, match="train from the start"):
            checkpoint.newest(folder)
        with pytest.raises(UserError, match="train from the start"):
            checkpoint.newest(folder)
        assert checkpoint.newest(folder / "nothing") is None

    @pytest.mark.parametrize("moment", range(3))
    def test_a_kill_while_a_step_is_saved_again_leaves_one_of_the_two(
        self, written, monkeypatch, moment
    ):
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

    def test_a_kill_while_pruning_leaves_no_mark(self, written, monkeypatch):
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

    def test_colleagues_may_read_it(self, written):
        folder, _ = written
        assert len({f.stat().st_mode for f in (folder / "step-00000040").iterdir()}) == 1

    def test_a_complete_one_counts_though_latest_was_not_moved_yet(self, written):
        folder, _ = written
        checkpoint.set_pointer(folder, "LATEST", folder / "step-00000030")
        assert checkpoint.newest(folder).name == "step-00000040"

    def test_what_a_killed_writer_left_is_removed(self, written):
        folder, _ = written
        (folder / ".step-00000050-1").mkdir()
        (folder / ".LATEST.abc").write_text("x")
        checkpoint.newest(folder)
        assert not list(folder.glob(".*"))

    def test_the_best_of_what_is_kept_is_kept(self, written):
        """A damaged last checkpoint would otherwise take the best one of the checkpoint before with it."""
        folder, model = written
        state = checkpoint.read(folder / "step-00000030").state | {"best": {"step": 20}}
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        checkpoint.write(
            folder / "step-00000030", weights, {}, checkpoint.read(folder).config, state
        )
        checkpoint.prune(folder, 2)
        assert [d.name[-2:] for d in checkpoint.complete(folder)] == ["10", "20", "30", "40"]

    def test_a_disk_that_is_full_leaves_nothing_behind(self, written, monkeypatch):
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

    def test_a_damaged_file_is_named(self, written):
        folder, _ = written
        file = folder / "step-00000040" / checkpoint.MODEL
        file.write_bytes(file.read_bytes()[:20])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(folder)

    @pytest.mark.parametrize("other", [nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 2))])
    def test_a_checkpoint_of_another_model_is_refused(self, written, other):
        folder, _ = written
        with pytest.raises(UserError, match="of another model"):
            checkpoint.load_weights(other, dict(other.named_parameters()), checkpoint.read(folder))

    def test_other_frozen_weights_are_refused(self, written):
        folder, model = written
        model.extra = nn.Linear(2, 2)
        trained = {n: p for n, p in model.named_parameters() if not n.startswith("extra")}
        with pytest.raises(UserError, match="frozen weights"):
            checkpoint.load_weights(model, trained, checkpoint.read(folder))

    def test_weights_go_in(self, written):
        folder, model = written
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        with torch.no_grad():
            model.weight.zero_()
        checkpoint.load_weights(model, dict(model.named_parameters()), checkpoint.read(folder))
        assert torch.equal(model.weight, before["weight"])

    def test_a_half_written_folder_is_replaced(self, written):
        folder, model = written
        target = folder / "step-00000040"
        (target / checkpoint.COMPLETE).unlink()
        config = Config()
        config.data.shards = "none"
        checkpoint.write(
            target, {n: p.detach() for n, p in model.named_parameters()}, {}, config, {"step": 40}
        )
        assert checkpoint.read(folder).state["step"] == 40
