"""The threads that upload and measure: imports of MLflow, and a lock that another process has."""

from __future__ import annotations

import builtins
import importlib
import threading
import time
from typing import Any

import pytest

from dfer_dist.tracking import system_metrics, uploader


def test_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # whose own modules import each other
    importlib.import_module("mlflow.tracking")
    real, active, most = builtins.__import__, list[str](), list[int]()

    def slow(name: str, *arguments: Any, **options: Any) -> Any:
        if name != "mlflow.tracking":
            return real(name, *arguments, **options)
        active.append(name)
        most.append(len(active))
        time.sleep(0.02)
        module = real(name, *arguments, **options)
        active.pop()
        return module

    monkeypatch.setattr(builtins, "__import__", slow)
    threads = [threading.Thread(target=uploader.import_mlflow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_measuring_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(system_metrics, "import_mlflow", lambda: calls.append("imported"))
    assert len(system_metrics._monitors()) >= 3
    assert calls == ["imported"]


class Queue:
    """A queue without lines, whose lock another process has for the first tries."""

    num_sent_bytes = 0

    def __init__(self, calls: list[str], busy: int = 0) -> None:
        self.calls, self.busy = calls, busy

    def acquire(self, size: int) -> bool:
        self.busy -= 1
        return self.busy < 0

    def send(self, *_: Any) -> None:
        self.calls.append("sent")

    def release(self) -> None:
        self.calls.append("released")


def start(queue: Queue) -> uploader.Uploader:
    return uploader.Uploader(queue, lambda: (None, "run"), 0)  # type: ignore[arg-type, return-value]


def test_uploading_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(uploader, "import_mlflow", lambda: calls.append("imported"))
    assert start(Queue(calls)).close(None, timeout=10)
    assert calls[:2] == ["imported", "sent"]


def test_closing_waits_for_a_lock_that_is_released_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a worker that outlives its killed rank by a moment, in a fold of a few steps."""
    calls: list[str] = []
    monkeypatch.setattr(uploader, "_LOCK_SECONDS", 0.01)
    thread = start(Queue(calls, busy=3))
    assert thread.close(None, timeout=10)
    assert calls[-2:] == ["sent", "released"]
    queue = Queue(calls, busy=10**9)
    stays = start(queue)
    assert not stays.close(None, timeout=0.1)
    # its thread may end now
    queue.busy = 0
