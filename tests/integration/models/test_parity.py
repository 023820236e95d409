"""Equality with values measured on the authors' code."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfer_dist.inference.official import read_official, to_ours
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError
from tests.helpers.models.golden import (
    ENGINE,
    GOLDEN,
    TOLERANCE,
    Bomb,
    Trajectory,
    assert_equal,
    autocast_drift,
    build,
    check_trajectory_through_our_engine,
    drift,
    golden,
    train,
)
from tests.helpers.ranks.spawn import run_ranks


@golden
def test_the_prompts_are_token_for_token_the_authors(case: str) -> None:
    model, recorded, state = build(case)
    vocabulary = state["clip_model_.token_embedding.weight"]
    context = recorded["contexts_number"]
    theirs = torch.cat(
        [state["prompt_learner.token_prefix"], state["prompt_learner.token_suffix"]], dim=1
    )
    ours = torch.cat([model.prompt.tokens[:, :1], model.prompt.tokens[:, 1 + context :]], dim=1)
    used = ours.shape[1]
    assert len(model.prompt.tokens) == recorded["n_cls"]
    assert torch.equal(vocabulary[ours], theirs[:, :used])
    assert torch.equal(theirs[:, used:], vocabulary[0].expand_as(theirs[:, used:])), (
        "more text in the checkpoint than in ours"
    )


@golden
def test_logits_and_gradients_of_the_first_step(case: str) -> None:
    model, recorded, _ = build(case)
    data = np.load(GOLDEN / f"{case}_trajectory.npz")
    logits = model(torch.from_numpy(data["frames"][0]))
    assert_equal(logits.detach(), data["logits"][0], "logits")
    F.cross_entropy(logits, torch.from_numpy(data["labels"][0])).backward()
    theirs = recorded["grad_norm_step0"]
    names = {next(iter(to_ours({name: torch.empty(0)}))): name for name in theirs}
    ours = {
        name: p.grad.norm().item() for group in param_groups(model).values() for name, p in group
    }
    assert ours.keys() == names.keys(), "not the same parameters are trained"
    for name, norm in ours.items():
        assert norm == pytest.approx(theirs[names[name]], rel=TOLERANCE), name


@golden
def test_the_whole_trajectory(case: str) -> None:
    model, recorded, _ = build(case)
    data = np.load(GOLDEN / f"{case}_trajectory.npz")
    run = train(model, case)
    assert_equal(run.logits, data["logits"], "logits")
    assert_equal(run.losses, data["losses"], "losses")
    with torch.no_grad():
        assert_equal(
            model.eval()(torch.from_numpy(data["frames"][0])), data["final_logits"], "final logits"
        )
    weights = dict(model.named_parameters())
    for name, (_, norm) in recorded["final_param_sum_and_norm"].items():
        ours = weights[next(iter(to_ours({name: torch.empty(0)})))]
        assert ours.detach().double().norm().item() == pytest.approx(
            norm, rel=TOLERANCE, abs=1e-6
        ), name


@golden
def test_the_trajectory_through_our_engine(case: str, tmp_path: Path) -> None:
    """Float32, ZeRO-1, one rank: our parameter groups, schedule and DeepSpeed."""
    check_trajectory_through_our_engine(case, "cpu", tmp_path)


@golden
def test_the_trajectory_in_bf16_on_two_ranks_stays_close(case: str, tmp_path: Path) -> None:
    """Ours drifts from float32 at most twice as far as plain PyTorch under autocast does."""
    run_ranks(ENGINE, 2, "--case", case, "--precision", "bf16", "--out", str(tmp_path / "out.npz"))
    data, ours = np.load(GOLDEN / f"{case}_trajectory.npz"), np.load(tmp_path / "out.npz")
    recorded = Trajectory(data["logits"], data["losses"])
    found = drift(Trajectory(ours["logits"], ours["losses"]), recorded)
    autocast = autocast_drift(case)
    assert found.logits.max() <= 2 * autocast.logits.max()
    assert found.losses.max() <= 2 * autocast.losses.max()
    np.testing.assert_allclose(ours["rates"], data["lrs"])


@golden
def test_reading_leaves_nothing_of_the_checkpoint_out(case: str) -> None:
    model, _, state = build(case)
    ours = to_ours(state)
    assert ours.keys() == model.state_dict().keys()
    left_out = set(state) - {n for n in state if to_ours({n: state[n]})}
    assert all(n.startswith(("clip_model_.", "prompt_learner.token_")) for n in left_out)


class Meter:
    """As the authors' recorder: a class of the script that saved the file."""

    def __init__(self) -> None:
        self.losses, self.best = np.zeros((3, 2), np.float32), collections.Counter(a=1)


@pytest.mark.parametrize("how", ["os", "builtins", "pathlib", "torch", "nested"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, how: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / "hostile.pth"
    torch.save("inner", tmp_path / "inner.pth")
    bombs = {
        "os": Bomb(os.system, f"touch {proof}"),
        "builtins": Bomb(eval, f"open({str(proof)!r}, 'w')"),
        "pathlib": Bomb(Path.touch, proof),
        "torch": Bomb(torch.save, 0, str(proof)),
        "nested": [{"deep": Bomb(exec, f"open({str(proof)!r}, 'w')")}],
    }
    weights = {"module.x": torch.arange(4.0)}
    torch.save({"state_dict": weights, "recorder": bombs[how]}, path)
    try:
        state = read_official(path)
    except UserError as e:
        assert "\n" not in str(e) and str(path) in str(e)  # noqa: PT017 (either outcome is good)
    else:
        assert torch.equal(state["x"], torch.arange(4.0))
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the file was not hostile, so this test shows nothing"


def test_classes_of_a_training_script_are_passed_over(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"module.x": torch.arange(4.0)}, "recorder": Meter()}, tmp_path / "a.pth"
    )
    assert torch.equal(read_official(tmp_path / "a.pth")["x"], torch.arange(4.0))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_what_is_no_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    torch.save({"state_dict": {"x": "no tensor"}}, tmp_path / "no_tensor.pth")
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    with zipfile.ZipFile(tmp_path / "empty.pth", "w"):
        pass
    for name in ("text", "other", "no_tensor", "cut", "empty", "absent"):
        with pytest.raises(UserError, match=f"{name}.pth"):
            read_official(tmp_path / f"{name}.pth")
