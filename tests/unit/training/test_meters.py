"""Throughput and step length."""

from __future__ import annotations

import time

import pytest

from dfer_dist.training.meters import Meter


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
