"""The files of a report: the page, LaTeX and Markdown, published figures, and the sheet of mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_dist.config.load import dump_config, load_config, read_config
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.evaluation.metrics import score
from dfer_dist.reporting.errors_sheet import draw_confident_errors, find_confident_errors
from dfer_dist.reporting.files import write_report
from dfer_dist.reporting.history import cost, loss_curve, read_lines
from dfer_dist.reporting.protocol import _model_rows, command_text
from dfer_dist.reporting.published import published_table, read_published
from dfer_dist.reporting.results import load_folds
from dfer_dist.reporting.summary import summarize
from dfer_dist.reporting.tables import Table, latex, latex_text, markdown
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from tests.helpers.made_runs import CLASSES, make_fold, make_run, write_table
from tests.helpers.paths import ROOT

ODD = ["a_b", "c&d", "<i>e</i>", "100%", "x|y", "#$~^\\", "{fear}"]


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
    """Folds 2 and 4 are missing, class 5 is absent, and names want escaping."""
    run = make_run(
        tmp_path_factory.mktemp("runs") / "a_b & <c>", (1, 3, 5), 5, classes=ODD, without=5
    )
    write_report(run)
    return run


def test_the_page_has_all_figures_and_asks_for_nothing(whole: RunDir) -> None:
    page, summary = Page(whole.page), json.loads(whole.summary.read_text())
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in page.links)
    assert (
        sum(link.startswith("data:") for link in page.links) == 2 + 1 + 3 + 1
    )  # scores, recalls; confusion; of folds; curves
    assert not page.tags & {"script", "link", "iframe", "object"}
    scores, recalls, costs, protocol, origin = page.tables
    assert all(f"{r[m]:.2f}" in scores for r in summary["folds"] for m in ("uar", "war"))
    assert f"{summary['uar']['mean']:.2f} ± {summary['uar']['std']:.2f}" in scores
    assert "{:.2f} to {:.2f}".format(*summary["war"]["ci95"]) in scores
    assert all(f"{summary['pooled']['recall'][c]:.2f}" in recalls for c in CLASSES)
    assert costs[-1] == "6.0"  # three folds, half an hour, four ranks
    assert "pixels in [0, 1], CLIP's mean and deviation not taken off" in protocol
    assert "git abc123, with changes that are not committed" in origin


def test_who_and_where_stay_out_of_what_is_shown(whole: RunDir) -> None:
    for path in (whole.page, whole.report, whole.latex):
        text = path.read_text()
        assert not re.search("secret|myself|mymachine|/home", text), path
    words = [
        "/x/dfer",
        "crossval",
        "data.shards=s3://key:secret@host/a/b",
        "--runs",
        "../up/runs",
        "train.seed=3",
    ]
    assert command_text(words) == "dfer crossval data.shards=…/b --runs …/runs train.seed=3"


def test_missing_folds_are_said_in_every_table_and_output(holes: RunDir) -> None:
    words = "2 of 5 folds missing (2, 4): all figures are over folds 1, 3, 5 only."
    page = Page(holes.page)
    assert len(page.tables) == 5
    assert all(words in text for text in page.after)
    assert (
        holes.page.read_text().count(words) >= 5 + 4
    )  # tables; the head, scores, recalls, confusion
    tex = holes.latex.read_text()
    assert tex.count(words) == 1 + tex.count(r"\begin{table}") == 4
    assert holes.report.read_text().count(f"**{words}**") == 1 + 5
    assert ["2", *["missing"] * 4] == [x for x in page.tables[0] if x][10:15]


def test_names_are_escaped(holes: RunDir) -> None:
    page, tex = Page(holes.page), holes.latex.read_text()
    assert "i" not in page.tags
    assert all(name in page.tables[1] for name in ODD)
    assert "#$~^\\" in page.tables[1]
    assert page.tables[1][page.tables[1].index(ODD[5]) + 2] == "absent"
    assert r"a\_b & " in tex
    assert r"c\&d & " in tex
    assert r"\{fear\} & " in tex
    assert r"\#\$\textasciitilde{}\textasciicircum{}\textbackslash{} & " in tex
    assert r"| x\|y | " in holes.report.read_text()


def test_latex_is_well_formed(holes: RunDir) -> None:
    lines = holes.latex.read_text().splitlines()
    assert lines[0] == r"% for \input; needs \usepackage{booktabs}"
    columns = 0
    for line in lines:
        assert line.startswith("%") or not re.search(r"(?<!\\)[%#]|[<>|±≥−]", line), line
        if line.startswith(r"\begin{tabular}"):
            columns = len(line.rpartition("{")[2]) - 1
        elif line.endswith(r" \\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
        if not line.startswith("%"):
            assert len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line)), line
    for rule in (r"\toprule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert lines.count(rule) == 3
    assert latex_text("[x] 5 ± 1 %") == r"{[}x] 5 $\pm$ 1 \%"


def test_a_table_by_hand() -> None:
    table = Table(
        "t",
        "A title",
        ["Name", "N"],
        [["a|b", "1"], ["c", "2"]],
        ["Beware."],
        ["A note."],
        1,
        frozenset([1]),
    )
    assert markdown(table) == [
        "**Beware.**",
        "",
        "| Name | N |",
        "| :--- | ---: |",
        r"| a\|b | 1 |",
        "| c | 2 |",
        "",
        "A note.",
    ]
    assert latex(table, "x") == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A title. Beware. A note.}",
        r"\label{tab:x-t}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Name & N \\",
        r"\midrule",
        r"a\textbar{}b & 1 \\",
        r"\midrule",
        r"c & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_a_run_of_an_older_version_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", (1,), 1, history=False)
    run.config.write_text("data: {shards: x}\nmodel: {gone: 1}\n")
    run.provenance.unlink()
    write_report(run)
    page = Page(run.page)
    assert "not on record in a form that this version reads" in page.tables[3]
    assert page.tables[2].count("not recorded") == 5
    assert "Learning curves" not in run.page.read_text()


def test_curves_and_costs(whole: RunDir, tmp_path: Path) -> None:
    fold = whole.fold(1)
    lines = read_lines(fold)
    assert len(lines) == 30  # the one that was cut short is no line
    curve = loss_curve(lines, per_epoch=10)
    assert curve.epochs == pytest.approx(np.arange(1, 13) / 4)
    assert curve.values[0] == pytest.approx((2 + 1) / 2)  # steps 1 and 2 of 30 in 12 parts
    assert curve.values[-1] == pytest.approx(np.mean([2 / 28, 2 / 29, 2 / 30]))
    run = RunDir(tmp_path)
    shutil.copytree(fold.root, run.fold(1).root)
    attempts = json.loads(fold.status.read_text())["attempts"]
    killed = {
        "started": "1970-01-01T00:10:00+00:00",
        "ended": None,
        "world_size": 2,
        "undone_steps": None,
        "device": "GPU X",
    }
    write_json(
        run.fold(1).status, {"state": "RUNNING", "steps": 30, "attempts": [*attempts, killed]}
    )
    found = cost(run.fold(1), {"device": "cuda"})
    assert (found.ranks, found.attempts, found.undone_steps, found.at_least) == ((4, 2), 2, 3, True)
    assert found.hours == pytest.approx(0.5 + (1030 - 600) / 3600)  # up to the last line
    assert found.device_hours == pytest.approx(2 + 2 * (1030 - 600) / 3600)
    assert (found.clips_per_second, found.device, found.device_name) == (50, "cuda", "GPU X")


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    summary, published = summarize(tmp_path, [1]), read_published("published")
    table = published_table("mine", summary, published)
    rows = {row[0]: row[1:] for row in table.rows}
    assert next(iter(rows)) == "mine (this run)"
    assert f"{summary['war']['mean']:.2f}" in rows["mine (this run)"][3]
    assert rows["DFER-CLIP"] == ["video", "published: BMVC 2023", "59.61", "71.25"]
    assert rows["MMA-DFER"][0] == "video and audio"
    assert rows["95 % interval"][3] == "{:.2f} to {:.2f}".format(*summary["war"]["ci95"])
    assert len(rows) == 10
    assert "as published, not reproduced here" in table.notes[0]
    assert all(any(m.paper in note for note in table.notes) for m in published.methods)
    other = published_table("mine", summary | {"dataset": "ferv39k"}, published)
    assert len(other.rows) == 9  # MMA-DFER has no figure there
    with pytest.raises(UserError, match="no figures are published for the data set 'demo'"):
        published_table("mine", summary | {"dataset": "demo"}, published)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["model.image=adapters"],
            "adapters in the image tower, temporal transformer, learned prompts",
        ),
        (
            [
                "model.image=adapters",
                "model.adapter_time=true",
                "model.text_tower=adapters",
                "model.temporal=mean",
                "model.context_tokens=0",
            ],
            "adapters in the image tower, along time too, adapters in the text tower",
        ),
        (["model.image=none", "model.temporal=mean", "model.context_tokens=0"], "nothing"),
        (
            ["model.image=lora", "model.text_tower=lora"],
            "LoRA of rank 8 in the image tower, LoRA of rank 8 in the text tower, temporal transformer, learned prompts",
        ),
    ],
)
def test_what_was_trained_is_said(words: list[str], expected: str) -> None:
    assert ["Trained", expected] in _model_rows(load_config("demo", ["data.shards=x", *words]))


def test_published_is_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment 'published'") as e:
        load_config("published")
    assert "published" not in str(e.value).partition("one of")[2]
    with pytest.raises(UserError, match="give 'published', or a YAML file"):
        read_published("demo")
    own = tmp_path / "own.yaml"
    own.write_text(
        "methods: [{name: A, paper: P, venue: V, figures: {dfew: {uar: 0.5961, war: 171}}}]"
    )
    with pytest.raises(UserError, match="'A', dfew: needs"):
        read_published(str(own))
    own.write_text("methods: [{name: A, paper: P, venue: V, figures: {dfew: {uar: 50, war: 60}}}]")
    assert read_published(str(own)).methods[0].figures["dfew"].war == 60


@pytest.fixture
def shown(tiny_shards: Index, tmp_path: Path) -> RunDir:
    """A run on ``tiny_shards``: in folds 1 and 2 every clip is taken for the next class, the later the clip the surer."""
    run = make_run(tmp_path / "shown", (), 5)
    config = read_config(run.config)
    config.data.shards = str(tiny_shards.root)
    run.config.write_text(dump_config(config))
    reader = ClipReader(tiny_shards)
    for k in (1, 2):
        places = [
            (s, row)
            for s in tiny_shards.test_shards(k)
            for row in range(tiny_shards.shards[s].clips)
        ]
        labels = np.array([reader.label(*p) for p in places])
        logits = np.eye(7)[(labels + 1) % 7] * (1 + np.arange(len(labels)) + 0.1 * k)[:, None]
        run.fold(k).root.mkdir()
        write_table(run.fold(k).predictions, labels, logits, [reader.key(*p) for p in places])
        result = {
            "dataset": "dfew",
            "fold": k,
            **vars(score(labels, logits, list(tiny_shards.classes))),
            "selection": "last",
        }
        result |= {"epoch": 1, "config_hash": "a", "index_hash": tiny_shards.hash}
        write_json(run.fold(k).result, result)
    return run


def test_the_surest_mistakes_come_first_and_show_their_own_frames(
    shown: RunDir, tiny_shards: Index
) -> None:
    found = find_confident_errors(load_folds(shown, [1, 2]), 5)
    assert [m.fold for m in found] == [2, 1, 2, 1, 2]
    assert all(a.probability > b.probability for a, b in pairwise(found))
    assert all(
        tiny_shards.classes.index(m.predicted) == (tiny_shards.classes.index(m.truth) + 1) % 7
        for m in found
    )
    weights = np.exp([12.2, *[0.0] * 6])
    assert found[0].probability == pytest.approx(weights[0] / weights.sum())
    assert found[0].of_truth == pytest.approx(weights[1] / weights.sum())
    path, drawn = draw_confident_errors(shown, 3)
    assert drawn == found[:3]
    with Image.open(path) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    last = tiny_shards.test_shards(2)[-1]
    row = tiny_shards.shards[last].clips - 1
    clip = ClipReader(tiny_shards).read(last, row, lambda _, n: np.array([0]))
    assert clip.key == found[0].key
    middle = clip.frames[0].reshape(-1, 3).mean(0)
    assert np.abs(colours.astype(float) - middle).sum(1).min() < 12


def test_frames_stay_out_of_the_page_unless_shared(shown: RunDir) -> None:
    draw_confident_errors(shown, 2)
    write_report(shown)
    assert "data:image/png" not in shown.page.read_text()
    write_report(shown, frames=shown.mistakes)
    assert "data:image/png" in shown.page.read_text()


def test_frames_of_other_data_are_not_shown(shown: RunDir) -> None:
    for k in (1, 2):
        path = shown.fold(k).result
        path.write_text(json.dumps(json.loads(path.read_text()) | {"index_hash": "other"}))
    with pytest.raises(UserError, match="other data"):
        draw_confident_errors(shown, 2)
    assert not shown.mistakes.exists()


def dfer(*words: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "dfer"), "report", *map(str, words)]
    return subprocess.run(
        command,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command(shown: RunDir, whole: RunDir, tmp_path: Path) -> None:
    done = dfer(shown.root, "--against", "published", "--errors", 2, "--share-frames")
    assert done.returncode == 0, done.stderr
    assert "2 errors with frames of people" in done.stdout
    assert "DFER-CLIP" in done.stdout
    assert "3 of 5 folds missing" in done.stdout
    assert "data:image/png" in shown.page.read_text()
    for path in (shown.page, shown.report, shown.latex):
        assert "DFER-CLIP" in path.read_text()
    done = dfer(whole.root, shown.root, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "nothing can be compared clip by clip" in " ".join(done.stdout.split())
    assert (tmp_path / "out" / "comparison.html").exists()
    for bad, words in (
        ([shown.root, "--share-frames"], "give both"),
        ([shown.root, "--out", tmp_path], "--out is for a comparison"),
        ([whole.root, tmp_path], "is not a run"),
        ([shown.root, "--against", "papers"], "--against papers"),
    ):
        done = dfer(*bad)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr


def test_a_browser_shows_it_at_any_width(holes: RunDir, tmp_path: Path) -> None:
    script = ROOT / "docs" / "scripts" / "report_page.py"
    for width in (360, 1180):
        picture = tmp_path / f"{width}.png"
        done = subprocess.run(
            [sys.executable, str(script), str(holes.page), str(picture), "--width", str(width)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with Image.open(picture) as image:
            assert image.width == width
            colours = {c for _, c in image.convert("RGB").getcolors(2**24) or []}
            assert any(
                abs(r - 0x00) + abs(g - 0x72) + abs(b - 0xB2) < 20 for r, g, b in colours
            )  # bars of UAR are drawn
