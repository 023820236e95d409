"""Preemption by a signal or a deadline."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from dfer_dist.distributed import preemption
from dfer_dist.distributed.preemption import PreemptionHandler

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@pytest.fixture
def _restored_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("job_end", "deadline", "earlier"),
    [(None, None, float("inf")), ("1000", None, 1000), ("1000", 900.0, 900), (None, 5.0, 5)],
)
def test_earlier_deadline_counts(
    monkeypatch: pytest.MonkeyPatch, job_end: str | None, deadline: float | None, earlier: float
) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if job_end:
        monkeypatch.setenv("SLURM_JOB_END_TIME", job_end)
    handler = PreemptionHandler()
    handler.set_deadline(deadline)
    assert handler.deadline == earlier


def test_time_is_up_when_saving_just_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    handler = PreemptionHandler()
    handler.set_deadline(now + preemption._MARGIN + 100)
    handler.seconds_needed = 99
    assert not handler.preempted
    assert handler.reason is None
    handler.seconds_needed = 101
    assert handler.preempted
    assert handler.reason == "time is up"


@pytest.mark.usefixtures("_restored_handlers")
def test_signal_is_named_as_the_reason() -> None:
    handler = PreemptionHandler().install()
    assert not handler.preempted
    signal.raise_signal(signal.SIGUSR2)
    assert handler.preempted
    assert handler.reason == "SIGUSR2"
