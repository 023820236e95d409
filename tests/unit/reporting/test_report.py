from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from dfer_dist.evaluation.metrics import bootstrap_ci, score
from dfer_dist.reporting.files import write_summary
from dfer_dist.reporting.results import read_fold
from dfer_dist.reporting.sections import summary_table
from dfer_dist.reporting.summary import confusion_png, summarize
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import CLASSES, make_fold, write_table

ALL = [1, 2, 3, 4, 5]


def change(fold: Path, **fields: Any) -> None:
    path = fold / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def words(summary: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(summary_table(summary))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_five_folds(tmp_path: Path) -> None:
    folds = [make_fold(tmp_path, k, shuffled=True) for k in ALL]
    results = [json.loads((f / "result.json").read_text()) for f in folds]
    s = write_summary(tmp_path, ALL)
    assert s == json.loads((tmp_path / "summary.json").read_text())
    assert (s["version"], s["dataset"], s["selection"], s["missing"], s["folds"]) == (
        1,
        "DFEW",
        "last",
        [],
        results,
    )
    wars = [r["war"] for r in results]
    assert s["war"]["mean"] == pytest.approx(np.mean(wars))
    assert s["war"]["std"] == pytest.approx(np.std(wars, ddof=1))
    assert s["uar"]["ci95"][0] < s["uar"]["mean"] < s["uar"]["ci95"][1]
    assert s["pooled"]["n"] == 1000
    assert s["pooled"]["confusion"] == np.sum([r["confusion"] for r in results], axis=0).tolist()
    assert s["pooled"]["war"] == pytest.approx(np.mean(wars))  # folds of equal size
    assert s["majority"]["class"] == "neutral"
    assert s["majority"]["war"] == pytest.approx(s["pooled"]["support"]["neutral"] / 10)
    assert s["shuffled"]["war"]["mean"] == pytest.approx(
        np.mean([r["shuffled"]["war"] for r in results])
    )
    assert s["shuffled"]["war"]["ci95"][1] < s["war"]["ci95"][0]


def test_interval_comes_from_the_predictions(tmp_path: Path) -> None:
    tables = []
    for k in (1, 2):
        data = pq.read_table(make_fold(tmp_path, k) / "predictions.parquet").to_pydict()
        tables.append((np.array(data["label"]), np.array(data["logits"]).argmax(1)))
    s = summarize(tmp_path, [1, 2])
    for metric in ("uar", "war"):
        assert tuple(s[metric]["ci95"]) == bootstrap_ci(tables, len(CLASSES), metric)


def test_table_and_markdown_say_the_numbers(tmp_path: Path) -> None:
    for k in ALL:
        make_fold(tmp_path, k, shuffled=True, selection="best_test")
    s = write_summary(tmp_path, ALL)
    for text in (words(s), (tmp_path / "summary.md").read_text()):
        assert "best_test: epoch chosen on the test fold, optimistic" in text
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


def test_missing_folds_are_said_everywhere(tmp_path: Path) -> None:
    for k in (1, 2, 4):
        make_fold(tmp_path, k)
    (tmp_path / "fold-3").mkdir()  # begun, not finished
    s = write_summary(tmp_path, ALL)
    assert s["missing"] == [3, 5]
    markdown = (tmp_path / "summary.md").read_text()
    sentence = "2 of 5 folds missing (3, 5): all figures are over folds 1, 2, 4 only."
    assert sentence in "\n".join(markdown.splitlines()[:3])
    assert "| 3 | missing |" in markdown
    assert "| folds 3, 5 | missing |" in markdown
    text = words(s)
    assert sentence in text
    assert [line.split()[1] for line in text.splitlines() if "missing │" in line] == ["3", "5"]
    assert "mean ± deviation of folds 1, 2, 4" in text


def test_one_fold_has_no_deviation(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    s = write_summary(tmp_path, [1])
    assert s["uar"]["std"] is None
    assert s["war"]["mean"] == s["folds"][0]["war"]
    assert s["shuffled"] is None
    assert "±" not in words(s)


def test_absent_class(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    make_fold(tmp_path, 2, without=5)
    s = write_summary(tmp_path, [1, 2])
    assert "Fold 2 has no clip of disgust" in words(s)
    make_fold(tmp_path / "b", 1, without=5)
    s = write_summary(tmp_path / "b", [1])
    assert s["pooled"]["absent"] == ["disgust"]
    assert "| disgust | 0 | absent |" in (tmp_path / "b" / "summary.md").read_text()


def test_shuffled_scores_of_some_folds_are_not_averaged(tmp_path: Path) -> None:
    make_fold(tmp_path, 1, shuffled=True)
    make_fold(tmp_path, 2)
    s = summarize(tmp_path, [1, 2])
    assert s["shuffled"] is None
    assert "exist for fold 1 only" in words(s)


def test_no_fold_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished fold"):
        write_summary(tmp_path, ALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [{"config_hash": "cc"}, {"index_hash": "cc"}, {"dataset": "MAFW"}, {"selection": "best_val"}],
    ids=lambda f: next(iter(f)),
)
def test_folds_of_different_runs_are_not_mixed(tmp_path: Path, fields: dict[str, Any]) -> None:
    for k in (1, 2, 3):
        make_fold(tmp_path, k, **(fields if k == 3 else {}))
    with pytest.raises(UserError, match=f"folds 1 and 3 differ in {next(iter(fields))}"):
        summarize(tmp_path, [1, 2, 3])


def test_renamed_classes_and_folders_are_not_mixed(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    other = make_fold(tmp_path, 2)
    result = json.loads((other / "result.json").read_text())
    names = ["joy", *CLASSES[1:]]
    support = dict(zip(names, result["support"].values(), strict=True))
    change(other, classes=names, support=support)
    with pytest.raises(UserError, match="folds 1 and 2 differ in classes"):
        summarize(tmp_path, [1, 2])
    other.rename(tmp_path / "fold-3")
    with pytest.raises(UserError, match="is of fold 2"):
        summarize(tmp_path, [1, 3])


def _truncate(fold: Path) -> None:
    path = fold / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-200])


def _flip(fold: Path) -> None:
    path = fold / "predictions.parquet"
    data = pq.read_table(path).to_pydict()
    labels = np.array(data["label"])
    labels[0] = (labels[0] + 1) % len(CLASSES)
    write_table(path, labels, np.array(data["logits"]))


def _rows(
    keep: slice, keys: Callable[[list[str]], list[str]] = lambda k: k
) -> Callable[[Path], None]:
    def damage(fold: Path) -> None:
        path = fold / "predictions.parquet"
        data = pq.read_table(path).to_pydict()
        write_table(
            path,
            np.array(data["label"])[keep],
            np.array(data["logits"])[keep],
            keys(data["key"][keep]),
        )

    return damage


def _ragged(fold: Path) -> None:
    logits = pa.array([[1.0] * 7, [1.0] * 6, [1.0] * 8], pa.list_(pa.float32()))
    table = {"key": ["a", "b", "c"], "label": pa.array([0, 1, 2], pa.int32()), "logits": logits}
    pq.write_table(pa.table(table), fold / "predictions.parquet")


@pytest.mark.parametrize(
    ("damage", "file", "text"),
    [
        (_truncate, "predictions.parquet", "damaged"),
        (lambda f: (f / "predictions.parquet").unlink(), "predictions.parquet", "missing"),
        (
            lambda f: pq.write_table(pa.table({"key": ["a"]}), f / "predictions.parquet"),
            "predictions.parquet",
            "label",
        ),
        (_rows(slice(0, 0)), "predictions.parquet", "damaged"),
        (
            _rows(slice(None), lambda k: [k[0], *k[:-1]]),
            "predictions.parquet",
            "a key occurs twice",
        ),
        (_ragged, "predictions.parquet", "7 logits"),
        (_rows(slice(0, -1)), "result.json", "n is not that"),
        (_flip, "result.json", "support|confusion"),
        (lambda f: change(f, war=99.0), "result.json", r"war is not .*it says 99\.0"),
        (lambda f: change(f, uar=None), "result.json", "uar"),
        (lambda f: change(f, version=2), "result.json", "version"),
        (lambda f: change(f, selection="best"), "result.json", "best_test"),
        (
            lambda f: change(f, shuffled={"uar": 1.0, "war": 1.0}),
            "predictions_shuffled.parquet",
            "missing",
        ),
        (lambda f: (f / "result.json").write_text("{"), "result.json", "read"),
        (
            lambda f: (f / "result.json").write_text('{"version": 1}'),
            "result.json",
            "lacks dataset",
        ),
    ],
)
def test_damage_is_named(
    tmp_path: Path, damage: Callable[[Path], object], file: str, text: str
) -> None:
    fold = make_fold(tmp_path, 1)
    assert read_fold(fold)["n"] == 200
    damage(fold)
    with pytest.raises(UserError, match=text) as e:
        read_fold(fold)
    assert str(fold / file) in str(e.value)


def test_pictures(tmp_path: Path) -> None:
    for k in (1, 3):
        make_fold(tmp_path, k, shuffled=True)
    s = write_summary(tmp_path, [1, 2, 3])
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1500
        assert picture.height > 800
        # bars of both colours, the word for the missing fold, and the dark diagonal of the confusion matrix
        colours = {c for _, c in picture.convert("RGB").getcolors(2**24) or []}
        assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0xD5, 0x5E, 0x00)} <= colours
    first = (tmp_path / "summary.png").read_bytes()
    write_summary(tmp_path, [1, 2, 3])
    assert (tmp_path / "summary.png").read_bytes() == first
    confusion_png(s["folds"][0], tmp_path / "fold-1" / "confusion.png")
    confusion_png(
        score(np.array([0, 1]), np.array([0, 0]), ["neutral", "smile"]), tmp_path / "two.png"
    )
    for path in (tmp_path / "fold-1" / "confusion.png", tmp_path / "two.png"):
        with Image.open(path) as picture:
            assert min(picture.size) >= 750
    assert not list(tmp_path.rglob(".*"))  # no temporary file stays


def test_importing_the_report_is_cheap() -> None:
    code = "import sys, dfer_dist.reporting.files; print(*{'torch', 'matplotlib', 'sklearn', 'pyarrow', 'rich'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


def test_the_protocol_says_what_a_prediction_rests_on(tmp_path: Path) -> None:
    for views, expected in (
        (1, "seen once, 8 frames a view (dense)."),
        (3, "seen in 3 views, their probabilities averaged, 8"),
    ):
        run = tmp_path / str(views)
        make_fold(run, 1, num_frames=8, sampling="dense", views=views)
        write_summary(run, [1])
        assert expected in (run / "summary.md").read_text()
