"""Throughput, step length and log lines."""

from __future__ import annotations

import logging
import re
import time

import pytest
import torch

from dfer_dist.config.schema import Config, TrainConfig
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.runs.records import Scores
from dfer_dist.training.meters import Meter, ProgressLog
from dfer_dist.training.speed.utilization import Utilization

SCORES = Scores(n=4, uar=40.0, war=50.0, recall={}, support={}, confusion=[], classes=[], absent=[])


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_longest_step_is_one_of_the_last_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation between steps does not count."""
    clock = Clock(monkeypatch)
    meter = Meter()
    assert meter.longest_step == 0

    def step(seconds: float) -> None:
        meter.start_step()
        clock.now += seconds
        meter.end_step(8)
        clock.now += 500

    step(30)
    for _ in range(60):
        step(2)
    assert meter.longest_step == 30
    for _ in range(60):
        step(3)
    assert meter.longest_step == 3
    assert meter.mean_step == pytest.approx(2.6)


def test_windows_of_two_readers_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter()
    for seconds, waited in ((4.0, 1.0), (2.0, 0.0)):
        if waited == 0:
            assert meter.throughput("log") == pytest.approx((3.0, 1 / 4))
        meter.start_step()
        with meter.waiting():
            clock.now += waited
        clock.now += seconds - waited
        meter.end_step(12)
    assert meter.throughput("metrics") == pytest.approx((4.0, 1 / 6))
    assert meter.throughput("log") == pytest.approx((6.0, 0.0))


@pytest.fixture
def progress(caplog: pytest.LogCaptureFixture) -> ProgressLog:
    caplog.set_level(logging.INFO, "dfer_dist")
    config = TrainConfig(epochs=2, print_every=4)
    meter = Meter()
    for _ in range(3):
        meter.start_step()
        meter.end_step(8)
    cpu = torch.device("cpu")
    utilization = Utilization(Config(), [], Ranks(0, 1, 0, cpu))
    utilization.flops_per_clip, utilization.peak = 1e9, 1e12
    return ProgressLog(config, steps_per_epoch=5, meter=meter, utilization=utilization, device=cpu)


def test_step_has_a_line_every_print_every_and_at_the_end(
    progress: ProgressLog, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(1, 11):
        progress.log_step(step, 1.5, {"image": 1e-5, "prompt": 1e-3})
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in lines] == [
        "step 4 of 10, epoch 1 of 2",
        "step 8 of 10, epoch 2 of 2",
        "step 10 of 10, epoch 2 of 2",
    ]
    assert "loss 1.5000, lr image 1.00e-05, prompt 1.00e-03, " in lines[0]
    assert re.search(r"clips/s, \S+ TFLOP/s, MFU \d+%, data wait 0%, 0:00:00 left", lines[0])


def test_epoch_has_a_line_with_scores_where_validated(
    progress: ProgressLog, caplog: pytest.LogCaptureFixture
) -> None:
    progress.log_epoch(1, SCORES, "val")
    progress.log_epoch(2, None, "val")
    validated, plain = (record.getMessage() for record in caplog.records)
    assert validated.startswith("epoch 1 of 2: val UAR 40.00, WAR 50.00, 0.0 s, peak memory ")
    assert plain.startswith("epoch 2 of 2: 0.0 s, peak memory ")
