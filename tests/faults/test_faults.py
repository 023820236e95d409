"""Faults of a cluster injected into real two-rank training.

``make test-faults`` runs them; ``tests/integration/training/test_killed_save.py`` is a sample.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.utils.files import read_json
from tests.helpers.training.trials import Trial, same, same_in_mlflow, signal_all

pytestmark = pytest.mark.faults_full


def numbered(kinds: dict[str, int]) -> list[object]:
    """Return a parameter for each try of each kind."""
    every = [(kind, i) for kind, tries in kinds.items() for i in range(tries)]
    return [pytest.param(*x, id=f"{x[0]}-{x[1]}") for x in every]


def a_moment(trial: Trial, undisturbed: Trial, seed: int) -> None:
    """Wait for a random moment within a random step.

    Steps are counted rather than seconds, as the machine's speed varies. The last step is left out:
    training may be over after it.
    """
    lines = [x for x in undisturbed.lines() if "loss" in x]
    rng = np.random.default_rng(seed)
    trial.training(int(rng.integers(1, len(lines))))
    time.sleep(rng.uniform(0, (lines[-1]["time"] - lines[0]["time"]) / len(lines)))


@pytest.mark.parametrize(("whom", "seed"), numbered({"a rank": 4, "both ranks": 3}))
def test_sigkill_of_ranks(trial: Trial, undisturbed: Trial, whom: str, seed: int) -> None:
    trial.fault = f"SIGKILL of {whom}"
    command = trial.start()
    a_moment(trial, undisturbed, seed)
    ranks = trial.ranks()
    assert len(ranks) == 2, "the ranks had ended before"
    signal_all(ranks[seed % 2 :][:1] if whom == "a rank" else ranks, signal.SIGKILL)
    said = trial.finish(command, again=0)
    # The kill may have come after the last step.
    assert "resuming from the last checkpoint" in said or trial.num_rolled_back == 0
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_sigkill_of_a_loader_worker(trial: Trial, undisturbed: Trial) -> None:
    """The kernel does so when memory runs out."""
    trial.fault = "SIGKILL of a loader worker"
    command = trial.start()
    trial.training(9)
    signal_all(trial.workers()[:1], signal.SIGKILL)
    said = trial.finish(command, again=0)
    assert "was ended by SIGKILL" in said and "resuming from the last checkpoint" in said
    same(trial, undisturbed)
    same_in_mlflow(trial)


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_of_the_launcher(trial: Trial, undisturbed: Trial, seed: int) -> None:
    trial.fault = "SIGKILL of the launcher"
    command = trial.start()
    a_moment(trial, undisturbed, 10 + seed)
    command.send_signal(signal.SIGKILL)
    command.wait(60)
    # The ranks of the first command may still be saving.
    trial.finish()
    same(trial, undisturbed)
    same_in_mlflow(trial)


@pytest.mark.parametrize(
    ("what", "seed"),
    numbered(
        {
            "SIGTERM to the launcher": 3,
            "SIGTERM to one rank": 2,
            "SIGUSR2 to one rank": 2,
            "SIGTERM to ranks and workers": 2,
        }
    ),
)
def test_preemption(trial: Trial, undisturbed: Trial, what: str, seed: int) -> None:
    trial.fault = what
    command = trial.start()
    a_moment(trial, undisturbed, 20 + seed)
    if "launcher" in what:
        command.send_signal(signal.SIGTERM)
    elif "workers" in what:
        # As Slurm does.
        for rank in trial.ranks():
            os.killpg(rank, signal.SIGTERM)
    else:
        ranks = trial.ranks()
        assert len(ranks) == 2, "the ranks had ended before"
        signal_all(ranks[1 - seed % 2 :][:1], signal.SIGUSR2 if "USR2" in what else signal.SIGTERM)
    trial.finish(command)
    # A preemption in time loses no step.
    assert trial.num_rolled_back == 0
    same(trial, undisturbed)
    same_in_mlflow(trial)


@pytest.mark.parametrize(
    ("stage", "seed"), numbered({"before": 1, "between": 1, "complete": 1, "pointer": 1})
)
def test_sigkill_inside_a_save(trial: Trial, undisturbed: Trial, stage: str, seed: int) -> None:
    trial.fault = "SIGKILL inside a save"
    trial.prepare()
    mark = trial.root / "killed"
    trial.hook(
        "dfer_dist.checkpoints.portable",
        f"hooks.kill_in_save(me, {str(mark)!r}, {stage!r}, {10 + 5 * seed})",
    )
    said = trial.finish(trial.start(), again=0)
    assert mark.exists() and "rank 0 was ended by SIGKILL" in said
    same(trial, undisturbed)
    same_in_mlflow(trial)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_ranks_and_stages(
    trial: Trial, undisturbed: Trial, tmp_path: Path, precision: str
) -> None:
    """Train on two ranks with ZeRO-1, then on one with ZeRO-2, then on four with ZeRO-3.

    In float32 each loss equals the undisturbed one to 1e-5. In bf16 the loss of eight clips cannot:
    undisturbed runs on 1, 2 and 4 ranks differ by up to 3 % of a loss, and by 0.5 % after one
    float32 rounding of their initial weights. There the means over an epoch are compared.
    """
    trial.fault = f"ZeRO-1 on 2 ranks, ZeRO-2 on 1, ZeRO-3 on 4, {precision}"
    arguments = [f"train.precision={precision}"]
    if precision == "fp32":
        undisturbed = Trial(trial.shards, tmp_path / "undisturbed", settings=arguments)
        undisturbed.finish(undisturbed.start(), again=0)
    states = []
    for step, nproc, stage in ((1, 2, 1), (14, 1, 2)):
        trial.nproc, trial.settings = nproc, [*arguments, f"train.zero_stage={stage}"]
        command = trial.start()
        trial.training(step)
        command.send_signal(signal.SIGTERM)
        trial.finish(command, status=75, again=0)
        states.append(checkpoint.read(trial.fold.checkpoints).state)
    trial.nproc, trial.settings = 4, [*arguments, "train.zero_stage=3"]
    trial.finish()
    states += [checkpoint.read(x.fold.checkpoints).state for x in (trial, undisturbed)]
    assert [a["world_size"] for a in read_json(trial.fold.status)["attempts"]] == [2, 1, 4]
    assert 0 < states[0]["step"] < states[1]["step"] < states[2]["step"] == states[3]["step"]
    assert len({s["frozen_sha256"] for s in states}) == 1
    ours, theirs = ([x for x in t.lines() if "loss" in x] for t in (trial, undisturbed))
    assert [x["step"] for x in ours] == [x["step"] for x in theirs]
    for name in ("lr_image", "lr_temporal", "lr_prompt"):
        assert [x[name] for x in ours] == [x[name] for x in theirs]
    a, b = (np.array([x["loss"] for x in lines]).reshape(6, 6) for lines in (ours, theirs))
    step, epoch = np.abs(a / b - 1).max(), np.abs(a.mean(1) / b.mean(1) - 1).max()
    print(f"{precision}: losses differ by {step:.1e} at most, means over an epoch by {epoch:.1e}")
    assert step < (1e-5 if precision == "fp32" else 3e-2)
    assert epoch < (1e-5 if precision == "fp32" else 5e-3)
    same_in_mlflow(trial)


def test_resuming_with_the_test_under_zero_3(trial: Trial, undisturbed: Trial) -> None:
    """Training is done and only the result is missing, so the ranks test at once."""
    trial.fault, trial.settings = "result lost, ZeRO-3", ["train.zero_stage=3"]
    trial.finish(trial.start(), again=0)
    keys, logits = trial.predictions()
    result = read_json(trial.fold.result)
    assert result["parameters"] == read_json(undisturbed.fold.result)["parameters"] > 0
    trial.fold.result.unlink()
    trial.finish(trial.start(), again=0)
    assert read_json(trial.fold.result) == result
    assert trial.predictions()[0] == keys and np.array_equal(trial.predictions()[1], logits)


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER])
def test_damaged_checkpoint(trial: Trial, undisturbed: Trial, harm: str, name: str) -> None:
    trial.fault = f"last checkpoint damaged: {harm}"
    command = trial.start()
    trial.training(13)
    command.send_signal(signal.SIGTERM)
    trial.finish(command, status=75, again=0)
    last = checkpoint.complete(trial.fold.checkpoints)[-1]
    file = last / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if harm == "missing" else file.write_bytes(
        data[: len(data) // 2] if harm == "cut" else data
    )
    trial.finish()
    assert f"checkpoint {last.name} is damaged ({name}" in trial.log()
    assert trial.num_rolled_back > 0
    same(trial, undisturbed)


@pytest.fixture
def small_disk(trial: Trial) -> Iterator[Path]:
    """Mount a file system of 24 MB; a checkpoint takes 2.6 MB, and five may exist at a time."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(trial.root)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield trial.root
    finally:
        subprocess.run(["umount", "-l", str(trial.root)], check=True)


def fill(disk: Path) -> Path:
    """Write a file until the disk is full."""
    file = disk / "filler"
    with file.open("wb", buffering=0) as f:
        try:
            while f.write(bytes(4096)):
                pass
        except OSError:
            return file
    raise AssertionError("the file system has no limit")


def test_disk_full_for_a_while(trial: Trial, undisturbed: Trial, small_disk: Path) -> None:
    trial.fault = "disk full for a while"
    trial.settings = ["train.save_minutes=0.01", "train.save_steps=1", "train.log_every=1"]
    command = trial.start()
    trial.training(3)
    filler = fill(small_disk)
    # A save may have reserved its space already.
    time.sleep(0.5)
    complete = checkpoint.complete(trial.fold.checkpoints)
    # The log cannot be written either, so it does not show that a save failed.
    time.sleep(1.5)
    assert complete and command.is_running
    assert checkpoint.complete(trial.fold.checkpoints) == complete
    filler.unlink()
    trial.finish(command, again=0)
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_full_disk_at_the_best_epoch(trial: Trial, undisturbed: Trial) -> None:
    """Training waits until the best weights are written: the next step changes them."""
    trial.fault, trial.settings = "full disk at the best epoch", ["train.save_minutes=0.01"]
    trial.prepare()
    best = read_json(undisturbed.fold.result)["step"]
    mark = trial.root / "full-disk"
    trial.hook(
        "dfer_dist.checkpoints.portable", f"hooks.full_disk_at(me, {str(mark)!r}, {best}, 3)"
    )
    trial.finish(trial.start(), again=0)
    assert len(list(trial.root.glob("full-disk*"))) == 3
    same(trial, undisturbed)


def test_disk_full_for_good(trial: Trial, undisturbed: Trial, small_disk: Path) -> None:
    """The run ends cleanly and resumes once there is space."""
    trial.fault = "disk full for good"
    trial.settings = ["train.save_minutes=0.005", "train.save_steps=1"]
    command = trial.start()
    trial.training(3)
    trial.wait(lambda: checkpoint.complete(trial.fold.checkpoints))
    filler = fill(small_disk)
    said = trial.finish(command, status=2, again=0)
    # The rank's own message may not fit on the full disk.
    assert ("takes no checkpoint" in said or "is full" in said) and "free some space" in said
    assert checkpoint.complete(trial.fold.checkpoints)
    filler.unlink()
    trial.finish()
    same(trial, undisturbed)


def test_nan_in_one_clip(trial: Trial, undisturbed: Trial) -> None:
    """Its step is skipped once an epoch and its key recorded; a restart changes nothing."""
    trial.fault = "NaN in one clip's pixels"
    trial.prepare()
    key = read_key(trial)
    trial.hook("dfer_dist.data.loading.loader", f"hooks.poison(me, {key!r})")
    command = trial.start()
    trial.training(15)
    signal_all(trial.ranks(), signal.SIGKILL)
    trial.finish(command, again=0)
    bad = read_json(trial.fold.bad_steps)["steps"]
    # An epoch may leave a clip out.
    assert 5 <= len(bad) <= 6
    assert all(b["clips"] == [key] and b["not_finite"] == "loss" for b in bad)
    assert read_json(trial.fold.result)["skipped_steps"] == len(bad)
    steps = [int(x["step"]) for x in trial.lines() if "loss" in x]
    skipped = [b["step"] for b in bad]
    # JSON has no NaN: the line of a skipped step has no loss.
    assert sorted(steps + skipped) == list(range(1, 37))
    assert all(abs(w).max() < 1e3 for w in trial.weights().values())


def read_key(trial: Trial) -> str:
    """Return the key of a clip that fold 1 trains on."""
    shard = trial.shards.train_shards(1)[0]
    return str(trial.shards.sidecar(shard)["key"][0].as_py())


def test_nan_in_every_clip(trial: Trial, undisturbed: Trial) -> None:
    """The run fails with the keys of the clips; the last good checkpoint is kept."""
    trial.fault = "NaN in all clips' pixels"
    command = trial.start()
    trial.training(12)
    command.send_signal(signal.SIGTERM)
    trial.finish(command, status=75, again=0)
    good = checkpoint.complete(trial.fold.checkpoints)[-1]
    train = trial.run.code / "dfer_dist" / "data" / "loading" / "loader.py"
    whole = train.read_text()
    trial.hook("dfer_dist.data.loading.loader", "hooks.poison(me, '*')")
    said = trial.finish(status=2, again=0)
    assert "5 steps in a row had a loss or gradient that was not finite, with clips" in said
    assert read_json(trial.fold.status)["state"] == "FAILED"
    assert checkpoint.complete(trial.fold.checkpoints)[-1] == good
    train.write_text(whole)
    trial.finish()
    same(trial, undisturbed)
    same_in_mlflow(trial)


def test_rank_that_stops_answering(trial: Trial, undisturbed: Trial) -> None:
    trial.fault, trial.settings = "SIGSTOP of a rank", ["train.hang_minutes=0.2"]
    command = trial.start()
    trial.training(8)
    signal_all(trial.ranks()[1:], signal.SIGSTOP)
    said = trial.finish(command, again=0)
    assert "rank 0 was ended by SIGABRT" in said
    stacks = trial.fold.stacks(0).read_text()
    assert (
        "no step for 12 s" in stacks and "in train_step" in stacks
    ) or "in all_reduce_sum" in stacks
    assert any("hangs" in (a["why"] or "") for a in read_json(trial.fold.status)["attempts"])
    same(trial, undisturbed)
    same_in_mlflow(trial)
