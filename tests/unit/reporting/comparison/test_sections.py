"""Tables and files of a comparison."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from dfer_dist.config.load import dump_config, read_config
from dfer_dist.reporting.comparison.paired import compare
from dfer_dist.reporting.comparison.published import read_published
from dfer_dist.reporting.comparison.sections import (
    comparison_sections,
    overview_table,
    systems_table,
)
from dfer_dist.reporting.comparison.verdict import comparisons_verdict
from dfer_dist.reporting.files import write_comparison
from dfer_dist.reporting.page import comparison_chapter, render
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.tables import slug
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, SweepMember
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import CLASSES, make_run, write_summary


def change(fold: Path, **fields: Any) -> None:
    path = fold / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_comparison_files_of_three_runs_match_predictions(tmp_path: Path) -> None:
    names = (("first", 2.0), ("b_1", 3.0), ("b&c", 1.0))
    runs = [make_run(tmp_path / x, (1, 2), 2, sure=s) for x, s in names]
    write_comparison(runs, tmp_path / "out")
    files = (
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "comparison.tex",
        "clips-b_1.csv",
        f"clips-{slug('b&c')}.csv",
        "confusion-first.csv",
        "confusion-b_1.csv",
        f"confusion-{slug('b&c')}.csv",
    )
    assert {f.name for f in (tmp_path / "out").iterdir()} == set(files)
    said = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"]
    assert [(c["first"], c["second"]) for c in said] == [("first", "b_1"), ("first", "b&c")]
    assert (
        said[0]["paired"]["difference"]["uar"]["value"]
        > 0
        > said[1]["paired"]["difference"]["uar"]["value"]
    )
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert '<a href="confusion-first.csv">confusion-first.csv</a>' in page
    first = json.loads(runs[0].fold(1).result.read_text())
    header, *rows = csv.reader((tmp_path / "out" / "confusion-first.csv").open())
    assert header == ["truth", *first["classes"]]
    assert sum(int(n) for row in rows for n in row[1:]) == 2 * first["n"]
    for kind in ("html", "md"):
        text = (tmp_path / "out" / f"comparison.{kind}").read_text()
        text = html.unescape(re.sub("</?abbr[^>]*>", "", text))
        for c in said:
            assert 0 < text.index(c["verdict"]) < text.index("Runs side by side")
    assert [c["verdict"].partition(":")[0] for c in said] == ["b_1 minus first", "b&c minus first"]
    with (tmp_path / "out" / "clips-b_1.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == said[0]["paired"]["changed_clips"]
    assert sum(r["change"] == "gained" for r in rows) == said[0]["paired"]["mcnemar"]["gained"]
    tables = {k: pq.read_table(runs[1].fold(k).predictions).to_pydict() for k in (1, 2)}
    for row in rows:
        i = tables[int(row["fold"])]["key"].index(row["key"])
        assert row["truth"] == CLASSES[tables[int(row["fold"])]["label"][i]]
        assert row["b_1"] == CLASSES[int(np.argmax(tables[int(row["fold"])]["logits"][i]))]
    latex, page = ((tmp_path / "out" / f"comparison.{x}").read_text() for x in ("tex", "html"))
    assert r"b\&c against first" in latex
    assert r"Recall \% b\_1" in latex
    assert "b&amp;c against first" in page
    check_page_of_three_runs(page, len(rows))


def check_page_of_three_runs(page: str, changed: int) -> None:
    """Check anchors, the reports that are closed, and what the runs have in common."""
    places = re.findall(r'id="([^"]+)"', page)
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(set(places)) == len(places)
    assert {"comparison-curves", "run1", "run3", "run2-cost"} <= set(links) <= set(places)
    assert page.count('<details class="chapter">') == 3
    assert page.count("trained and tested on the same clips, of folds 1, 2<") == 1
    # one axis with the curves of all runs, differences, recalls and matrices of two comparisons
    shown = page.partition("<details")[0]
    assert shown.count("<figure") == 1 + 2 * 3
    assert f"{changed} of 400 clips were predicted differently" in shown


def test_systems_table_matches_checkpoints_and_attempts(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", folds=(1, 2), parameters=3_500_000),
        make_run(tmp_path / "b", history=False),
    ]
    for k, peak in ((1, 3 * 2**29), (2, 2**30)):
        fold = runs[0].fold(k)
        (fold.root / "c").mkdir()
        save_file(
            {"w": np.zeros((100, 40), np.float32), "b": np.zeros(500, np.float32)},
            fold.root / "c" / "model.safetensors",
        )
        status = read_json(fold.status)
        status["attempts"][0]["peak_bytes"] = peak
        write_json(fold.status, status)
    table = systems_table([load_run(run) for run in runs])
    assert table.rows == [
        ["a", "4 × unknown device", "60.0 min", "50.0", "12.5", "1.50", "0.004 of 3.500"],
        ["b", *["not recorded"] * 6],
    ]


def set_ranks(run: RunDir, fold: int, world_size: int, device: str) -> None:
    status = read_json(run.fold(fold).status)
    status["attempts"][0] |= {"world_size": world_size, "device": device}
    write_json(run.fold(fold).status, status)


def test_systems_table_warns_of_other_ranks_and_devices(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, folds=(1, 2)) for name in "abc"]
    for run, sizes, device in zip(runs, ((2, 2), (2, 2), (2, 8)), ("X", "X", "Y"), strict=True):
        for k, size in enumerate(sizes, 1):
            set_ranks(run, k, size, device)
    a, b, c = (load_run(run) for run in runs)
    same = systems_table([a, b])
    assert [row[1:5] for row in same.rows] == [["2 × X", "60.0 min", "50.0", "25.0"]] * 2
    assert not same.warnings
    other = systems_table([a, c])
    # the median over folds of 50 / 2 and 50 / 8
    assert other.rows[1][1:5] == ["2 × Y; 8 × Y", "60.0 min", "50.0", "15.6"]
    assert "Numbers of ranks or devices differ" in other.warnings[0]
    c_against_a = [compare(a, c)]
    verdict = comparisons_verdict(c_against_a)
    chapter = comparison_chapter("t", comparison_sections([a, c], []), c_against_a, verdict)
    page = render("t", [chapter])
    assert "Numbers of ranks or devices differ" in page


def test_rank_speed_leaves_out_folds_with_attempts_on_other_ranks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", folds=(1,))
    status = read_json(run.fold(1).status)
    status["attempts"] += [status["attempts"][0] | {"world_size": 2}]
    write_json(run.fold(1).status, status)
    (row,) = systems_table([load_run(run)]).rows
    assert row[1:5] == ["4, 2 × unknown device", "60.0 min", "50.0", "not recorded"]


def test_files_of_two_comparisons_and_runs_have_other_titles(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, (1, 2), 3, history=False) for name in ("full", "lora", "b_1")]
    texts = []
    for other in runs[1:]:
        write_comparison([runs[0], other], tmp_path / other.root.name / "compared")
        write_summary(load_run(other))
        compared = (other.root / "compared" / "comparison.tex").read_text()
        texts.append((compared, other.latex.read_text(), other.report.read_text()))
    for first, second in zip(*texts, strict=True):
        for found in (r"\\caption{(.*)}", r"\\label{(.*)}", r"\*\*(.* against .*)\*\*", "^# .*"):
            assert not set(re.findall(found, first)) & set(re.findall(found, second)), found
    title = "lora on DFEW, 2 of 3 folds"
    _, latex, report = texts[0]
    assert report.startswith(f"# {title}\n")
    assert latex.count(f" of {title} (last: ") == 5
    assert latex.count(r"\caption") == 6
    assert r"\label{tab:DFEW-lora-against-full-systems}" in texts[0][0]


def test_all_files_of_a_comparison_have_the_published_scores(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, (1, 2), 2, history=False) for name in ("first", "second")]
    write_comparison(runs, tmp_path / "out", read_published("published"))
    for suffix in ("md", "html", "tex"):
        assert "DFER-CLIP" in (tmp_path / "out" / f"comparison.{suffix}").read_text()
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "first (this run)" in text and "second (this run)" in text
    assert text.count("arXiv 2308.13382") == 1


def test_overview_marks_a_run_without_finished_folds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", folds=(1, 2)), make_run(tmp_path / "c", folds=())]
    table = overview_table(runs, [load_run(runs[0]).summary, None])
    assert [row[3] for row in table.rows] == ["2 of 3", "0 of 3"]
    assert table.rows[1][1:3] == ["missing", "missing"]
    write_json(runs[1].fold(1).status, {"state": "FAILED"})
    assert overview_table(runs[1:], [None]).rows[0][1:3] == ["failed", "failed"]
    for run, image, rate in ((runs[0], "lora", 1e-5), (runs[1], "all", 1e-4)):
        config = read_config(run.config, [f"model.image={image}", f"optim.lr_image={rate}"])
        run.config.write_text(dump_config(config))
    differs = [row[4] for row in overview_table(runs, [None, None]).rows]
    assert differs == ["model.image=lora", "model.image=all, optim.lr_image=0.0001"]
    SweepDir.of(tmp_path, "s").add(runs[1], SweepMember("c", pruned=True))
    assert overview_table(runs[1:], [None]).rows[0][1:3] == ["pruned", "pruned"]
