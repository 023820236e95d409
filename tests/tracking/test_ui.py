"""Compare cross-validations in the MLflow UI, in a browser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow_page import browser_page, open_comparison, open_page, unfold

from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.results import load_run
from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.utils.files import read_json, write_json
from launch.commands.tracking import WORKFLOW, table_of_runs
from tests.helpers.made_runs import write_summary
from tests.helpers.tracking.load import Trial, write_result
from tests.helpers.tracking.servers import Site

# Seed of the predictions, ranks and backbone of four runs.
RUNS = [
    (10, 2, "ViT-B-32-quickgelu"),
    (20, 4, "ViT-L-14-quickgelu"),
    (30, 8, "ViT-B-16-quickgelu"),
    (40, 1, "ViT-H-14-quickgelu"),
]


def finished(site: Site, shards: Index, root: Path, seed: int, ranks: int, backbone: str) -> Trial:
    name = f"run{seed}-{time.time_ns()}"
    trial = Trial(site, shards, root, site.mlflow.uri, name)
    # apart from the runs of other tests on this server
    trial.open(f"model.backbone={backbone}", "tracking.experiment=best-of-four")
    for k in trial.run.info().folds:
        where = trial.run.fold(k)
        where.root.mkdir()
        where.metrics.write_text(
            f'{{"step": 1, "epoch": 0, "time": {time.time():.3f}, "loss": {seed + k}}}\n'
        )
        write_result(trial.run, k, seed)
        write_json(where.status, {"state": "DONE", "attempts": [{"world_size": ranks}]})
    write_summary(load_run(trial.run))
    trial.end()
    return trial


@pytest.mark.tracking
def test_browser_shows_the_best_of_four_runs(
    site: Site, tiny_shards: Index, tmp_path: Path
) -> None:
    pytest.importorskip("playwright")
    trials = [finished(site, tiny_shards, tmp_path, *how) for how in RUNS]
    names = [trial.name for trial in trials]
    all_runs = f"{site.mlflow.uri}/#/experiments/{tracking_of(trials[0].run).experiment_id}/runs"
    uars = [read_json(trial.run.summary)["uar"]["mean"] for trial in trials]
    with browser_page() as page:
        open_page(page, table_of_runs(all_runs), names)
        page.screenshot(path=str(tmp_path / "table.png"))
        rows = [page.locator(f".ag-row[row-index='{i}']").all_inner_texts() for i in range(4)]
        best_first = sorted(zip(uars, names, RUNS, strict=True), reverse=True)
        for row, (uar, name, (_, ranks, backbone)) in zip(rows, best_first, strict=True):
            cells = "\n".join(row).split("\n")
            assert name in cells and str(ranks) in cells and backbone in cells
            assert any(cell.startswith(f"{uar:.3f}"[:-1]) for cell in cells)
        open_comparison(page, names)
        page.screenshot(path=str(tmp_path / "compare.png"), full_page=True)
        text = page.inner_text("body")
        assert "Comparing 4 Runs" in text
        for uar, name, (_, _, backbone) in best_first:
            assert name in text and backbone in text and f"{uar:.2f}"[:-1] in text
    # A new page, since a parent is selected with its unfolded children.
    with browser_page() as page:
        open_page(page, f"{all_runs}{WORKFLOW}", names)
        unfold(page, names[0])
        for k in range(1, 6):
            assert page.get_by_text(f"{names[0]}-fold{k}", exact=True).count()
