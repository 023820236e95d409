"""Send the comparison of a sweep to its run at the tracking server."""

from __future__ import annotations

import re

from dfer_dist.runs.sweep import SweepDir
from dfer_dist.tracking.metric_names import CURRENT
from dfer_dist.tracking.mlflow_runs import make_runs, tracking_of
from dfer_dist.tracking.notes import set_description
from dfer_dist.tracking.server import client
from dfer_dist.tracking.sweeps import sweep_status
from dfer_dist.tracking.sync import send_files
from dfer_dist.utils.files import read_json

_FILES = ["comparison.md", "comparison.html", "comparison.tex", "comparison.json", "sweep.json"]
# of a search
_FILES += ["search.json", "trials.csv", "best.yaml"]


def sync_sweep(sweep: SweepDir) -> int:
    """Send what the run of a sweep lacks: the comparison, its scores and its status.

    Returns
    -------
    int
        The number of files and changes that were sent; 0 for a sweep without a server.

    Raises
    ------
    Exception
        Whatever MLflow raises.
    """
    tracked = [run for run in sweep.runs() if run.info().tracking]
    if not tracked:
        return 0
    api = client(tracking_of(tracked[0]).uri)
    make_runs(tracked[0], api, check=True)
    at = api.get_run(str(sweep.info().run_id))
    files = [path for name in _FILES if (path := sweep.root / name).is_file()]
    sent = send_files(api, at.info.run_id, sweep.root / "files.sent", {f.name: f for f in files})
    report = sweep.root / "comparison.md"
    if report.is_file():
        sent += set_description(api, at, report.read_text(encoding="utf-8"))
    for name, value in _scores(sweep).items():
        if at.data.metrics.get(name) != value:
            api.log_metric(at.info.run_id, name, value)
            sent += 1
    status = sweep_status(sweep)
    if status not in (None, at.info.status):
        api.set_terminated(at.info.run_id, status)
        sent += 1
    return sent


def _scores(sweep: SweepDir) -> dict[str, float]:
    """Return the means of each setting, and the differences, by names that MLflow takes."""
    path, out = sweep.root / "comparison.json", {}
    values = read_json(path) if path.is_file() else {}
    for kind, items in (("", "settings"), (" difference", "comparisons")):
        for item in values.get(items, []):
            scores = item.get("scores") or (kind and item.get("paired"))
            name = re.sub(r"[^\w .-]+", "_", item.get("name") or item["second"])
            for metric in ("uar", "war"):
                if scores and metric in scores and "by_seed_and_fold" in scores[metric]:
                    section = CURRENT.of(f"{metric}_mean")
                    out[f"{section}{kind} {name}"] = float(scores[metric]["value"])
    return out
