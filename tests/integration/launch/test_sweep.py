"""``dfer crossval --seeds --sweep`` on this machine: killed, given again, compared; and its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.results import load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import read_json, write_json
from launch.commands import train
from tests.helpers.cli import check_refusal, invoke, small_run
from tests.helpers.forked import Done
from tests.helpers.made_runs import make_fold, write_summary

NAMES = ["demo-1-seed0", "demo-2-seed0", "demo-1-seed1", "demo-2-seed1"]


class Ranks:
    """Replaces the ranks of folds: leaves their results, and is killed where a test says."""

    def __init__(self, shards: Index) -> None:
        self.shards = shards
        self.trained: list[tuple[str, int]] = []
        self.killed_at: tuple[str, int] | None = None

    def __call__(self, run: RunDir, folds: list[int], *_: object) -> list[int]:
        for k in folds:
            if run.fold(k).result.exists():
                continue
            if (run.root.name, k) == self.killed_at:
                raise KeyboardInterrupt
            self.trained.append((run.root.name, k))
            info, sure = run.info(), 1.0 + run.root.name.startswith("demo-2")
            hashes = {"config_hash": info.config_hash, "index_hash": info.index_hash}
            make_fold(run.root, k, sure=sure, dataset="demo", **hashes)
            write_json(run.fold(k).status, {"state": "DONE", "steps": 9, "attempts": []})
        return []


@pytest.fixture
def ranks(tiny_shards: Index, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    ranks = Ranks(tiny_shards)
    monkeypatch.setattr(train, "_train_folds", ranks)
    # the page of each run takes seconds
    monkeypatch.setattr(train, "report_run", lambda run, _: write_summary(load_run(run)))
    return ranks


def crossval(ranks: Ranks, cwd: Path, *more: str, seeds: str = "0-1") -> Done:
    arguments = ["--sweep", "train.epochs=1,2", "--seeds", seeds, "--folds", "1-2"]
    return invoke("crossval", "demo", *arguments, *small_run(ranks.shards), *more, cwd=cwd)


def test_killed_sweep_trains_nothing_twice(ranks: Ranks, tmp_path: Path) -> None:
    ranks.killed_at = ("demo-1-seed1", 2)
    assert crossval(ranks, tmp_path).returncode == 130
    before = len(ranks.trained)
    ranks.killed_at = None
    done = crossval(ranks, tmp_path)
    assert done.returncode == 0, done.stderr
    assert before == 5 and ranks.trained == [(name, k) for name in NAMES for k in (1, 2)]
    assert f"all folds of {tmp_path}/runs/demo-1-seed0 are done" in done.stdout
    assert "train.epochs=2 minus train.epochs=1: UAR +" in done.stdout
    sweep = tmp_path / "runs" / "demo.sweep"
    (pair,) = read_json(sweep / "comparison.json")["comparisons"]
    assert (pair["paired"]["seeds"], pair["paired"]["folds"]) == ([0, 1], [1, 2])
    assert [m["run"] for m in read_json(sweep / "sweep.json")["members"]] == NAMES

    # the folder in other commands
    (sweep / "comparison.md").unlink()
    done = invoke("report", sweep, cwd=tmp_path)
    assert (
        done.returncode == 0
        and "| train.epochs=1 | UAR | " in (sweep / "comparison.md").read_text()
    )
    shown = invoke("status", sweep, "--json", cwd=tmp_path).stdout.splitlines()
    assert [Path(json.loads(line)["run"]).name for line in shown] == NAMES
    assert "all folds of" in invoke("cancel", sweep, cwd=tmp_path).stdout
    check_refusal(invoke("logs", sweep, "--fold", "1", cwd=tmp_path), "is a sweep of several runs")


def test_bad_setting_of_a_sweep_creates_nothing(ranks: Ranks, tmp_path: Path) -> None:
    done = crossval(ranks, tmp_path, "--sweep", "train.global_batch=8,7", "--nproc", "2")
    check_refusal(done, "train.global_batch=7 cannot be shared by 2 ranks")
    assert not (tmp_path / "runs").exists()


def test_failing_setting_leaves_the_others(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: RunDir, folds: list[int], *more: object) -> list[int]:
        return [1] if "demo-1" in run.root.name else ranks(run, folds, *more)

    monkeypatch.setattr(train, "_train_folds", fail)
    done = crossval(ranks, tmp_path, seeds="0")
    assert done.returncode == 1
    assert ranks.trained == [("demo-2-seed0", 1), ("demo-2-seed0", 2)]
    assert (
        "| demo-1-seed0 | missing |"
        in (tmp_path / "runs" / "demo.sweep" / "comparison.md").read_text()
    )
