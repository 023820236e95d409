"""The summary over folds and its files."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from dfer_dist.data.folds.overlay import VALIDATION, FoldOverlay
from dfer_dist.evaluation.metrics import bootstrap_ci
from dfer_dist.reporting.files import write_report, write_sweep
from dfer_dist.reporting.plots.scores import confusion_png, new_figure, save
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.sections import run_sections
from dfer_dist.reporting.tables import terminal
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import METRICS, FoldResult
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from tests.helpers.made_runs import CLASSES, load_made, make_fold, make_run, write_summary

ALL = [1, 2, 3, 4, 5]


def summary_text(root: Path) -> str:
    """The tables of UAR and WAR, and of F1."""
    console = Console(file=io.StringIO(), width=160)
    for section in run_sections(load_run(RunDir(root)))[:2]:
        console.print(terminal(section.tables[0]))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_summary_of_five_folds_matches_results(tmp_path: Path) -> None:
    folds = [make_fold(tmp_path, k, shuffled=True) for k in ALL]
    results = [json.loads((f / "result.json").read_text()) for f in folds]
    s = write_summary(load_made(tmp_path, ALL))
    assert (s["version"], s["dataset"], s["selection"], s["missing"]) == (1, "DFEW", "last", [])
    assert all(fold.items() >= r.items() for fold, r in zip(s["folds"], results, strict=True))
    wars = [r["war"] for r in results]
    assert s["war"]["mean"] == pytest.approx(np.mean(wars))
    assert s["war"]["std"] == pytest.approx(np.std(wars, ddof=1))
    assert s["uar"]["ci95"][0] < s["uar"]["mean"] < s["uar"]["ci95"][1]
    assert s["pooled"]["n"] == 1000
    assert s["pooled"]["confusion"] == np.sum([r["confusion"] for r in results], axis=0).tolist()
    header, *rows = csv.reader((tmp_path / "confusion.csv").open())
    assert header[1:] == s["pooled"]["classes"]
    assert [[int(n) for n in row[1:]] for row in rows] == s["pooled"]["confusion"]
    assert s["pooled"]["war"] == pytest.approx(np.mean(wars))  # folds of equal size
    assert s["pooled"]["top2"] == pytest.approx(np.mean([r["top2"] for r in results]))
    assert s["majority"]["class"] == "neutral"
    assert s["majority"]["war"] == pytest.approx(s["pooled"]["support"]["neutral"] / 10)
    assert s["shuffled"]["war"]["mean"] == pytest.approx(
        np.mean([r["shuffled"]["war"] for r in results])
    )
    assert s["shuffled"]["war"]["ci95"][1] < s["war"]["ci95"][0]


def test_clips_lost_when_packing_are_in_every_output(tmp_path: Path) -> None:
    make_fold(tmp_path, 1, left_out=["Happy/1", "Sad/2"])
    make_fold(tmp_path, 2, left_out=[f"Sad/{i}" for i in range(10, 17)])
    make_fold(tmp_path, 3)
    run = RunDir(tmp_path)
    write_json(run.run, {"name": "r", "folds": [1, 2, 3], "tracking": None})
    write_report(run)
    counted = "9 of 609 test clips left out when the data was packed"
    names = "fold 1: Happy/1, Sad/2; fold 2: Sad/10, Sad/11, Sad/12, Sad/13, Sad/14 and 2 more"
    for file in ("summary.md", "summary.tex", "report.html"):
        text = " ".join((tmp_path / file).read_text().split())
        assert counted in text and names in text, file
    assert counted in " ".join(summary_text(tmp_path).split())
    folds = json.loads((tmp_path / "summary.json").read_text())["folds"]
    assert [len(fold["left_out"]) for fold in folds] == [2, 7, 0]


def test_interval_is_bootstrap_of_predictions(tmp_path: Path) -> None:
    tables = []
    for k in (1, 2):
        data = pq.read_table(make_fold(tmp_path, k) / "predictions.parquet").to_pydict()
        tables.append((np.array(data["label"]), np.array(data["logits"])))
    s = load_made(tmp_path, [1, 2]).summary.to_json()
    for metric in METRICS:
        assert tuple(s[metric]["ci95"]) == bootstrap_ci(tables, len(CLASSES), metric)


def test_scores_that_an_older_result_lacks_are_computed_from_its_predictions(
    tmp_path: Path,
) -> None:
    fold = make_fold(tmp_path, 1)
    result = json.loads((fold / "result.json").read_text())
    scores = {name: result.pop(name) for name in METRICS if name not in ("uar", "war")}
    write_json(fold / "result.json", result)
    s = write_summary(load_made(tmp_path, [1]))
    assert {name: s["folds"][0][name] for name in scores} == scores
    assert {name: s[name]["mean"] for name in scores} == scores
    text = summary_text(tmp_path)
    shown = [f"{scores['macro_f1']:.2f} │", f"{scores['top2']:.2f} │", f"{scores['kappa']:.3f} │"]
    assert all(cell in text for cell in shown)
    write_json(fold / "result.json", result | {"top2": scores["top2"] + 1})
    with pytest.raises(UserError, match="top2 is not that of the predictions"):
        load_run(RunDir(tmp_path))


def test_table_and_markdown_contain_all_numbers(tmp_path: Path) -> None:
    for k in ALL:
        make_fold(tmp_path, k, shuffled=True, selection="best_test")
    s = write_summary(load_made(tmp_path, ALL))
    for text in (summary_text(tmp_path), (tmp_path / "summary.md").read_text()):
        assert "best_test: epoch chosen on the test fold, optimistic" in " ".join(text.split())
        assert f"{s['uar']['mean']:.2f} ± {s['uar']['std']:.2f}" in text
        assert "{:.2f} to {:.2f}".format(*s["war"]["ci95"]) in text
        assert f"{s['majority']['war']:.2f}" in text
        assert f"{s['shuffled']['war']['mean']:.2f}" in text
        assert all(f"{r['war']:.2f}" in text and str(r["epoch"]) in text for r in s["folds"])
        assert "missing" not in text
    markdown = (tmp_path / "summary.md").read_text()
    assert all(
        f"| {c} | {s['pooled']['support'][c]} | {s['pooled']['recall'][c]:.2f} |" in markdown
        for c in CLASSES
    )
    assert "(summary.png)" in markdown


def test_missing_folds_are_marked_in_table_and_markdown(tmp_path: Path) -> None:
    for k in (1, 2, 4):
        make_fold(tmp_path, k)
    (tmp_path / "fold-3").mkdir()  # begun, not finished
    s = write_summary(load_made(tmp_path, ALL))
    assert s["missing"] == [3, 5]
    markdown = (tmp_path / "summary.md").read_text()
    sentence = "2 of 5 folds missing (3, 5): all scores are over folds 1, 2, 4 only."
    assert sentence in "\n".join(markdown.splitlines()[:3])
    assert "| 3 | missing |" in markdown
    assert "| folds 3, 5 | missing |" in markdown
    text = summary_text(tmp_path)
    assert sentence in text
    assert [line.split()[1] for line in text.splitlines() if "missing │" in line] == ["3", "5"] * 2
    assert "mean ± deviation of folds 1, 2, 4" in text


def test_summary_of_one_fold_has_no_deviation(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    s = write_summary(load_made(tmp_path, [1]))
    assert s["uar"]["std"] is None
    assert s["war"]["mean"] == s["folds"][0]["war"]
    assert s["shuffled"] is None
    assert "±" not in summary_text(tmp_path)


def test_absent_class_is_marked(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    make_fold(tmp_path, 2, without=5)
    s = write_summary(load_made(tmp_path, [1, 2]))
    assert "Fold 2 has no clip of disgust" in summary_text(tmp_path)
    make_fold(tmp_path / "b", 1, without=5)
    s = write_summary(load_made(tmp_path / "b", [1]))
    assert s["pooled"]["absent"] == ["disgust"]
    assert "| disgust | 0 | absent |" in (tmp_path / "b" / "summary.md").read_text()


def test_shuffled_scores_of_some_folds_are_not_averaged(tmp_path: Path) -> None:
    make_fold(tmp_path, 1, shuffled=True)
    make_fold(tmp_path, 2)
    s = load_made(tmp_path, [1, 2]).summary.to_json()
    assert s["shuffled"] is None
    assert "exist for fold 1 only" in summary_text(tmp_path)


def test_report_without_finished_folds_writes_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_json(run.run, {"folds": ALL})
    with pytest.raises(UserError, match="no finished fold"):
        write_report(run)
    assert list(tmp_path.iterdir()) == [run.run]


def test_pictures_are_complete_and_reproducible(tmp_path: Path) -> None:
    for k in (1, 3):
        make_fold(tmp_path, k, shuffled=True)
    loaded = load_made(tmp_path, [1, 2, 3])
    write_summary(loaded)
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1500
        assert picture.height > 800
        # bars of both colours, the word for the missing fold, and the dark diagonal of the confusion matrix
        colours = {c for _, c in picture.convert("RGB").getcolors(2**24) or []}
        assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0xD5, 0x5E, 0x00)} <= colours
    first = (tmp_path / "summary.png").read_bytes()
    write_summary(loaded)
    assert (tmp_path / "summary.png").read_bytes() == first
    result = FoldResult.read(tmp_path / "fold-1" / "result.json")
    confusion_png("r", result, tmp_path / "fold-1" / "confusion.png")
    two = replace(result, confusion=[[1, 0], [1, 0]], classes=["neutral", "smile"])
    confusion_png("r", two, tmp_path / "two.png")
    for path in (tmp_path / "fold-1" / "confusion.png", tmp_path / "two.png"):
        with Image.open(path) as picture:
            assert min(picture.size) >= 750
    assert not list(tmp_path.rglob(".*"))  # no temporary file stays


def test_texts_of_a_picture_are_wrapped_at_its_width(tmp_path: Path) -> None:
    figure = new_figure(4, 2)
    figure.suptitle("errors of a run with a long name (without folds 3, 4, 5, not finished)")
    figure.supxlabel("Frames of people: keep this picture where the data set may be, or delete it.")
    figure.subplots()
    save(figure, tmp_path / "picture.png")
    for text in figure.texts:
        found = text.get_window_extent()
        assert found.x0 >= 0 and found.x1 <= figure.bbox.width


def test_dollar_signs_in_a_title_are_no_formula(tmp_path: Path) -> None:
    figure = new_figure(4, 2)
    figure.suptitle("$_$ errors of a run with a long name (without folds 3, 4, 5, not finished)")
    save(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_first_lines_of_a_trial_name_its_validation_part(tmp_path: Path) -> None:
    part = "validation part of fold 1, seed 0"
    overlay = FoldOverlay(part, "DFEW", "bb", VALIDATION, 1, {"clip-0": 1}).signed()
    runs = []
    for i, sure in enumerate((2.0, 3.0)):
        run = make_run(tmp_path / f"t-trial{i}", (1,), 1, sure=sure, folds_hash=overlay.hash)
        overlay.write(run.folds)
        runs.append(run)
    said = f"Scores are of a part of the training clips, not of a test fold: {part}."
    assert write_report(runs[0]).verdict.sentences[1] == said
    for file in (runs[0].report, runs[0].latex, runs[0].page):
        text = file.read_text()
        assert part in text and "the test fold" not in text
        assert re.search(r"all \d+ validation clips|All \d+ validation clips", text)
        assert not re.search(r"\d test clips|one test fold", text)
    assert said in "".join(runs[0].report.read_text().splitlines()[:4])
    folder = tmp_path / "t.sweep"
    folder.mkdir()
    report = write_sweep(runs, folder)
    assert said in report.verdict.sentences[0]
    overview = next(s for s in report.sections if s.key == "runs").tables[0]
    assert overview.warnings == [f"t-trial0, t-trial1: {said}"]
    assert said in "".join((folder / "comparison.md").read_text().splitlines()[:4])
