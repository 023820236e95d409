"""Load of a machine while it trains: processors, memory, network, disk, and GPUs where NVIDIA's or AMD's library finds some."""

from __future__ import annotations

import logging
import re
import socket
import threading
from typing import Any

from dfer_dist.runs.layout import FoldDir
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.tracking.uploader import Connect, reason

logger = logging.getLogger(__name__)

EVERY = 10.0  # seconds


class SystemMonitor:
    """A thread that measures with MLflow's own monitors, into a file of its own that is sent as a fold's figures are.

    One on each machine of a job. MLflow's ready-made thread would end for good the first time its server does not answer.
    """

    def __init__(self, fold: FoldDir, connect: Connect) -> None:
        self.node = re.sub(r"[^\w-]", "_", socket.gethostname().partition(".")[0])
        path = fold.system(self.node)
        self._tracker = MetricsLog(path, path.with_suffix(".sent"), connect)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what there is, five seconds at most."""
        self._over.set()
        self._thread.join(1)
        self._tracker.close(timeout=5)

    def _run(self) -> None:
        try:
            monitors = _monitors()
            step = self._tracker.path.read_bytes().count(b"\n")
            while not self._over.wait(EVERY):
                step += 1
                self._tracker.log(
                    step,
                    None,
                    {f"system/{self.node}/{k}": v for k, v in _measure(monitors).items()},
                )
                self._tracker.commit(self._tracker.size)
        except Exception as e:  # a machine that does not tell is no reason to stop
            logger.warning(f"no more figures of this machine's load: {reason(e)}")


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for gpus in (GPUMonitor, ROCMMonitor):
        try:
            found.append(gpus())
        except Exception:  # none of this kind: each library says so in its own way
            continue
    return found


def _measure(monitors: list[Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        figures |= {k: float(v) for k, v in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return figures
