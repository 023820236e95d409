"""The table of the folds that a command trains, and the lines where there is no terminal."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

import launch.console
from dfer_dist.config.load import load_config
from dfer_dist.data.shards.index import Index, Shard
from launch import fold_table, local, progress
from launch.fold_table import FoldTable
from launch.local import first_line
from launch.progress import FoldProgress
from tests.helpers.paths import ROOT

SCORES = "UAR 100.00 WAR 100.00"
TRAINING = FoldProgress("training", 12_340, 98_700, 6, 0, "", 1.23456, 12_345.6, 1.0)
AT_THE_END = FoldProgress("saving", 98_700, 98_700, 50, 0, "", None, None, 1.0)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(monotonic=clock.monotonic, time=time.time)
    for module in (fold_table, progress):
        monkeypatch.setattr(module, "time", fake)
    return clock


def use_console(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, width: int = 80, height: int = 24
) -> Console:
    """Let the table print to a console that records."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, highlight=False
    )
    for module in (fold_table, launch.console):
        monkeypatch.setattr(module, "console", console)
    return console


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def train_some(table: FoldTable, clock: Clock) -> None:
    """Take two hours: the first fold is done before, the second in one hour, the third trains."""
    table.start(1)
    table.finish(1, SCORES, is_new=False)
    table.start(2)
    table.update(2, TRAINING)
    clock.now += 3600
    table.update(2, AT_THE_END)
    table.finish(2, SCORES)
    table.start(3)
    clock.now += 3600
    table.update(3, TRAINING)


def rows(table: FoldTable, console: Console) -> list[str]:
    plain = Console(file=io.StringIO(), width=console.width, highlight=False)
    plain.print(table.render())
    return text_of(plain).splitlines()


def test_table_has_heads_and_fits_80_columns(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console, table = use_console(monkeypatch, terminal=True), FoldTable(5, epochs=50)
    train_some(table, clock)
    heads, first, second, third, every = shown = rows(table, console)
    assert max(map(len, shown)) <= 80
    assert heads.split() == ["Fold", "State", "Step", "Epoch", "Loss", "clips/s", "Elapsed", "Left"]
    assert first.split() == ["1", *SCORES.split(), "earlier"]
    assert second.split() == ["2", *SCORES.split(), "98700/98700", "50/50", "1:00:00"]
    numbers = ["12340/98700", "7/50", "1.235", "12346", "1:00:00", "23:59:20"]
    assert third.split()[:2] == ["3", "training"] and third.split()[-6:] == numbers
    # its own steps, then two folds that take as long as the second
    assert every.split()[:5] == ["all", "2", "of", "5", "done"]
    assert every.split()[-2:] == ["2:00:00", "25:59:20"]
    # a column keeps its place from row to row
    assert third.index("1:00:00") == second.index("1:00:00")
    assert third.rindex("1.235") + 5 == heads.index("Loss") + 4


def test_phase_is_shown_without_the_numbers_of_the_training(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, table = use_console(monkeypatch, terminal=True), FoldTable(1, epochs=50)
    table.start(1)
    clock.now += 9
    assert rows(table, console)[1].split() == ["1", "imports", "0:00:09"]
    table.update(1, AT_THE_END)
    assert rows(table, console)[1].split() == ["1", "saving", "98700/98700", "50/50", "0:00:09"]
    scored = FoldProgress("training", 9, 99, 1, 0, "val WAR 51.26", 0.5, 9.0, 1.0)
    table.update(1, scored)
    assert " val WAR 51.26 " in rows(table, console)[1]
    # the terminal's ^C has space after the last row
    assert max(map(len, rows(table, console))) <= 78
    # no row for all of one fold
    assert len(rows(table, console)) == 2


@pytest.mark.parametrize("width", [40, 50, 70, 79, 120, 200])
def test_table_fits_other_widths(clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    console, table = use_console(monkeypatch, True, width), FoldTable(5, epochs=50)
    train_some(table, clock)
    shown = rows(table, console)
    assert len(shown) == 5 and max(map(len, shown)) <= width
    assert "UAR 100.00 WAR 100.00" in shown[1] and "23:59:20" in shown[3]


def test_low_terminal_shows_the_newest_folds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console, table = use_console(monkeypatch, True, height=6), FoldTable(5, epochs=50)
    train_some(table, clock)
    assert [row.split()[0] for row in rows(table, console)] == ["Fold", "2", "3", "all"]


def test_stopped_and_failed_folds_are_no_scores(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, table = use_console(monkeypatch, True), FoldTable(3, epochs=50)
    with table:
        table.start(1)
        table.finish(1, "failed")
        table.start(2)
    shown = rows(table, console)
    assert [row.split()[1] for row in shown[1:3]] == ["failed", "stopped"]
    assert shown[3].startswith("all  0 of 3 done")
    assert {row.fraction for row in table.rows.values()} == {0.0}


def test_lines_replace_the_table_without_a_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = use_console(monkeypatch, terminal=False)
    with FoldTable(5, epochs=50) as table:
        train_some(table, clock)
        clock.now += 61
        table.update(3, TRAINING)
        table.update(3, TRAINING)
        scored = FoldProgress("training", 13_818, 98_700, 7, 0, "val WAR 51.26", 0.5, 9.0, 1.0)
        table.update(3, scored)
    assert text_of(console).splitlines() == [
        f"fold 1: {SCORES}, done before",
        "fold 2: saving, step 98700 of 98700, epoch 50 of 50, all folds 3:00:00 left",
        f"fold 2: {SCORES}",
        "fold 3: training, step 12340 of 98700, epoch 7 of 50, loss 1.235, 12346 clips/s, "
        "23:59:20 left, all folds 25:59:20 left",
        "fold 3: training, step 13818 of 98700, epoch 7 of 50, loss 0.500, 9.0 clips/s, "
        "23:34:42 left, val WAR 51.26, all folds 25:34:42 left",
    ]


def index(*sizes: int) -> Index:
    """Return an index whose splits have these numbers of clips."""
    shards = tuple(
        Shard(f"{k}.tar", f"fold{k}", n, 0, (n,), "", "") for k, n in enumerate(sizes, 1)
    )
    return Index(ROOT, "dfew", ("happiness",), shards, "")


@pytest.mark.parametrize(
    ("sizes", "folds", "text"),
    [
        ((140, 140, 140), [1, 2, 3], "3 folds of 140 clips"),
        ((140, 139, 141), [1, 2, 3], "3 folds of 139 to 141 clips"),
        ((140, 139, 140), [1, 3], "folds 1, 3 of 3, 140 clips each"),
        ((140, 139, 141), [2], "fold 2 of 3, 139 clips"),
    ],
)
def test_first_line_says_what_is_trained_on_what(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], folds: list[int], text: str
) -> None:
    monkeypatch.setattr(local, "gpus_here", list)
    config = load_config("dfew_vitb32", ["data.shards=x"])
    assert first_line(config, index(*sizes), folds, 2) == (
        f"Training DFER-CLIP (ViT-B/32, full fine-tuning) on dfew: {text}, 2 ranks on the CPU, bf16"
    )


def test_first_line_names_a_linear_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpus_here", list)
    settings = ["data.shards=x", "model.backbone=timm:test_vit", "model.head=linear"]
    assert first_line(load_config("dfew_vitb32", settings), index(140), [1], 1).startswith(
        "Training timm:test_vit with a linear head (full fine-tuning) on dfew: "
    )


def test_first_line_names_gpus_tuning_and_a_single_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpus_here", lambda: [ROOT])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = ["data.shards=x", "model.image=lora", "train.precision=fp32"]
    config = load_config("dfew_vitl14", settings)
    shards = [Shard("a.tar", "train", 700, 0, (700,), "", "")]
    shards += [Shard("b.tar", "test", 300, 0, (300,), "", "")]
    single = Index(ROOT, "ferv39k", ("happiness",), tuple(shards), "")
    text = "(ViT-L/14, LoRA of rank 8) on ferv39k: 700 training and 300 test clips"
    # torch may not see them
    assert first_line(config, single, [1], 8) == f"Training DFER-CLIP {text}, 8 ranks, fp32"
    on_gpus = load_config("dfew_vitl14", [*settings, "train.device=cuda"])
    assert ", 1 rank on GPUs, " in first_line(on_gpus, single, [1], 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert " on the CPU, " in first_line(config, single, [1], 1)
