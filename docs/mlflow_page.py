"""Take a picture of a run's page in the real MLflow UI: ``python docs/mlflow_page.py runs/demo docs/mlflow_page.png``.

Starts ``mlflow ui`` on the store that the run used and opens it in headless Chromium (Debian's, or the one CHROMIUM names).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from dfer_dist.rundir import RunDir

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def main() -> None:
    run, picture = RunDir(Path(sys.argv[1]).resolve()), Path(sys.argv[2])
    tracking = run.describe()["tracking"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        tracking["uri"],
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    server = subprocess.Popen(command, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, stdout=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/health")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome"),
                args=FLAGS,
            )
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            _open_runs(page, f"http://127.0.0.1:{port}", tracking["experiment_id"], run.root.name)
            page.screenshot(path=str(picture))
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def _wait(url: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            time.sleep(0.25)
    sys.exit(f"{url} did not come up")


def _open_runs(page: Page, root: str, experiment_id: str, name: str) -> None:
    """The chart page of the experiment, with the run's folds unfolded beside curves and scores."""
    page.goto(f"{root}/#/experiments/{experiment_id}/runs")
    page.locator(".ag-row").get_by_text(name, exact=True).first.wait_for(timeout=60_000)
    close = page.get_by_role("button", name="Close")
    if close.count():
        close.first.click()  # a side panel that MLflow opens by itself
    page.get_by_text("Model training", exact=True).click()  # the page opens on MLflow's tools for language models
    row = page.locator(".ag-row").filter(has=page.get_by_text(name, exact=True)).first
    row.locator("[col-id*='Run Name'] button").first.click()
    page.get_by_text(f"{name}-fold1").first.wait_for(timeout=20_000)
    page.locator("label:has(input[name='runs-view-mode'][value='CHART'])").click()
    search = page.get_by_placeholder("Search metric charts")
    search.wait_for()
    search.fill("loss|war")
    page.wait_for_timeout(6000)  # charts are drawn as their data arrives


if __name__ == "__main__":
    main()
