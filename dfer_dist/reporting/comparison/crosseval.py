"""Scores of several runs on several sets: ``crosseval.json`` and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dfer_dist.evaluation.metrics import left_out_text, other_classes_text, score
from dfer_dist.reporting.results import ScoredPredictions, read_predictions, score_spread
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.wording import PROTOCOLS, folds_text, interval_text, join, mean_text
from dfer_dist.runs.records import UarWar
from dfer_dist.runs.summary import Spread
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.records import Record

if TYPE_CHECKING:
    from dfer_dist.evaluation.crosseval import RunTests

_NOTES = (
    "On the set of its training, the model of fold k is tested on fold k, so that no model sees a "
    "clip that it was trained on. On another set, each model is tested on the test clips of all "
    "folds.",
    "UAR and WAR are means over the models of a run, ± is their sample deviation. 95 % intervals "
    "are of that mean, for the choice of clips and not of seeds.",
)
_CLASSES_NOTE = (
    "Classes are matched by name. A prediction of a class that the set lacks is an error; “common "
    "classes” are the scores if only classes of both could be predicted."
)


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model on a set, in percent, and the file of its predictions."""

    fold: int
    n: int
    uar: float
    war: float
    checkpoint: str
    predictions: str


@dataclass(frozen=True)
class CellScores:
    """The models of a run on a set.

    ``own`` is whether the set is that of the training. ``n`` are the clips that were tested, each
    once for each model, or on the own set once in all. ``common`` are the scores if only classes
    were allowed that the set has too, None for models without others. ``left_out`` counts clips by
    class that the models lack, ``lost`` those that were lost when the set was packed.
    """

    run: str
    trained_on: str
    selection: str
    tested_on: str
    own: bool
    n: int
    uar: Spread
    war: Spread
    common: UarWar | None
    left_out: dict[str, int]
    lost: int
    missing_folds: list[int]
    config_hash: str
    index_hash: str
    models: list[ModelScores]

    @property
    def row(self) -> str:
        """The run with its data set."""
        return f"{self.run} ({self.trained_on})"


@dataclass(frozen=True)
class CrossEval(Record):
    """``crosseval.json``: a cell for each run and set, runs in the outer loop."""

    remedy: ClassVar[str] = "make it again with dfer crosseval"

    runs: list[str]
    sets: list[str]
    cells: list[CellScores]


def score_tests(tests: Sequence[RunTests]) -> CrossEval:
    """Return the scores of tests whose predictions are made.

    Raises
    ------
    UserError
        If predictions are missing or damaged.
    """
    return CrossEval(
        runs=list(dict.fromkeys(t.name for t in tests)),
        sets=list(dict.fromkeys(t.set_name for t in tests)),
        cells=[_cell(t) for t in tests],
    )


def _cell(tests: RunTests) -> CellScores:
    from dfer_dist.evaluation.crosseval import mean_interval

    tables = [read_predictions(test.predictions, tests.classes) for test in tests.tests]
    expected = [len(test.chosen.part.test) for test in tests.tests]
    for test, table, count in zip(tests.tests, tables, expected, strict=True):
        if len(table.keys) != count or (not tests.own and table.keys != tables[0].keys):
            raise UserError(f"{test.predictions} has other clips than the set: remove it")
    scores = {metric: score_spread(tables, metric) for metric in ("uar", "war")}
    if not tests.own:
        predicted = [table.predicted for table in tables]
        for metric, value in scores.items():
            low, high = mean_interval(tables[0].labels, predicted, metric)
            scores[metric] = Spread(value.mean, value.std, [low, high])
    models = [
        ModelScores(
            test.result.fold,
            table.scores.n,
            table.scores.uar,
            table.scores.war,
            str(test.checkpoint),
            str(test.predictions),
        )
        for test, table in zip(tests.tests, tables, strict=True)
    ]
    n = expected[0]
    if tests.own:
        n = sum(expected)
    result = tests.tests[0].result
    finished = [test.result.fold for test in tests.tests]
    return CellScores(
        run=tests.name,
        trained_on=result.dataset,
        selection=result.selection,
        tested_on=tests.set_name,
        own=tests.own,
        n=n,
        **scores,
        common=_common_scores(tables, tests),
        left_out=tests.left_out,
        lost=tests.lost,
        missing_folds=[k for k in tests.run.info().folds if k not in finished],
        config_hash=result.config_hash,
        index_hash=tests.index.hash,
        models=models,
    )


def _common_scores(tables: Sequence[ScoredPredictions], tests: RunTests) -> UarWar | None:
    """Return the mean scores if models could predict classes of the set only."""
    common = np.array(tests.tests[0].chosen.common)
    if len(common) == len(tests.classes):
        return None
    outputs = [(t.labels, t.logits) for t in tables if t.logits is not None]
    scores = [score(y, common[x[:, common].argmax(1)], tests.classes) for y, x in outputs]
    return UarWar(*(float(np.mean([getattr(s, m) for s in scores])) for m in ("uar", "war")))


def crosseval_title(result: CrossEval) -> str:
    """Return the names of runs and sets."""
    return f"{join(result.runs)} on {join(result.sets)}"


def crosseval_section(result: CrossEval) -> Section:
    """Return the matrix of scores, and a table with a row for each cell."""
    title = crosseval_title(result)
    cells = {(cell.run, cell.tested_on): cell for cell in result.cells}
    rows = []
    for run in result.runs:
        of_run = [cells[run, name] for name in result.sets]
        scores = [mean_text(x) for cell in of_run for x in (cell.uar, cell.war)]
        rows.append([of_run[0].row, *scores])
    alerts, notes = _alerts(result), list(_NOTES)
    notes += dict.fromkeys(f"Protocol {PROTOCOLS[c.selection]}." for c in result.cells)
    header = ["Trained on", *(f"{s} {metric}" for s in result.sets for metric in ("UAR", "WAR"))]
    matrix = Table("matrix", f"{title}: UAR and WAR, percent", header, rows, alerts, notes)
    more = [_CLASSES_NOTE] * any(c.common or c.left_out for c in result.cells)
    rules = list(range(len(result.sets), len(result.cells), len(result.sets)))
    header = ["Trained on", "Tested on", "Clips", "UAR %", "95 % interval", "WAR %"]
    header += ["95 % interval", *["Common classes UAR %", "WAR %"] * bool(more)]
    rows = [_cell_row(cell)[: len(header)] for cell in result.cells]
    details = Table("cells", f"{title}: cells", header, rows, alerts, more, left=2, rules=rules)
    return Section("crosseval", "Trained on and tested on", [matrix, details])


def _cell_row(cell: CellScores) -> list[str]:
    row = [cell.row, cell.tested_on + " (own folds)" * cell.own, str(cell.n)]
    for value in (cell.uar, cell.war):
        row += [mean_text(value), interval_text(*value.ci95)]
    common = cell.common or UarWar(cell.uar.mean, cell.war.mean)
    return [*row, f"{common.uar:.2f}", f"{common.war:.2f}"]


def _alerts(result: CrossEval) -> list[str]:
    """Return what forbids taking the numbers at face value."""
    texts = []
    for cell in result.cells:
        where = f"{cell.run} on {cell.tested_on}"
        if cell.missing_folds:
            texts.append(f"{cell.run}: {folds_text(cell.missing_folds)} missing.")
        if cell.left_out:
            texts.append(f"{where}: {other_classes_text(cell.left_out)}.")
        if cell.lost:
            texts.append(f"{where}: {left_out_text(cell.lost, cell.n)}.")
    return list(dict.fromkeys(texts))
