"""Tables and files of a comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from dfer_dist.reporting.comparison import overview_table, systems_table
from dfer_dist.reporting.files import write_comparison
from dfer_dist.reporting.results import load_run
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import CLASSES, make_run


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
        "clips-b-c.csv",
    )
    assert {f.name for f in (tmp_path / "out").iterdir()} == set(files)
    said = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"]
    assert [(c["first"], c["second"]) for c in said] == [("first", "b_1"), ("first", "b&c")]
    assert (
        said[0]["paired"]["difference"]["uar"]["value"]
        > 0
        > said[1]["paired"]["difference"]["uar"]["value"]
    )
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


def test_systems_table_matches_checkpoints_and_attempts(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", folds=(1, 2)), make_run(tmp_path / "b", history=False)]
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
    assert [row[:2] + row[4:] for row in table.rows] == [
        ["a", "0.004", "50.0", "1.50"],
        ["b", "not recorded", "not recorded", "not recorded"],
    ]


def test_overview_marks_a_run_without_finished_folds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", folds=(1, 2)), make_run(tmp_path / "c", folds=())]
    table = overview_table(runs, [load_run(runs[0]).summary, None])
    assert [row[2] for row in table.rows] == ["2 of 3", "0 of 3"]
    assert table.rows[1][3:] == ["missing", "missing"]
