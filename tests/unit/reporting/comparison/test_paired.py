"""Two runs on the same clips, and warnings about an unfair comparison."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfer_dist.config.load import dump_config, read_config
from dfer_dist.evaluation.metrics import score
from dfer_dist.evaluation.significance import Difference
from dfer_dist.evaluation.votes import mean_over_folds
from dfer_dist.reporting.comparison.paired import Comparison, compare, load_runs
from dfer_dist.reporting.comparison.sections import comparison_sections
from dfer_dist.reporting.comparison.verdict import comparison_verdict
from dfer_dist.reporting.files import write_comparison
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.tables import markdown
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import CLASSES, make_run, write_table


def held(first: RunDir, second: RunDir) -> Comparison:
    return compare(*load_runs([first, second]))


def rewrite(
    run: RunDir,
    fold: int,
    keep: slice = slice(None),
    labels: Any = None,
    keys: list[str] | None = None,
    **fields: Any,
) -> None:
    """Change a fold's clips, and its result with them."""
    files = run.fold(fold)
    data = pq.read_table(files.predictions).to_pydict()
    truth, logits = np.array(data["label"])[keep], np.array(data["logits"])[keep]
    truth = truth if labels is None else labels(truth)
    write_table(files.predictions, truth, logits, keys or data["key"][keep])
    result = json.loads(files.result.read_text())
    scores = score(truth, logits, result["classes"])
    files.result.write_text(json.dumps(result | vars(scores) | fields))


def test_paired_numbers_match_predictions(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", sure=3.0)
    c = held(first, second)
    assert c.warnings == []
    assert c.paired is not None
    p, results = (
        c.paired,
        [[json.loads(r.fold(k).result.read_text()) for k in (1, 2, 3)] for r in (first, second)],
    )
    for metric in ("uar", "war"):
        scores = np.array([[r[metric] for r in run] for run in results])
        assert [getattr(f, metric) for f in p.folds] == [
            pytest.approx(tuple(x)) for x in scores.T.tolist()
        ]
        assert p.difference[metric].value == pytest.approx((scores[1] - scores[0]).mean())
        t = p.t_test[metric]
        assert t is not None
        assert t.mean == pytest.approx(p.difference[metric].value)
        assert p.difference[metric].low < p.difference[metric].value < p.difference[metric].high
    assert (p.n_test, p.n_train) == (200, 400)
    right = [np.sum([np.trace(r["confusion"]) for r in run]) for run in results]
    assert p.mcnemar.gained - p.mcnemar.lost == right[1] - right[0]
    assert (
        p.mcnemar.gained
        == sum(x.kind == "gained" for x in p.changes)
        == sum(x.gained for x in p.classes)
    )
    for i, x in enumerate(p.classes):
        pooled = [np.sum([r["confusion"][i] for r in run], axis=0) for run in results]
        assert (x.name, x.clips) == (CLASSES[i], pooled[0].sum())
        assert (x.first, x.second) == pytest.approx([100 * row[i] / row.sum() for row in pooled])
    assert {x.verdict for x in p.classes} <= {"gained", ""}
    backwards = held(second, first).paired
    assert backwards is not None
    assert backwards.difference["uar"].value == pytest.approx(-p.difference["uar"].value)
    assert backwards.mcnemar.p == p.mcnemar.p


def test_calibration_is_compared_clip_by_clip(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", sure=1.0), make_run(tmp_path / "b", sure=3.0)
    p = held(first, second).paired
    assert p is not None
    outputs = [[fold.table.outputs for fold in load_run(r).folds.values()] for r in (first, second)]
    labels = [o.labels for o in outputs[0]]
    for found, name in zip(p.calibration, ("nll", "brier"), strict=True):
        values = [[getattr(o, name) for o in of_run] for of_run in outputs]
        means = [np.mean([v.mean() for v in own]) for own in values]
        assert found.name == name and (found.first, found.second) == pytest.approx(means)
        clips = [(b - a)[None] for a, b in zip(*values, strict=True)]
        (expected,) = mean_over_folds(clips, labels)
        assert astuple(found.difference) == pytest.approx(astuple(expected))
        # clips that both find hard are hard for both: apart, the intervals would be wider
        assert found.difference.low < means[1] - means[0] < found.difference.high < 0
    same = held(first, make_run(tmp_path / "c", sure=1.0)).paired
    assert same is not None
    assert [x.difference for x in same.calibration] == [Difference(0, 0, 0)] * 2


def test_calibration_of_classes_in_another_order_is_that_of_the_same_clips(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", (1,), 1)
    second = make_run(tmp_path / "b", (1,), 1, classes=CLASSES[::-1])
    data = pq.read_table(first.fold(1).predictions).to_pydict()
    labels, logits = 6 - np.array(data["label"]), np.array(data["logits"])[:, ::-1]
    write_table(second.fold(1).predictions, labels, logits)
    scores = vars(score(labels, logits, CLASSES[::-1]))
    result = json.loads(second.fold(1).result.read_text())
    second.fold(1).result.write_text(json.dumps(result | scores))
    p = held(first, second).paired
    assert p is not None
    for x in p.calibration:
        assert x.first == pytest.approx(x.second)
        assert astuple(x.difference) == pytest.approx((0, 0, 0), abs=1e-9)


def test_sets_of_labels_have_no_calibration(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / x, (1,), 1, output=x) for x in ("softmax", "sigmoid")]
    c = held(*runs)
    assert c.paired is not None and c.paired.calibration == []
    loaded = load_runs(runs)
    assert "calibration" not in [s.key for s in comparison_sections(loaded, [c])]


def test_run_and_its_copy_have_no_differences(tmp_path: Path) -> None:
    p = held(make_run(tmp_path / "a"), make_run(tmp_path / "b")).paired
    assert p is not None
    assert p.changes == []
    assert p.mcnemar.p == 1
    assert p.difference["uar"].value == 0
    assert not any(x.verdict for x in p.classes)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"index_hash": "other"}, "different data (index bb, other)"),
        ({"selection": "best_test"}, "best_test looks at the test fold and is optimistic"),
        ({"dataset": "MAFW"}, "different data sets (DFEW, MAFW)"),
    ],
    ids=["data", "selection", "data set"],
)
def test_unlike_runs_are_compared_with_a_warning(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    runs = [make_run(tmp_path / "a", (1,), 1), make_run(tmp_path / "b", (1,), 1, **fields)]
    (warning,) = held(*runs).warnings
    assert expected in warning
    if "selection" not in fields:
        return  # files take seconds
    write_comparison(runs, tmp_path / "out")
    for kind in ("md", "html", "json"):
        assert expected in (tmp_path / "out" / f"comparison.{kind}").read_text()
    assert expected.replace("_", r"\_") in (tmp_path / "out" / "comparison.tex").read_text()


def test_folds_of_one_run_only_are_left_out_with_warning(tmp_path: Path) -> None:
    c = held(make_run(tmp_path / "a"), make_run(tmp_path / "b", folds=(1, 3), sure=3.0))
    assert c.warnings == [
        "b has 2 of 3 folds (2 missing).",
        "Only folds 1, 3 of both are compared.",
    ]
    assert c.paired is not None
    assert [f.fold for f in c.paired.folds] == [1, 3]
    assert c.paired.clips == 400
    alone = held(make_run(tmp_path / "c", folds=(1,)), make_run(tmp_path / "d", folds=(2,)))
    assert alone.paired is None
    assert "no fold in common" in alone.warnings[2]


def test_other_clips_and_labels_are_left_out_with_warning(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", sure=3.0)
    rewrite(second, 1, keep=slice(5, None))
    rewrite(second, 2, labels=lambda truth: np.concatenate([(truth[:3] + 1) % 7, truth[3:]]))
    c = held(first, second)
    assert c.warnings == [
        "Fold 1 is not the same clips: 5 and 0 that only one of them has are left out.",
        "Fold 2 has 3 clips with another label in each: they are left out.",
    ]
    assert c.paired is not None
    assert [f.clips for f in c.paired.folds] == [195, 197, 200]
    rewrite(second, 3, keys=[f"other-{i}" for i in range(200)])
    c = held(first, second)
    assert c.paired is not None
    assert [f.fold for f in c.paired.folds] == [1, 2]


def test_order_of_clips_and_classes_changes_nothing(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", sure=3.0)
    before = held(first, second).paired
    for k in (1, 2, 3):
        files = second.fold(k)
        data = pq.read_table(files.predictions).to_pydict()
        turn = np.random.default_rng(k).permutation(200)
        labels, logits = 6 - np.array(data["label"])[turn], np.array(data["logits"])[turn][:, ::-1]
        write_table(files.predictions, labels, logits, [data["key"][i] for i in turn])
        result = json.loads(files.result.read_text()) | vars(score(labels, logits, CLASSES[::-1]))
        files.result.write_text(json.dumps(result))
    after = held(first, second).paired
    assert before is not None and after is not None
    assert after.difference == before.difference
    assert after.classes == before.classes
    assert {(x.key, x.second) for x in after.changes} == {(x.key, x.second) for x in before.changes}


def test_other_classes_are_not_compared(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", (1,), 1)
    c = held(first, make_run(tmp_path / "b", (1,), 1, classes=CLASSES[:3]))
    assert c.paired is None
    assert "Their classes differ" in c.warnings[-1]
    write_comparison([c.first.run, c.second.run], tmp_path / "out")
    assert "not compared" in (tmp_path / "out" / "comparison.md").read_text()


def test_one_fold_has_no_t_test(tmp_path: Path) -> None:
    """As FERV39k."""
    runs = [
        make_run(tmp_path / x, folds=(1,), all_folds=1, sure=s) for x, s in (("a", 2.0), ("b", 3.0))
    ]
    p = held(*runs).paired
    assert p is not None
    assert p.t_test == {"uar": None, "war": None}
    assert p.difference["uar"].certain
    write_comparison(runs, tmp_path / "out")
    assert (
        "A t-test over folds needs two folds or more."
        in (tmp_path / "out" / "comparison.md").read_text()
    )


def test_load_runs_rejects_the_same_run_twice(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="given twice"):
        load_runs([run, run])
    other = make_run(tmp_path / "x" / "a")
    assert [s.name for s in load_runs([run, other])] == [f"{tmp_path.name}/a", "x/a"]


def with_other_folds(run: RunDir, others: RunDir, folds_hash: str) -> None:
    """Give each clip of a run its logits in another fold: those of key ``i`` move by one fold."""
    for k in (1, 2, 3):
        keys = [f"clip-{k % 3 + 1}-{i}" for i in range(200)]
        source = pq.read_table(others.fold(k % 3 + 1).predictions).to_pydict()
        write_table(
            run.fold(k).predictions, np.array(source["label"]), np.array(source["logits"]), keys
        )
        result = json.loads(run.fold(k).result.read_text())
        scores = score(source["label"], np.array(source["logits"]), CLASSES)
        new = result | vars(scores) | {"folds_hash": folds_hash}
        run.fold(k).result.write_text(json.dumps(new))


def test_runs_with_different_folds_are_compared_over_all_folds(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", sure=3.0)
    source = make_run(tmp_path / "c", sure=3.0)
    for k in (1, 2, 3):
        rewrite(first, k, keys=[f"clip-{k}-{i}" for i in range(200)])
    with_other_folds(second, source, "f" * 64)
    config = read_config(second.config)
    config.data.folds, config.data.folds_hash = "folds.json", "f" * 64
    second.config.write_text(dump_config(config))
    c = held(first, second)
    assert c.warnings == [
        "They have different folds (the set's own, ffffffffffff): they were trained on other "
        "clips, and are compared over the test clips of all folds."
    ]
    p = c.paired
    assert p is not None and p.is_pooled and (p.clips, len(p.folds)) == (600, 1)
    right = [x.summary.pooled.war * 6 for x in (c.first, c.second)]
    assert p.mcnemar.gained - p.mcnemar.lost == pytest.approx(right[1] - right[0])
    assert p.difference["war"].value == pytest.approx((right[1] - right[0]) / 6)
    assert p.t_test == {"uar": None, "war": None}
    sections = comparison_sections([c.first, c.second], [c])
    text = "\n".join(markdown(table) for section in sections for table in section.tables)
    assert "| folds=the set's own |" in text and "| folds=ffffffffffff |" in text
    assert "600 clips of all folds, pooled;" in text
    assert "UAR, all folds pooled" in text and "| all | 600 |" in text
    (sentence,) = comparison_verdict(c).sentences
    assert "on 600 clips" in sentence and "fold in common" not in sentence
