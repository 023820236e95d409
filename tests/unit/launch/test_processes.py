"""The environment of ranks: their place among the others, and the code that they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir
from launch.processes import rank_environment, run_environment

# of an earlier session in the user's shell, or of a node's profile
LEFT = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "LOCAL_SIZE": "2",
    "GROUP_RANK": "0",
    "ROLE_WORLD_SIZE": "1",
    "TORCHELASTIC_RUN_ID": "none",
}


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


def test_packages_of_the_shell_come_after_the_code_of_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/packages")
    assert run_environment(run, 3)["PYTHONPATH"] == f"{run.code}{os.pathsep}/opt/packages"
    monkeypatch.delenv("PYTHONPATH")
    assert run_environment(run, 3)["PYTHONPATH"] == str(run.code)
