"""The environment of ranks: their place among the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir
from launch.processes import rank_environment, run_environment

# of an earlier session in the user's shell, or of a node's profile
LEFT = dict.fromkeys(
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"), "1"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    for name, value in LEFT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    return RunDir(tmp_path)


def test_rank_of_a_job_takes_no_place_from_the_shell(run: RunDir) -> None:
    """Else two lone ranks would write one folder; the cluster's file may set a port."""
    env = run_environment(run, 3)
    assert not LEFT.keys() & env.keys()
    assert env["MASTER_PORT"] == "29500"


def test_rank_on_this_machine_has_its_own_place(run: RunDir) -> None:
    env = rank_environment(run, 3, 4, 1234)
    place = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}
    assert {name: env[name] for name in place} == place
    assert not (LEFT.keys() - place.keys()) & env.keys()
