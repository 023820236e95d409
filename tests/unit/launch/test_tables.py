"""Tables of all commands on a terminal of 80 columns: no number is cut or broken."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

import launch.console
from dfer_dist.data.captions.generate import Outcome, open_folder
from dfer_dist.data.captions.store import Source
from dfer_dist.data.packing.report import PackReport, PackSettings, SplitReport
from dfer_dist.evaluation.metrics import score
from dfer_dist.inference.predict import VideoPrediction
from dfer_dist.reporting.comparison.paired import compare, load_runs
from dfer_dist.reporting.comparison.published import read_published
from dfer_dist.reporting.comparison.sections import comparison_sections
from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.sections import run_sections
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import read_json, write_json
from launch.commands import backbones, bench, data, describe, models, plan, results
from launch.commands.endpoint import outcome_table
from launch.console import fit_table, number_columns
from launch.report import print_tables
from launch.slurm import status
from launch.slurm.state import FoldState
from tests.helpers.cli import invoke
from tests.helpers.made_runs import make_run
from tests.helpers.models.counted_steps import (
    FEW_LAYERS,
    counted_steps,  # noqa: F401 (a fixture)
)
from tests.helpers.paths import ROOT

WIDTH = 80
DEVICE = "NVIDIA H200 141GB HBM3e"
# modules with tables, all of which are printed here
WITH_TABLES = {
    "dfer_dist/reporting/tables.py",
    "launch/commands/backbones.py",
    "launch/commands/bench.py",
    "launch/commands/data.py",
    "launch/commands/endpoint.py",
    # in test_folds_command.py
    "launch/commands/folds.py",
    "launch/commands/models.py",
    "launch/commands/plan.py",
    "launch/commands/results.py",
    "launch/console.py",
    # in test_fold_table.py
    "launch/fold_table.py",
    "launch/slurm/status.py",
    # in test_trials.py
    "launch/sweeps/search_report.py",
}


def texts_with_digits(texts: list[str]) -> list[str]:
    """Return numbers and names with numbers; longer texts are hashes and paths, which may fold."""
    parts = [part for text in texts for part in text.split()]
    return [part for part in parts if re.search(r"\d", part) and len(part) <= 24]


def check_whole(table: Table, width: int = WIDTH) -> list[str]:
    """Check that all numbers of a table are printed whole; return the columns left out."""
    heads = [str(column.header) for column in table.columns]
    fit_table(table, width, "summary.md")
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    shown = [str(cell) for column in table.columns for cell in column.cells]
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.count("…") == "".join(shown).count("…")
    lost = Counter(texts_with_digits(shown)) - Counter(text.split())
    assert not lost, f"{lost} in\n{text}"
    left_out = heads[len(table.columns) :]
    if left_out:
        note = f"Left out at {width} characters: {', '.join(left_out)}; summary.md has them."
        assert note in str(table.caption)
    return left_out


class Printed:
    """Collects the tables that :func:`launch.console.print_table` would print."""

    def __init__(self) -> None:
        self.tables: list[Table] = []

    def __call__(self, table: Table, file: str = "") -> None:
        self.tables.append(table)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    printed = Printed()
    for module in (backbones, bench, data, describe, models, plan, launch.report):
        monkeypatch.setattr(module, "print_table", printed)
    return printed


def long_run(root: Path, **how: Any) -> RunDir:
    """Return a run of five folds with large numbers, on GPUs."""
    run = make_run(root, (1, 2, 3, 5), 5, n=1234, shuffled=True, **how)
    for k in (1, 2, 3, 5):
        attempt = {"world_size": 2**k, "device": DEVICE, "peak_bytes": 123 * 2**30}
        attempt |= {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-21T10:00:00+00:00"}
        attempts = [attempt, attempt | {"undone_steps": 123_456}]
        write_json(run.fold(k).status, {"state": "DONE", "attempts": attempts})
        lines = run.fold(k).metrics.read_text().replace("50.0", "123456.789")
        run.fold(k).metrics.write_text(lines)
    return run


def test_tables_of_reports_and_comparisons_are_whole(tmp_path: Path, printed: Printed) -> None:
    names = ("dfew_vitb32_lora16", "dfew_vitb16")
    runs = [long_run(tmp_path / name, sure=s) for name, s in zip(names, (2.0, 9.0), strict=True)]
    zero_shot = read_json(runs[0].fold(1).result)
    origin = {"fold": 1, "config_hash": "aa", "index_hash": "bb", "objective": "labels"}
    origin |= {"dataset": "DFEW", "classes": zero_shot["classes"]}
    chance = {"uar": 14.29, "war": 25.88, "uar_p": 0.00005, "war_p": 0.123}
    zero_shot |= {"trained_on": origin, "chance": chance, "context": "kept"}
    write_json(runs[0].fold(1).root / "zero-shot-x.json", zero_shot)
    table = runs[0].fold(1).predictions.read_bytes()
    (runs[0].fold(1).root / "zero-shot-x.parquet").write_bytes(table)
    for run in runs:
        print_tables(run_sections(load_run(run), read_published("published")), "summary.md")
    first, second = load_runs(runs)
    print_tables(comparison_sections([first, second], [compare(first, second)]), "comparison.md")
    left_out = [check_whole(table) for table in printed.tables]
    assert len(left_out) == 11 + 10 + 2 + 4
    # the difference, its interval and its p fit
    assert [heads for heads in left_out if heads] == [["Verdict"]]


def test_tables_of_plans_are_whole(
    tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_steps(*_: object, **__: object) -> dict[str, Any]:
        return {"seconds": 12.345, "sent": 1e9, "bandwidth": 1e9, "latency": 1e-5}

    monkeypatch.setattr(plan, "take_steps", take_steps)
    scale = ["--scale", "1,2,...,512", "--tflops", "1"]
    for given in (["--gpus", "8"], ["--gpus", "8", *scale], ["--measure", "--scale", "1,2,8"]):
        done = invoke("plan", "dfew_vitb32", *given, FEW_LAYERS, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert [check_whole(table) for table in printed.tables] == [[], [], []]


def test_tables_of_benchmarks_are_whole() -> None:
    about = {
        "rounds": 5,
        "precision": "bf16",
        "backbone": "ViT-B-32",
        "num_frames": 16,
        "image_size": 224,
    }
    about |= {"device": DEVICE, "frame_bytes": 12_345, "clips": 48}
    step = {"seconds": 123.45, "clips_per_s": 12_345.67, "peak_bytes": 123 * 2**30}
    kinds = ("ours", "recomputing", "floor", "baseline")
    steps: dict[str, Any] = dict.fromkeys(kinds, step) | {"mfu": 0.456}
    load = {"clips_per_s": 12_345.0, "clips_per_cpu_s": 123_456.0}
    loads: dict[str, Any] = dict.fromkeys(bench._LOADER_ROWS, load) | {"about": about}
    for table in (bench._steps_table(steps, "checkpoint", about), bench._loader_table(loads)):
        assert check_whole(table) == []


def test_tables_of_backbones_are_whole(tmp_path: Path, printed: Printed) -> None:
    for pattern in ([], ["timm:"]):
        assert invoke("backbones", *pattern, cwd=tmp_path).returncode == 0
    assert [check_whole(table) for table in printed.tables] == [[], []]


def test_table_of_packed_clips_is_whole() -> None:
    counts = dict.fromkeys(("happiness", "disappointment"), 12345)
    split = SplitReport(234_567, 234_000, 12_345_678, 567, counts)
    splits = {f"fold{k}": split for k in range(1, 6)}
    report = PackReport("DFEW", "", 0, 0, 0, 0, splits, [], PackSettings(100), "")
    assert check_whole(data._table(report)) == []


def test_table_of_a_prediction_is_whole(printed: Printed) -> None:
    classes = ("disappointment", "contempt_and_other_feelings", "helplessness")
    spans = np.array([[1000.0 * i, 1000.0 * i + 3.5] for i in range(40)])
    logits = np.tile(np.array([1.0, 9.0, 2.0], np.float32), (40, 1))
    video = Path("a rather long name of a video, take 12.mp4")
    models._print_prediction(VideoPrediction(video, classes, spans, logits, np.ones(40), 4e4))
    assert [check_whole(table) for table in printed.tables] == [[]]


def test_table_of_descriptions_is_whole(printed: Printed) -> None:
    index = open_folder(str(ROOT / "tests" / "fixtures" / "v1" / "data"))
    outcome = Outcome(answered=123_456, cached=1_234_567, not_sent=12)
    outcome.failed["HTTP 503 of the server"] = 12_345
    outcome.examples["HTTP 503 of the server"] = "clip 12: " + "the server is overloaded " * 9
    describe._print_outcome(index, Source({"name": "m", "language": "en"}), outcome)
    assert [check_whole(table) for table in printed.tables] == [[]]
    assert [len(x.columns) for x in (printed.tables[0], outcome_table("m", Outcome(3)))] == [3, 2]


def test_table_of_classes_is_whole_and_names_wrong_answers() -> None:
    classes = ["happiness", "sadness", "contempt_and_other_feelings", "fear"]
    labels = np.repeat([0, 1, 2], [12_000, 6, 7])
    answers = np.repeat([0, 1, 2, 1, 2, 0, 1, 3, 2], [11_000, 900, 100, 6, 1, 2, 2, 1, 1])
    table = results.classes_table(score(labels, answers, classes))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("happiness", "91.67", "11000 of 12000", "sadness (900)"),
        # a percentage of few clips would look exact
        ("sadness", "", "6 of 6", ""),
        ("contempt_and_other_feelings", "", "2 of 7", "happiness, sadness (2)"),
        ("fear", "", "no clip", ""),
    ]
    assert check_whole(table) == []


def test_table_of_states_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "console", Console(width=WIDTH))
    scores = {"uar": 100.0, "war": 100.0, "scored": "test 12", "clips_per_second": 12_345.0}
    place = {"nodes": "gpu-a-[0012-0019],gpu-b-0100", "left": "3-12:34:56", "device": DEVICE}
    times = {"phase": "training", "loss": 12.3456, "seconds_left": 359_999.0, "seconds_silent": 99}
    steps = {"step": 123_456, "steps": 234_567, "mfu": 0.414}
    fold = FoldState(1, "RUNNING", attempts=12, **steps, **scores, **times, **place)
    table = status._table([fold])
    assert check_whole(table) == []
    heads = [str(column.header) for column in table.columns]
    assert heads[:7] == ["Fold", "State", "Phase", "Step", "Loss", "clips/s", "Left"]
    assert heads[7:11] == ["Last line", "Device", "UAR %", "WAR %"]
    monkeypatch.setattr(status, "console", Console(width=200))
    wide = {str(column.header): list(column.cells) for column in status._table([fold]).columns}
    assert [str(cell) for cell in wide["MFU %"]] == ["41"]
    note = "Left out at 80 characters: From, MFU %, Try, Limit, Nodes; a wider terminal shows them."
    assert note in str(table.caption)


def test_columns_without_space_are_named_with_their_file() -> None:
    table = Table("Fold", *number_columns("UAR %", "WAR %", "Clips"), caption="A note.")
    table.add_row("1", "100.00", "99.95", "12,345")
    assert check_whole(table, 20) == ["Clips"]
    caption = "A note.\nLeft out at 20 characters: Clips; summary.md has them."
    assert str(table.caption) == caption
    # a terminal that is wide enough shows the table as it is
    whole = Table("Fold", "UAR %")
    whole.add_row("1", "100.00")
    assert check_whole(whole) == []
    assert whole.box and not whole.caption


def test_every_table_is_fitted() -> None:
    sources = {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for package in ("dfer_dist", "launch")
        for file in (ROOT / package).rglob("*.py")
    }
    assert {name for name, text in sources.items() if "rich.table" in text} == WITH_TABLES
    for name, text in sources.items():
        assert not re.search(r"console\.print\((table|terminal|_\w*table)\b", text), name
