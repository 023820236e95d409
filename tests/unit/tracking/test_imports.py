"""Threads that upload and measure import MLflow one after the other."""

from __future__ import annotations

import builtins
import threading
import time
from typing import Any

import pytest

from dfer_dist.tracking import system_metrics, uploader


def test_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_uploading_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Queue:
        num_sent_bytes = 0

        def acquire(self, size: int) -> bool:
            return True

        def send(self, *_: Any) -> None:
            calls.append("sent")

        def release(self) -> None:
            pass

    calls: list[str] = []
    monkeypatch.setattr(uploader, "import_mlflow", lambda: calls.append("imported"))
    thread = uploader.Uploader(Queue(), lambda: (None, "run"), 0)  # type: ignore[arg-type, return-value]
    assert thread.close(None, timeout=10)
    assert calls[:2] == ["imported", "sent"]
