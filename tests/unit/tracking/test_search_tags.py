"""What MLflow is given of a search: trials that were pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import TrackingInfo
from dfer_dist.runs.sweep import SweepDir, SweepMember
from dfer_dist.tracking.sweeps import sweep_status, sweep_tags
from dfer_dist.utils.files import write_json


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    """Two trials of a search, the second one pruned."""
    sweep, found = SweepDir.of(tmp_path, "s"), []
    for number in range(2):
        run = RunDir(tmp_path.resolve() / f"s-trial{number}")
        run.root.mkdir()
        write_json(run.run, {"folds": [1], "tracking": None})
        sweep.add(run, SweepMember(run.root.name, ["train.epochs=3"], pruned=number == 1))
        found.append(run)
    return found


def test_pruned_trial_has_a_tag(runs: list[RunDir]) -> None:
    first, second = (sweep_tags(run) for run in runs)
    assert second.pop("pruned") == "true"
    assert first == second and first["setting"] == "train.epochs=3"


@pytest.mark.parametrize(
    ("closed", "status"),
    [
        (["FINISHED", "KILLED"], "FINISHED"),
        (["FINISHED", "FAILED"], "FAILED"),
        (["FINISHED", None], None),
    ],
)
def test_search_is_finished_with_its_pruned_trials(
    runs: list[RunDir], closed: list[str | None], status: str | None
) -> None:
    for run, own in zip(runs, closed, strict=True):
        run.update_info(tracking=TrackingInfo("sqlite:///x", "key", "e", closed=own))
    assert sweep_status(SweepDir.of(runs[0].root.parent, "s")) == status
