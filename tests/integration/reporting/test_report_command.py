"""`dfer report`, its page in a browser, and what importing reports costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.files import write_report
from dfer_dist.runs.layout import RunDir
from tests.helpers.cli import dfer, invoke
from tests.helpers.forked import Done, Forked
from tests.helpers.made_runs import (
    make_misclassified_run,
    make_run,
    make_run_with_gaps,
)
from tests.helpers.paths import DFER, ROOT


@pytest.fixture
def whole(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "whole", shuffled=True)


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run_with_gaps(tmp_path_factory.mktemp("runs"))
    write_report(run)
    return run


@pytest.fixture
def shown(tiny_shards: Index, tmp_path: Path) -> RunDir:
    return make_misclassified_run(tmp_path / "shown", tiny_shards)


def report(*args: object) -> Done:
    return dfer("report", *args, cwd=Path.cwd())


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}],
    ids=["ASCII file names", "ASCII terminal"],
)
def test_report_under_an_ascii_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    run = make_run(tmp_path / "meine Läufe" / "läuft 日本 1")
    locale = {"LC_ALL": "C", "LANG": "C", "COLUMNS": "200"} | variables
    done = subprocess.run(
        [DFER, "report", run.root], env=os.environ | locale, capture_output=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"UAR" in done.stdout
    assert "läuft 日本 1" in run.page.read_text(encoding="utf-8")


def test_report_command_writes_files_and_rejects_bad_options(
    shown: RunDir, whole: RunDir, tmp_path: Path
) -> None:
    done = report(shown.root, "--against", "published", "--errors", 2, "--share-frames")
    assert done.returncode == 0, done.stderr
    assert "2 errors with frames of people" in done.stdout
    assert "DFER-CLIP" in done.stdout
    assert "3 of 5 folds missing" in done.stdout
    verdict, tables, _ = done.stdout.partition("┏")
    assert tables
    assert "mean over 2 of 5 folds" in verdict
    assert "data:image/png" in shown.page.read_text()
    for path in (shown.page, shown.report, shown.latex):
        assert "DFER-CLIP" in path.read_text()
    done = report(whole.root, shown.root, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "nothing can be compared clip by clip" in " ".join(done.stdout.split())
    assert "shown against whole: nothing is shown; their UAR, " in done.stdout
    assert (tmp_path / "out" / "comparison.html").exists()
    for bad, message in (
        ([shown.root, "--share-frames"], "give --errors N too"),
        ([shown.root, "--out", tmp_path], "--out is for a comparison"),
        ([whole.root, tmp_path], "is not a run"),
        ([shown.root, "--against", "papers"], "--against papers"),
    ):
        done = invoke("report", *bad, cwd=Path.cwd())
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_browser_shows_page_at_any_width(holes: RunDir, tmp_path: Path) -> None:
    script = ROOT / "docs" / "scripts" / "report_page.py"
    for width in (360, 1180):
        picture = tmp_path / f"{width}.png"
        command = [str(script), str(holes.page), str(picture), "--width", str(width)]
        done = Forked(command, os.environ).wait(timeout=120)
        assert done.returncode == 0, done.stderr
        with Image.open(picture) as image:
            assert image.width == width
            colours = {c for _, c in image.convert("RGB").getcolors(2**24) or []}
            assert any(
                abs(r - 0x00) + abs(g - 0x72) + abs(b - 0xB2) < 20 for r, g, b in colours
            )  # bars of UAR are drawn


def test_importing_reporting_loads_no_heavy_library() -> None:
    code = "import sys, dfer_dist.reporting.files; print(*{'torch', 'matplotlib', 'sklearn', 'pyarrow', 'rich'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )
