"""A table of the faults, printed at the end of a run of these tests."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from tests.helpers.training.trials import Trial, same_in_mlflow


@dataclass
class Row:
    tried: int = 0
    survived: int = 0
    num_rolled_back: list[int] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)


TABLE: dict[str, Row] = {}


@pytest.fixture(scope="session")
def undisturbed(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial(tiny_shards, tmp_path_factory.mktemp("undisturbed"))
    trial.finish(trial.start(), again=0)
    same_in_mlflow(trial)
    return trial


@pytest.fixture
def trial(tiny_shards: Index, tmp_path: Path) -> Trial:
    return Trial(tiny_shards, tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a fault while its run folder still exists."""
    report = yield
    given = getattr(item, "funcargs", {})
    if report.when == "call" and not report.skipped and "trial" in given:
        trial, undisturbed = given["trial"], given["undisturbed"]
        row = TABLE.setdefault(trial.fault, Row())
        row.tried += 1
        if report.passed:
            row.survived += 1
            row.num_rolled_back.append(trial.num_rolled_back)
            row.lost.append(trial.seconds - undisturbed.seconds)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TABLE:
        return
    write = terminalreporter.write_line
    terminalreporter.section("faults")
    header = f"{'fault':44s} {'tried':>6s} {'survived':>9s}"
    write(f"{header} {'max steps repeated':>18s} {'max seconds lost':>19s}")
    for fault, row in TABLE.items():
        maxima = f"{max(row.num_rolled_back):18d} {max(row.lost):19.1f}" if row.survived else ""
        write(f"{fault:44s} {row.tried:6d} {row.survived:9d} {maxima}")
