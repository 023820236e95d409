"""What a checkpoint holds of the progress of training."""

from __future__ import annotations

from dfer_dist.runs.records import DriftRecord
from dfer_dist.training.meters import SpikeDetector
from dfer_dist.training.state import BadStep, BestEpoch, TrainState

STORED = {
    "step": 12,
    "epoch_ended": False,
    "lost_clips": ["a", "b"],
    "skipped_steps": 2,
    "bad_steps": [
        {"step": 11, "not_finite": "loss", "clips": ["c"]},
        {"step": 12, "not_finite": "gradient", "clips": ["d", "e"]},
    ],
    "best": {"epoch": 1, "step": 6, "war": 50.0, "uar": 40.0},
    "recent_losses": [2.0, 1.5],
    "drift": ["optim.lr_image"],
    "drifts": 1,
}


def test_state_dict_has_the_keys_of_the_file() -> None:
    state = TrainState(
        step=12,
        epoch_ended=False,
        lost_clips={"b", "a"},
        bad_steps=[BadStep(11, "loss", ["c"]), BadStep(12, "gradient", ["d", "e"])],
        best=BestEpoch(epoch=1, step=6, war=50.0, uar=40.0),
        spikes=SpikeDetector([2.0, 1.5]),
        drift={"optim.lr_image"},
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
    assert state.drift == {"optim.lr_image", "optim.gamma", "code"}
    assert state.num_drifts == 2


def test_only_skipped_steps_up_to_the_last_are_in_a_row() -> None:
    state = TrainState(step=5, bad_steps=[BadStep(2, "loss", []), BadStep(4, "loss", [])])
    assert state.bad_steps_in_a_row == 0
    state.bad_steps.append(BadStep(5, "loss", []))
    assert state.bad_steps_in_a_row == 2
