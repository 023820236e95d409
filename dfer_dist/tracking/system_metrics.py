"""Log the load of a machine during training: CPU, memory, network, disk and GPUs."""

from __future__ import annotations

import logging
import re
import socket
import threading
from contextlib import suppress
from typing import Any

from dfer_dist.runs.layout import FoldDir
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.tracking.uploader import Connect, import_mlflow, reason

logger = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds


class SystemMonitor:
    """A thread that measures with MLflow's monitors, on each machine of a job.

    The metrics go to a file of their own, which is uploaded like those of a fold. MLflow's own
    thread would end the first time its server does not answer.
    """

    def __init__(self, fold: FoldDir, connect: Connect | None) -> None:
        self.node = re.sub(r"[^\w-]", "_", socket.gethostname().partition(".")[0])
        path = fold.system(self.node)
        self._log = MetricsLog(path, path.with_suffix(".sent"), connect)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system", daemon=True)

    def start(self) -> None:
        """Start to measure and to upload."""
        self._log.start()
        self._thread.start()

    def close(self) -> None:
        """Stop measuring and send the rest, in five seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1)
        self._log.close(timeout=5)

    def _run(self) -> None:
        try:
            monitors = _monitors()
            step = self._log.path.read_bytes().count(b"\n")
            while not self._stop.wait(INTERVAL):
                step += 1
                metrics = {f"system/{self.node}/{k}": v for k, v in _measure(monitors).items()}
                self._log.log(step, None, metrics)
                self._log.commit(self._log.size)
        except Exception as e:
            # Training does not depend on these metrics.
            logger.warning(f"no more system metrics of this machine: {reason(e)}")


def _monitors() -> list[Any]:
    import_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for gpu_monitor in (GPUMonitor, ROCMMonitor):
        # Without such a GPU, each library raises an error of its own.
        with suppress(Exception):
            found.append(gpu_monitor())
    return found


def _measure(monitors: list[Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics |= {k: float(v) for k, v in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return metrics
