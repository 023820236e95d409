"""Fixtures that many tests share: a data set small enough to pack in seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests share few cores
for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
    os.environ.pop(variable, None)  # the runs of tests are in their own folders

import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.runs.layout import RunDir
from tests.helpers.data.clips import write_clip
from tests.helpers.training.commands import dfer, one_epoch

if TYPE_CHECKING:
    from tests.helpers.models.exported import Case


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``frames/`` and ``lists/``; read only.

    60 clips of 3 to 30 JPEGs, 48 x 40 pixels; five folds of 12 clips, seven classes.
    """
    root = tmp_path_factory.mktemp("tiny")
    rows = [(f"{i:05d}", 3 + i * 11 % 28, i // 5 % 7, i % 5 + 1) for i in range(60)]
    for i, (name, frames, _, _) in enumerate(rows):
        write_clip(root / "frames" / name, frames, seed=i)
    (root / "lists").mkdir()
    for k in range(1, 6):
        for part in ("train", "test"):
            lines = [
                f"{name} {n} {label}"
                for name, n, label, fold in rows
                if (fold == k) == (part == "test")
            ]
            (root / "lists" / f"TINY_set_{k}_{part}.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="session")
def tiny_shards(tiny_source: Path) -> Index:
    """``tiny_source`` packed as dfew, at most five clips a shard; read only."""
    records = read_lists("dfew", tiny_source / "frames", tiny_source / "lists")
    return pack(records, "dfew", tiny_source / "shards", clips_per_shard=5, workers=1)


@pytest.fixture(scope="session")
def trained(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of fold 2 of ``tiny_shards``, trained for an epoch in float32 on one rank; read only.

    Without tracking.
    """
    runs = tmp_path_factory.mktemp("trained")
    arguments = one_epoch(tiny_shards, runs)
    dfer("train", "demo", "--fold", "2", "--nproc", "1", "--name", "one", *arguments)
    return RunDir(runs / "one")


@pytest.fixture(scope="session")
def exported(trained: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The fold of ``trained``, exported; read only."""
    # torch, for the tests that need it
    from tests.helpers.models.exported import export_fold

    return export_fold(trained.fold(2), tmp_path_factory.mktemp("exported") / "model")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test fails the run: what it needs should have been installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter.stats.get("skipped"):
        reporter.write_line(
            "failed: a test was skipped, and in CI none may be (the reasons stand above)", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
