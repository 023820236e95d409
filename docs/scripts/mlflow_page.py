"""Take pictures of runs in the MLflow UI.

``python docs/scripts/mlflow_page.py runs/demo docs/images/mlflow_page.png``
    A run with its folds.
``python docs/scripts/mlflow_page.py runs/a runs/b docs/images/mlflow_compare.png``
    The table of all runs, the best one first.

Starts ``mlflow ui`` on the sqlite file that the runs used and opens it in headless Chromium
(Debian's, or the one that CHROMIUM names).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.mlflow_runs import tracking_of
from launch.commands.tracking import WORKFLOW, mlflow_server, table_of_runs

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> None:
    runs, picture = [RunDir(Path(word).resolve()) for word in sys.argv[1:-1]], Path(sys.argv[-1])
    tracking = tracking_of(runs[0])
    names = [run.root.name for run in runs]
    with mlflow_server(tracking.uri) as (root, _), browser_page() as page:
        all_runs = f"{root}/#/experiments/{tracking.experiment_id}/runs"
        if len(runs) > 1:
            open_page(page, table_of_runs(all_runs), names)
            page.set_viewport_size({"width": 1500, "height": 420 + 32 * len(runs)})
            page.wait_for_timeout(1500)
        else:
            open_page(page, f"{all_runs}{WORKFLOW}", names)
            show_curves(page, names[0])
        page.screenshot(path=str(picture))


@contextmanager
def browser_page(flags: Sequence[str] = ()) -> Iterator[Page]:
    """A page of a headless Chromium."""
    with sync_playwright() as playwright:
        where = (
            os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        )
        browser = playwright.chromium.launch(executable_path=where, args=[*FLAGS, *flags])
        yield browser.new_page(viewport={"width": 1500, "height": 900})
        browser.close()


def open_page(page: Page, address: str, names: Sequence[str]) -> None:
    """A page of an experiment's runs, with the parent runs ``names`` in its table."""
    page.goto(address)
    for name in names:
        page.locator(".ag-row").get_by_text(name, exact=True).first.wait_for(timeout=60_000)
    close = page.get_by_role("button", name="Close")
    if close.count():
        close.first.click()  # a side panel that MLflow opens by itself


def row_of(page: Page, name: str) -> Locator:
    return page.locator(".ag-row").filter(has=page.get_by_text(name, exact=True)).first


def unfold(page: Page, name: str) -> None:
    """Show the folds of a run below it."""
    row_of(page, name).locator("[col-id*='Run Name'] button").first.click()
    page.get_by_text(f"{name}-fold1").first.wait_for(timeout=20_000)


def show_curves(page: Page, name: str) -> None:
    """Show the charts of the experiment, with the run's folds next to curves and scores."""
    unfold(page, name)
    page.locator("label:has(input[name='runs-view-mode'][value='CHART'])").click()
    search = page.get_by_placeholder("Search metric charts")
    search.wait_for()
    search.fill("loss|war")
    page.wait_for_timeout(6000)  # charts are drawn as their data arrives


def open_comparison(page: Page, names: Sequence[str]) -> None:
    """Open the page that compares runs, from a table that shows them without their folds."""
    for name in names:
        row_of(page, name).locator("input[type=checkbox]").first.check(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("1_scores/war", exact=True).first.wait_for(timeout=60_000)


if __name__ == "__main__":
    main()
