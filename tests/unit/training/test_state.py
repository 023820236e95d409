"""What a checkpoint holds of the progress of training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dfer_dist.runs.records import DriftRecord
from dfer_dist.training.state import BadStep, BestEpoch, TrainState
from dfer_dist.training.trainer import Trainer
from dfer_dist.utils.errors import UserError

STORED = {
    "step": 12,
    "epoch_ended": False,
    "lost_clips": ["a", "b"],
    "skipped_steps": 5,
    "overflow_steps": 3,
    "bad_steps": [
        {"step": 11, "not_finite": "loss", "clips": ["c"]},
        {"step": 12, "not_finite": "gradient", "clips": ["d", "e"]},
    ],
    "best": {"epoch": 1, "step": 6, "war": 50.0, "uar": 40.0},
    "recent_losses": [2.0, 1.5],
    "drift": ["optim.lr_image"],
    "drifts": 1,
}


def test_bad_step_names_both_clips_of_a_mixture() -> None:
    nan, pair = float("nan"), ["a", "b"]
    losses = [(pair, 1.0), (pair, nan), (["c"], 2.0), (["d"], float("inf"))]
    assert BadStep.of(7, losses) == BadStep(7, "loss", ["a", "b", "d"])
    finite = [(pair, 1.0), (pair, 1.0), (["c"], 2.0)]
    assert BadStep.of(7, finite) == BadStep(7, "gradient", ["a", "b", "c"])


def test_state_dict_has_the_keys_of_the_file() -> None:
    state = TrainState(
        step=12,
        epoch_ended=False,
        lost_clips=["a", "b"],
        bad_steps=[BadStep(11, "loss", ["c"]), BadStep(12, "gradient", ["d", "e"])],
        overflow_steps=3,
        best=BestEpoch(epoch=1, step=6, war=50.0, uar=40.0),
        recent_losses=[2.0, 1.5],
        drift=["optim.lr_image"],
        num_drifts=1,
    )
    assert state.state_dict() == STORED


def test_loaded_state_returns_the_same_state_dict() -> None:
    state = TrainState()
    state.load_state_dict({**STORED, "dataset": "demo"})
    assert state.state_dict() == STORED
    assert state.bad_steps_in_a_row == 2


def test_later_drifts_are_added_to_those_of_the_checkpoint() -> None:
    state = TrainState()
    state.load_state_dict(STORED)
    drifts = [
        DriftRecord("", {"old": [1, 2]}),
        DriftRecord("", {"optim.gamma": [1, 2], "code": ["x", "y"]}),
    ]
    state.add_drifts(drifts)
    assert state.drift == ["code", "optim.gamma", "optim.lr_image"]
    assert state.num_drifts == 2


def test_only_skipped_steps_up_to_the_last_are_in_a_row() -> None:
    state = TrainState(step=5, bad_steps=[BadStep(2, "loss", []), BadStep(4, "loss", [])])
    assert state.bad_steps_in_a_row == 0
    state.bad_steps.append(BadStep(5, "loss", []))
    assert state.bad_steps_in_a_row == 2


def test_loss_far_above_the_last_ones_is_a_spike() -> None:
    spikes = TrainState()
    calm = [2 - 0.01 * i + 0.02 * (-1) ** i for i in range(40)]
    assert not any(spikes.is_spike(x) for x in calm)
    assert spikes.is_spike(3.0)
    assert not spikes.is_spike(1.62)
    assert not spikes.is_spike(float("nan"))
    assert len(spikes.recent_losses) == 42


def test_resumed_state_has_the_same_window() -> None:
    one, other = TrainState(), TrainState()
    losses = [2 + 0.1 * ((7 * i) % 5) for i in range(70)]
    for x in losses:
        one.is_spike(x)
    for x in losses[:33]:
        other.is_spike(x)
    resumed = TrainState(recent_losses=other.recent_losses)
    for x in losses[33:]:
        resumed.is_spike(x)
    assert resumed.recent_losses == one.recent_losses
    assert len(one.recent_losses) == TrainState.WINDOW


def test_first_losses_are_no_spikes() -> None:
    spikes = TrainState()
    assert not any(spikes.is_spike(x) for x in (1.0, 50.0, 1.0, 50.0))


def test_error_of_bad_steps_names_few_clips() -> None:
    keys = [f"clip-{i:03}" for i in range(160)]
    bad = BadStep(1, "loss", keys)
    ranks = SimpleNamespace(gather_objects=lambda x: [x], broadcast_object=lambda _: bad)
    trainer = SimpleNamespace(
        ranks=ranks,
        state=SimpleNamespace(step=1, bad_steps=[]),
        write_bad_steps=lambda: None,
        config=SimpleNamespace(train=SimpleNamespace(max_bad_steps=1)),
        engine=SimpleNamespace(bad_steps=1),
        folder=SimpleNamespace(bad_steps="bad_steps.json"),
    )
    with pytest.raises(UserError, match=r"clip-004 and 155 more \(all in bad_steps\.json\)"):
        Trainer._record_bad_step(trainer, [(keys, float("nan"))])  # type: ignore[arg-type]
