"""The matrix of several runs on several sets: tables, files, picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from dfer_dist.reporting.comparison.crosseval import (
    CellScores,
    CrossEval,
    crosseval_section,
)
from dfer_dist.reporting.files import write_crosseval
from dfer_dist.reporting.plots.crosseval import crosseval_figure
from dfer_dist.runs.records import UarWar
from dfer_dist.runs.summary import Spread
from dfer_dist.utils.errors import UserError


def cell(run: str, tested_on: str, uar: float, **fields: object) -> CellScores:
    spread = Spread(uar, 1.5, [uar - 2, uar + 2])
    values = {
        "run": run,
        "trained_on": run.partition("_")[0],
        "selection": "last",
        "tested_on": tested_on,
        "own": run.startswith(tested_on),
        "n": 1000,
        "uar": spread,
        "war": Spread(uar + 10, None, [uar + 9, uar + 11]),
        "common": None,
        "left_out": {},
        "lost": 0,
        "missing_folds": [],
        "config_hash": "c",
        "index_hash": "i",
        "models": [],
    }
    return CellScores(**values | fields)  # type: ignore[arg-type]


@pytest.fixture
def result() -> CrossEval:
    return CrossEval(
        ["dfew_a", "mafw_b"],
        ["dfew", "mafw"],
        [
            cell("dfew_a", "dfew", 60.0),
            cell("dfew_a", "mafw", 40.0, left_out={"contempt": 7, "anxiety": 5}),
            cell("mafw_b", "dfew", 45.0, common=UarWar(47.25, 58.5), missing_folds=[3]),
            cell("mafw_b", "mafw", 50.0, lost=4, missing_folds=[3]),
        ],
    )


def test_tables_have_a_row_for_each_run_and_each_cell(result: CrossEval) -> None:
    matrix, cells = crosseval_section(result).tables
    assert list(matrix.header) == ["Trained on", "dfew UAR", "dfew WAR", "mafw UAR", "mafw WAR"]
    assert [list(row) for row in matrix.rows] == [
        ["dfew_a (dfew)", "60.00 ± 1.50", "70.00", "40.00 ± 1.50", "50.00"],
        ["mafw_b (mafw)", "45.00 ± 1.50", "55.00", "50.00 ± 1.50", "60.00"],
    ]
    assert [row[1] for row in cells.rows] == [
        "dfew (own folds)",
        "mafw",
        "dfew",
        "mafw (own folds)",
    ]
    assert list(cells.rows[2][2:]) == [
        "1000",
        "45.00 ± 1.50",
        "43.00 to 47.00",
        "55.00",
        "54.00 to 56.00",
        "47.25",
        "58.50",
    ]
    # without other classes the scores themselves
    assert list(cells.rows[0][-2:]) == ["60.00", "70.00"]
    assert list(cells.rules) == [2]
    assert list(matrix.warnings) == [
        "dfew_a on mafw: 12 clips of classes that the model lacks were left out "
        "(contempt 7, anxiety 5).",
        "mafw_b: fold 3 missing.",
        "mafw_b on mafw: 4 of 1004 test clips left out when the data was packed.",
    ]


def test_columns_on_common_classes_only_where_classes_differ(result: CrossEval) -> None:
    same = CrossEval(result.runs[:1], result.sets[:1], result.cells[:1])
    _, cells = crosseval_section(same).tables
    assert list(cells.header)[-2:] == ["WAR %", "95 % interval"]
    assert len(cells.rows[0]) == len(cells.header)
    assert not cells.notes and not cells.warnings


def test_files_are_read_again(result: CrossEval, tmp_path: Path) -> None:
    write_crosseval(result, tmp_path)
    assert CrossEval.read(tmp_path / "crosseval.json") == result
    assert "| mafw_b (mafw) | 45.00 ± 1.50 | 55.00 |" in (tmp_path / "crosseval.md").read_text()
    assert r"mafw\_b (mafw) & 45.00 $\pm$ 1.50" in (tmp_path / "crosseval.tex").read_text()
    assert (tmp_path / "crosseval.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "crosseval.json").write_text('{"version": 1, "runs": []}')
    with pytest.raises(UserError, match="lacks sets, cells: make it again with dfer crosseval"):
        CrossEval.read(tmp_path / "crosseval.json")


def test_picture_shows_means_and_intervals_and_frames_own_sets(result: CrossEval) -> None:
    figure = crosseval_figure(result)
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"60.0", "58.0 to 62.0", "70.0", "45.0", "dfew_a\n(dfew)", "mafw"} <= texts
    for panel in figure.axes:
        frames = [p for p in panel.patches if isinstance(p, Rectangle)]
        assert [(round(f.get_x()), round(f.get_y())) for f in frames] == [(0, 0), (1, 1)]
