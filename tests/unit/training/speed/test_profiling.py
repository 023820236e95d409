"""Traces of training steps by torch's profiler."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from torch.profiler import record_function

from dfer_dist.training.speed.profiling import StepProfiler


def train(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        with record_function("forward"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step(step + 1)


def names(trace: Path) -> set[str]:
    with gzip.open(trace, "rt") as f:
        return {str(event.get("name")) for event in json.load(f)["traceEvents"]}


def test_trace_has_the_steps_after_the_first_three(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "profile", 2)
    train(profiler, range(10, 20))
    profiler.stop()
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps-14-15.json.gz"
    assert {"forward", "aten::mm", "ProfilerStep#3", "ProfilerStep#4"} <= names(trace)
    assert "ProfilerStep#5" not in names(trace)


def test_resumed_fold_is_traced_once(tmp_path: Path) -> None:
    """An attempt that ends before its trace is whole leaves none."""
    for steps in (range(3), range(3, 10), range(10, 20)):
        train(StepProfiler(tmp_path, 1), steps)
    assert [file.name for file in tmp_path.iterdir()] == ["steps-7-7.json.gz"]


def test_end_of_training_writes_what_is_traced(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 100)
    train(profiler, range(6))
    profiler.stop()
    (trace,) = tmp_path.iterdir()
    assert trace.name == "steps-4-6.json.gz"
    assert "forward" in names(trace)


def test_nothing_is_traced_by_default(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 0)
    train(profiler, range(6))
    profiler.stop()
    assert not list(tmp_path.iterdir())
