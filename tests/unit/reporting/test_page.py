"""The HTML page of a report."""

from __future__ import annotations

import html
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.reporting.comparison.verdict import run_verdict
from dfer_dist.reporting.files import write_report
from dfer_dist.reporting.page import scrolls_on_phone
from dfer_dist.reporting.plots import scores
from dfer_dist.reporting.plots.errors_sheet import draw_confident_errors
from dfer_dist.reporting.protocol import command_text
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.tables import Table, markdown_text
from dfer_dist.runs.layout import RunDir
from tests.helpers.made_runs import (
    CLASSES,
    SPECIAL_NAMES,
    make_misclassified_run,
    make_run,
    make_run_with_gaps,
)


class Page(HTMLParser):
    """What a page shows and what it asks for: its tables as lists of cells, links, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.after: list[str] = []  # the text after each table, up to the next heading or table
        self._cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data")
        ]
        if tag == "table":
            self.tables.append([])
            self.after.append("")
        if tag in ("td", "th"):
            self.tables[-1].append("")
        self._cell = tag in ("td", "th") or (self._cell and tag not in ("p", "h2", "h3"))

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1] += data
        elif self.after:
            self.after[-1] += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("runs") / "whole", shuffled=True)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run_with_gaps(tmp_path_factory.mktemp("runs"))
    write_report(run)
    return run


@pytest.fixture
def shown(tiny_shards: Index, tmp_path: Path) -> RunDir:
    return make_misclassified_run(tmp_path / "shown", tiny_shards)


def test_page_has_all_numbers_and_no_external_links(whole: RunDir) -> None:
    page, summary = Page(whole.page), json.loads(whole.summary.read_text())
    known = ("#", "data:image/svg+xml;base64,", "confusion.csv")
    assert all(link.startswith(known) for link in page.links) and "confusion.csv" in page.links
    assert (
        sum(link.startswith("data:") for link in page.links) == 2 + 1 + 3 + 1 + 1
    )  # scores, recalls; confusion; of folds; curves; calibration
    assert not page.tags & {"script", "link", "iframe", "object"}
    scores, f1, recalls, confusions, precision, calibration, costs, protocol, origin = page.tables
    assert f"{100 * summary['calibration']['mean']['ece']:.2f}" in calibration
    assert all(f"{r[m]:.2f}" in scores for r in summary["folds"] for m in ("uar", "war"))
    assert f"{summary['uar']['mean']:.2f} ± {summary['uar']['std']:.2f}" in scores
    names = ("macro_f1", "weighted_f1", "top2")
    assert all(f"{r[m]:.2f}" in f1 for r in summary["folds"] for m in names)
    assert "{mean:.3f} ± {std:.3f}".format(**summary["kappa"]) in f1
    assert f"{summary['macro_f1']['mean']:.2f} ± {summary['macro_f1']['std']:.2f}" in f1
    assert "{:.2f} to {:.2f}".format(*summary["war"]["ci95"]) in scores
    assert all(f"{summary['pooled']['recall'][c]:.2f}" in recalls for c in CLASSES)
    assert confusions[:4] == ["Truth", "Predicted as", "Clips", "% of the class"]
    assert all(str(summary["pooled"]["support"][c]) in precision for c in CLASSES)
    # three folds of half an hour on four ranks
    assert costs[-7:-4] == ["sum", "", "1.5 h"]
    assert "6.0 rank hours in all" in page.after[6]
    assert "pixels in [0, 1], the backbone's mean and deviation not taken off" in protocol
    assert "git abc123, with changes that are not committed" in origin


def test_head_of_page_names_date_backbone_and_what_scores_mean(whole: RunDir) -> None:
    head = whole.page.read_text().partition("<h2")[0]
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", head))
    assert facts == {
        "Opened": "3 February 2026",
        "Backbone": "ViT-B-32-quickgelu",
        "Trained parameters, million": "not recorded",
        "Ranks × device": "4 × unknown device",
        "Memory of a rank, GiB": "not recorded",
    }
    # under the mouse where it is first used, and in sight on a phone and on paper
    first = '<abbr title="unweighted average recall: the mean of the recalls of all classes">UAR<'
    assert head.index(first) == head.index("UAR<") - first.index("UAR<")
    assert "WAR: weighted average recall: the share of clips that are right." in head


def test_matrices_of_single_folds_are_closed(whole: RunDir) -> None:
    shown, *closed = re.split("<details>|</details>", whole.page.read_text())
    assert ("Fold 1: UAR" in shown, closed[0].count("Fold 1: UAR")) == (False, 1)
    assert closed[0].count("<figure") == 3


def test_only_tables_wider_than_a_phone_have_a_hint() -> None:
    narrow = Table("a", "a", ["Fold", "UAR %"], [["1", "50.00"], ["mean ± deviation", "50.00"]])
    wide = Table("b", "b", ["Name", *[f"Fold {k}" for k in range(9)]], [["x", *["50.00"] * 9]])
    # a column with a long text is wrapped in all rows
    texts = Table("c", "c", ["Setting", "Description"], [["Frames", "x" * 60], ["Loss", "y" * 40]])
    assert [scrolls_on_phone(t) for t in (narrow, wide, texts)] == [False, True, False]


def test_card_shows_equal_speeds_once(whole: RunDir, tmp_path: Path) -> None:
    assert "<small>on 4 ranks, 50 clips / s</small>" in whole.page.read_text()
    run = make_run(tmp_path / "run")
    lines = run.fold(1).metrics.read_text().replace("50.0", "61.7")
    run.fold(1).metrics.write_text(lines)
    write_report(run)
    assert "<small>on 4 ranks, 50 to 62 clips / s</small>" in run.page.read_text()


def test_report_hides_user_machine_and_folders(whole: RunDir) -> None:
    for path in (whole.page, whole.report, whole.latex):
        text = path.read_text()
        assert not re.search("secret|myself|mymachine|/home", text), path
    command = [
        "/x/dfer",
        "crossval",
        "data.shards=s3://key:secret@host/a/b",
        "--runs",
        "../up/runs",
        "train.seed=3",
    ]
    assert command_text(command) == "dfer crossval data.shards=…/b --runs …/runs train.seed=3"


def test_missing_folds_are_marked_in_every_table_and_file(holes: RunDir) -> None:
    warning = "2 of 5 folds missing (2, 4): all scores are over folds 1, 3, 5 only."
    page = Page(holes.page)
    assert len(page.tables) == 9
    assert all(warning in text for text in page.after)
    assert (
        holes.page.read_text().count(warning) >= 9 + 5
    )  # tables; the head, scores, recalls, confusion, calibration
    tex = holes.latex.read_text()
    assert tex.count(warning) == 1 + tex.count(r"\begin{table") == 7
    assert holes.report.read_text().count(f"**{warning}**") == 1 + 9
    assert ["2", *["missing"] * 4] == [x for x in page.tables[0] if x][10:15]


def test_page_and_markdown_begin_with_the_verdict(holes: RunDir) -> None:
    page, markdown = holes.page.read_text(), holes.report.read_text()
    page = html.unescape(re.sub("</?abbr[^>]*>", "", page))
    expected = run_verdict(load_run(holes)).sentences
    positions = [page.index(text) for text in expected]
    assert positions == sorted(positions)
    assert positions[-1] < page.index('class="cards"') < page.index("<table")
    lines = markdown.partition("Protocol:")[0].splitlines()
    assert all(f"- {markdown_text(text)}" in lines for text in expected)


def test_names_are_escaped_in_every_format(holes: RunDir) -> None:
    page, tex = Page(holes.page), holes.latex.read_text()
    assert "i" not in page.tags
    assert "<i>" not in holes.report.read_text().replace(r"\<i>", "")
    assert all(name in page.tables[2] for name in SPECIAL_NAMES)
    assert "#$~^\\$" in page.tables[2]
    assert page.tables[2][page.tables[2].index(SPECIAL_NAMES[5]) + 2] == "absent"
    assert r"a\_b & " in tex
    assert r"c\&d & " in tex
    assert r"\{fear\} & " in tex
    assert r"\#\$\textasciitilde{}\textasciicircum{}\textbackslash{}\$ & " in tex
    assert r"| x\|y | " in holes.report.read_text()


@pytest.mark.parametrize("installed", [True, False])
def test_names_of_any_script_are_drawn_without_warnings(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    letters = {"LastResortHE-Regular.ttf": "高兴", "DejaVuSans.ttf": " $_"}
    if installed:
        letters["DejaVuSerif.ttf"] = "高兴"
    monkeypatch.setattr(
        scores, "_letters_of", lambda file: set(map(ord, letters.get(Path(file).name, "")))
    )
    scores._fonts_for.cache_clear()
    figure = scores.new_figure(2, 2)
    title = figure.subplots().set_title("高兴 $_$")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.data_uri(figure).startswith("data:image/svg+xml")
    scores._fonts_for.cache_clear()
    fonts = ["DejaVu Sans", "DejaVu Serif"] if installed else ["sans-serif"]
    assert title.get_fontfamily() == fonts


def test_report_of_older_run_marks_unrecorded_values(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", (1,), 1, history=False)
    run.config.write_text("data: {shards: x}\nmodel: {gone: 1}\n")
    run.provenance.unlink()
    write_report(run)
    page = Page(run.page)
    assert "not on record in a form that this version reads" in page.tables[7]
    assert page.tables[6].count("not recorded") == 4
    assert "Learning curves" not in run.page.read_text()


def test_page_embeds_frames_only_if_shared(shown: RunDir) -> None:
    draw_confident_errors(shown, 2)
    write_report(shown)
    assert "data:image/png" not in shown.page.read_text()
    write_report(shown, frames=shown.mistakes)
    assert "data:image/png" in shown.page.read_text()
