"""The metrics of a fold in training: its metrics file, system metrics and tracking run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from dfer_dist.distributed.process_group import Ranks
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.metrics_log import FAILED, MetricsLog
from dfer_dist.tracking.mlflow_runs import job_connection, metric_names
from dfer_dist.tracking.sync import finalize_run
from dfer_dist.tracking.system_metrics import SystemMonitor


@dataclass(frozen=True)
class FoldTracking:
    """Logs the metrics of a fold.

    Attributes
    ----------
    run : RunDir
    fold : int
    metrics_log : MetricsLog or None
        Only on rank 0.
    monitor : SystemMonitor or None
        Only on the first rank of each node of a tracked run.
    """

    run: RunDir
    fold: int
    metrics_log: MetricsLog | None
    monitor: SystemMonitor | None

    @property
    def num_bytes(self) -> int:
        """Bytes of all lines logged so far; 0 on ranks other than 0."""
        return self.metrics_log.size if self.metrics_log else 0

    def start(self) -> None:
        """Start the threads that measure and upload.

        Their imports would slow down those that training waits for.
        """
        if self.monitor:
            self.monitor.start()
        if self.metrics_log:
            self.metrics_log.start()

    def num_rolled_back(self, step: int) -> int:
        """Return how many steps of an earlier attempt after ``step`` are trained again."""
        return self.metrics_log.num_rolled_back(step) if self.metrics_log else 0

    def log(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append a line to the metrics file; ``step`` and ``epoch`` count those done."""
        if self.metrics_log:
            self.metrics_log.log(step, epoch, dict(values))

    def close(self, status: str) -> None:
        """Send what may be sent and end the tracking run with ``status``. Not collective.

        Unless training failed, no line will be rolled back: all are sent.
        """
        if self.monitor:
            self.monitor.close()
        if self.metrics_log:
            if status != FAILED:
                self.metrics_log.commit(self.metrics_log.size)
            self.metrics_log.close(partial(finalize_run, self.run, self.fold, status))


def build_tracking(*, run: RunDir, fold: int, ranks: Ranks, keep_bytes: int) -> FoldTracking:
    """Open the metrics file of a fold.

    Parameters
    ----------
    run : RunDir
    fold : int
    ranks : Ranks
    keep_bytes : int
        Bytes of the metrics file to keep; what follows them is trained again.
    """
    folder = run.fold(fold)
    metrics_log, monitor = None, None
    if ranks.is_main:
        connect = job_connection(run, fold, running=True)
        names = metric_names(run)
        metrics_log = MetricsLog(folder.metrics, folder.sent, connect, keep_bytes, names)
    if ranks.local_rank == 0 and run.info().tracking:
        monitor = SystemMonitor(folder, job_connection(run, fold, running=False))
    return FoldTracking(run=run, fold=fold, metrics_log=metrics_log, monitor=monitor)
