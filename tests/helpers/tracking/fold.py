"""Log a fold without training, in its own process: ``fold.py RUN FOLD LINES SECONDS_A_LINE``.

The code that logs and uploads is real; no result is written. Prints the seconds of the slowest line
and of all lines.
"""

from __future__ import annotations

import random
import sys
import time
from functools import partial
from pathlib import Path

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.status import Attempt
from dfer_dist.tracking import system_metrics, uploader
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.tracking.mlflow_runs import connect_child
from dfer_dist.tracking.sync import finalize_run
from dfer_dist.tracking.system_metrics import SystemMonitor


def main() -> None:
    run, fold, lines, pause = (
        RunDir(Path(sys.argv[1])),
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]),
    )
    uploader._RETRY_SECONDS, system_metrics.INTERVAL = 1.0, 0.5
    where, draw = run.fold(fold), random.Random(fold)
    attempt = Attempt(where, 2, True, "a processor")
    connect = partial(connect_child, run, fold)
    metrics_log = MetricsLog(where.metrics, where.sent, partial(connect, running=True), 0)
    metrics_log.start()
    monitor = SystemMonitor(where, partial(connect, running=False))
    monitor.start()
    attempt.begin(0, lines, 0)
    begin, longest = time.perf_counter(), 0.0
    for step in range(1, lines + 1):
        time.sleep(pause)
        start = time.perf_counter()
        metrics_log.log(
            step,
            step // 50,
            {
                "loss": 2 / step,
                **{f"figure_{i}": draw.random() for i in range(9)},
                "loss_spike": 0,
                "lost_clips": step // 70,
            },
        )
        if step % 20 == 0:
            metrics_log.commit(metrics_log.size)
        longest = max(longest, time.perf_counter() - start)
    print(longest, time.perf_counter() - begin)
    deadline = time.monotonic() + 60  # on busy cores MLflow's monitors take long to be imported
    while not where.system(monitor.node).stat().st_size and time.monotonic() < deadline:
        time.sleep(0.1)
    metrics_log.commit(metrics_log.size)
    monitor.close()
    metrics_log.close(partial(finalize_run, run, fold, "FINISHED"))
    attempt.end("DONE", "all steps done")


if __name__ == "__main__":
    main()
