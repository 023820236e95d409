"""`dfer report`, its page in a browser, and what importing reports costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.files import write_comparison, write_report
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


# of tables that are wider than their frame: whether a hint says so, and how far the first column
# moves when they are scrolled
SCROLLED = """
[...document.querySelectorAll('.table')].filter(t => t.scrollWidth > t.clientWidth + 1).map(t => {
  const cell = t.querySelector('td'), before = cell.getBoundingClientRect().left;
  t.scrollLeft = 120;
  const hint = t.parentElement.querySelector('.hint');
  return [!!hint && hint.offsetHeight > 0, cell.getBoundingClientRect().left - before];
})
"""
# the right end of WAR in the first table, and the lower end of its card
WAR_ENDS = """
[[...document.querySelectorAll('th')].find(x => x.textContent == 'WAR %'),
 document.querySelector('.card.war')].map((x, i) => {
  const box = x.getBoundingClientRect();
  return i ? box.bottom : box.right;
})
"""
COLORS = """
[...document.querySelectorAll('h1, td, .note, .subtitle, nav a, .card b, summary')].map(
  x => getComputedStyle(x).color)
"""


def luminance(color: str) -> float:
    """Return the relative luminance of a color such as ``rgb(1, 2, 3)`` (WCAG 2.1)."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def check_comparison_page(file: Path) -> None:
    """Check the page of a comparison of two runs on a phone, in the dark and on paper."""
    pytest.importorskip("playwright")
    from mlflow_page import browser_page

    with browser_page() as page:
        page.set_viewport_size({"width": 420, "height": 800})
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 420
        right, bottom = page.evaluate(WAR_ENDS)
        assert right <= 420
        assert bottom <= 800
        scrolled = page.evaluate(SCROLLED)
        assert len(scrolled) >= 3
        assert all(hinted and abs(moved) < 1 for hinted, moved in scrolled)
        page.emulate_media(color_scheme="dark")
        back = luminance(
            page.evaluate("getComputedStyle(document.querySelector('main')).backgroundColor")
        )
        for color in set(page.evaluate(COLORS)):
            assert (luminance(color) + 0.05) / (back + 0.05) >= 4.5, color
        assert "invert" in page.evaluate("getComputedStyle(document.querySelector('img')).filter")
        printed = page.pdf(format="A4")
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 6
        page.click("nav a[href='#run2']")
        assert page.evaluate("document.querySelector('#run2').closest('details').open")
        # an open report is printed
        assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) > 6


def test_browser_shows_page_at_any_width(holes: RunDir, whole: RunDir, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", sure=1.0)
    write_comparison([whole, other], tmp_path)
    check_comparison_page(tmp_path / "comparison.html")
    script = ROOT / "docs" / "scripts" / "report_page.py"
    picture = tmp_path / "page.png"
    command = [str(script), str(holes.page), str(picture), "--width", "1180"]
    done = Forked(command, os.environ).wait(timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        assert image.width == 1180
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
