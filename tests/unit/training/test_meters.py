"""Throughput, step length and loss spikes."""

from __future__ import annotations

import time

import pytest

from dfer_dist.training.meters import Meter, SpikeDetector


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
    start = meter.snapshot()
    for seconds, waited in ((4.0, 1.0), (2.0, 0.0)):
        middle = meter.snapshot()
        meter.start_step()
        with meter.waiting():
            clock.now += waited
        clock.now += seconds - waited
        meter.end_step(12)
    assert meter.since(start) == pytest.approx((4.0, 1 / 6))
    assert meter.since(middle) == pytest.approx((6.0, 0.0))


def test_loss_far_above_the_last_ones_is_a_spike() -> None:
    spikes = SpikeDetector()
    calm = [2 - 0.01 * i + 0.02 * (-1) ** i for i in range(40)]
    assert not any(spikes.is_spike(x) for x in calm)
    assert spikes.is_spike(3.0)
    assert not spikes.is_spike(1.62)
    assert not spikes.is_spike(float("nan"))
    assert len(spikes.recent) == 42


def test_resumed_detector_has_the_same_window() -> None:
    one, other = SpikeDetector(), SpikeDetector()
    losses = [2 + 0.1 * ((7 * i) % 5) for i in range(70)]
    for x in losses:
        one.is_spike(x)
    for x in losses[:33]:
        other.is_spike(x)
    resumed = SpikeDetector(other.recent)
    for x in losses[33:]:
        resumed.is_spike(x)
    assert resumed.recent == one.recent
    assert len(one.recent) == SpikeDetector.WINDOW


def test_first_losses_are_no_spikes() -> None:
    spikes = SpikeDetector()
    assert not any(spikes.is_spike(x) for x in (1.0, 50.0, 1.0, 50.0))
