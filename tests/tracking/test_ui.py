"""Compare two cross-validations in the MLflow UI, in a browser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow_page import browser_page, open_comparison, open_runs, unfold

from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.results import load_run
from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import write_summary
from tests.helpers.tracking.load import Trial, write_result
from tests.helpers.tracking.servers import Site


def finished(site: Site, shards: Index, root: Path, name: str, seed: int) -> Trial:
    trial = Trial(site, shards, root, site.mlflow.uri, f"{name}-{time.time_ns()}")
    trial.open()
    for k in trial.run.info().folds:
        where = trial.run.fold(k)
        where.root.mkdir()
        where.metrics.write_text(
            f'{{"step": 1, "epoch": 0, "time": {time.time():.3f}, "loss": {seed + k}}}\n'
        )
        write_result(trial.run, k, seed)
        write_json(where.status, {"state": "DONE", "attempts": []})
    write_summary(load_run(trial.run))
    trial.end()
    return trial


@pytest.mark.tracking
def test_browser_compares_two_runs(site: Site, tiny_shards: Index, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    trials = [
        finished(site, tiny_shards, tmp_path, name, seed)
        for name, seed in (("one", 10), ("two", 20))
    ]
    names = [trial.name for trial in trials]
    experiment = tracking_of(trials[0].run).experiment_id
    with browser_page() as page:
        open_runs(page, site.mlflow.uri, experiment, names)
        for name in names:
            unfold(page, name)
            for k in range(1, 6):
                assert page.get_by_text(f"{name}-fold{k}", exact=True).count()
    # A new page, since a parent is selected with its unfolded children.
    with browser_page() as page:
        open_runs(page, site.mlflow.uri, experiment, names)
        open_comparison(page, names)
        page.screenshot(path=str(tmp_path / "compare.png"))
        text = page.inner_text("body")
        assert "Comparing 2 Runs" in text
    means = [read_json(trial.run.summary)["war"]["mean"] for trial in trials]
    assert means[0] != means[1]
    for name, mean in zip(names, means, strict=True):
        assert name in text and f"{mean:.2f}"[:-1] in text
