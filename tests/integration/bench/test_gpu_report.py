"""``make gpu-report`` without a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dfer_dist.config.schema import Precision
from tests.helpers.forked import Forked
from tests.helpers.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_report.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu_report", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.engine_full
def test_dry_run_fills_each_table(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = Forked([str(SCRIPT), "--dry-run"], environment, cwd=tmp_path).wait(timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**Dry run on the CPU: it shows nothing about a GPU.**" in done.stdout
    assert done.stdout.count("| equal |") == 4
    row = re.search(r"\| tiny \| 4 = 2 x 2 \|( [0-9.]+ \|){4}  \| [0-9.]+ \|", done.stdout)
    assert row, done.stdout
    assert "the next four losses differ by 0.0e+00" in done.stdout


def test_make_passes_dry_run_on() -> None:
    command = ["make", "-n", "gpu-report", "DRY_RUN=1"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "benchmarks/gpu_report.py --dry-run" in shown


def test_case_after_the_time_limit_is_not_measured(script: ModuleType) -> None:
    report = script.Report(is_dry=True, seconds=0)
    assert report.numbers() == "Numbers: not measured: time is up."
    row = "| tiny | 4 = 2 x 2 | not measured: time is up |"
    assert row in report.steps("", Precision.bf16)
    assert not report.failed


@pytest.mark.parametrize(("apart", "word"), [(0.02, "equal"), (0.2, "**apart**")])
def test_number_beyond_its_tolerance_fails(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, apart: float, word: str
) -> None:
    report = script.Report(is_dry=True, seconds=60)
    monkeypatch.setattr(report, "run", lambda _: {"attention": (apart, 0.03)})
    assert f"| attention | {apart:.1e} | 3e-02 | {word} |" in report.numbers()
    assert report.failed == (apart > 0.03)


def test_step_has_the_utilization_of_a_known_gpu(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = script.Report(is_dry=True, seconds=60)
    found = {"first": 3.0, "seconds": 0.5, "flops": 156e12, "peak_bytes": 2**31}
    monkeypatch.setattr(report, "run", lambda _: found)
    table = report.steps("NVIDIA A100-SXM4-80GB", Precision.bf16)
    assert "| 3.00 | 0.500 | 8.0 | 312 | 100% | 2.00 |" in table
