"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfer_dist.data.loading.device import DevicePrefetcher
from dfer_dist.data.loading.loader import Batch


class FakeBatch(SimpleNamespace):
    def pixels(self, device: torch.device) -> Any:
        self.log.append(f"copy {self.name}")
        keep = lambda _: self.log.append(f"keep {self.name}")  # noqa: E731
        return SimpleNamespace(name=self.name, record_stream=keep)


class FakeStream:
    """A stream, and the context in which work goes to it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def wait_stream(self, other: object) -> None:
        self.log.append("wait")


def batches(log: list[str]) -> Iterator[Batch]:
    for name in "abc":
        log.append(f"load {name}")
        yield FakeBatch(name=name, log=log)  # type: ignore[misc]


def train(prefetcher: DevicePrefetcher, log: list[str]) -> None:
    """Take all batches, as the training loop does."""
    while True:
        try:
            batch = next(prefetcher)
        except StopIteration:
            return
        pixels: Any = prefetcher.pixels(batch)
        log.append(f"forward {pixels.name}")
        prefetcher.prefetch()
        log.append(f"backward {pixels.name}")


def test_processor_does_nothing_ahead() -> None:
    log: list[str] = []
    train(DevicePrefetcher(batches(log), torch.device("cpu")), log)
    parts = ("load", "copy", "forward", "backward")
    assert log == [f"{part} {name}" for name in "abc" for part in parts]


def test_gpu_copies_the_next_batch_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: FakeStream(log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: FakeStream(log))
    train(DevicePrefetcher(batches(log), torch.device("cuda", 0)), log)
    assert log == [
        *("load a", "copy a", "forward a", "load b", "copy b", "backward a"),
        *("wait", "keep b", "forward b", "load c", "copy c", "backward b"),
        *("wait", "keep c", "forward c", "backward c"),
    ]
