"""The progress bar of a fold, and its last error."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import TextColumn

from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import write_json
from launch.console import new_progress
from launch.local import FoldProgress, describe_metrics
from launch.progress import is_done, last_error

STEP = {"step": 3, "loss": 1.234, "clips_per_second": 41.6}


@pytest.fixture
def fold(tmp_path: Path) -> FoldDir:
    """A fold that trains for nine steps."""
    fold = FoldDir(tmp_path)
    write_json(fold.status, {"state": "RUNNING", "steps": 9, "attempts": []})
    return fold


@pytest.fixture
def bar(fold: FoldDir) -> FoldProgress:
    progress = new_progress(TextColumn("{task.fields[metrics]}"))
    return FoldProgress(fold, progress, progress.add_task("fold 1", total=None, metrics=""))


def task(bar: FoldProgress) -> tuple[float, float | None, str]:
    """Return steps, all steps and metrics of the bar."""
    (only,) = bar.progress.tasks
    return only.completed, only.total, only.fields["metrics"]


def test_bar_shows_steps_loss_and_speed(bar: FoldProgress, fold: FoldDir) -> None:
    fold.metrics.write_text(json.dumps(STEP) + "\n")
    bar()
    assert task(bar) == (3, 9, "loss 1.23  42 clips/s")
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=120).print(bar.progress.get_renderable())
    assert "loss 1.23  42 clips/s" in out.getvalue()


def test_bar_waits_until_the_fold_runs(bar: FoldProgress, fold: FoldDir) -> None:
    fold.metrics.write_text(json.dumps(STEP) + "\n")
    write_json(fold.status, {"state": "STARTING", "steps": None, "attempts": []})
    bar()
    assert task(bar) == (0, None, "")


def test_bar_ignores_an_unfinished_line(bar: FoldProgress, fold: FoldDir) -> None:
    fold.metrics.write_text(json.dumps(STEP) + "\n" + '{"step": 4, "lo')
    bar()
    assert task(bar)[0] == 3
    with fold.metrics.open("a") as file:
        file.write('ss": 1.0}\n')
    bar()
    assert task(bar) == (4, 9, "loss 1.00  42 clips/s")


@pytest.mark.parametrize("padding", [0, 500], ids=["shorter", "longer"])
def test_bar_follows_a_rewritten_file(bar: FoldProgress, fold: FoldDir, padding: int) -> None:
    fold.metrics.write_text((json.dumps(STEP) + "\n") * 2)
    bar()
    first = json.dumps({"step": 1, "note": "x" * padding})
    fold.metrics.write_text(f"{first}\n")
    # a line that the old offset cuts is damaged, so the second call reads from the start
    bar()
    bar()
    assert task(bar)[0] == 1


def test_metrics_text_has_the_newest_scores() -> None:
    latest = {"val_war": 51.26, "test_war": 49.0, "clips_per_second": 8.4}
    assert describe_metrics(latest) == "val WAR 51.3  WAR 49.0  8 clips/s"
    assert describe_metrics({}) == ""


def test_fold_is_done_with_a_result_and_a_closed_status(fold: FoldDir) -> None:
    assert not is_done(fold)
    fold.result.write_text("{}")
    assert not is_done(fold)
    write_json(fold.status, {"state": "DONE", "steps": 9, "attempts": []})
    assert is_done(fold)


def test_last_error_is_of_this_attempt(fold: FoldDir) -> None:
    fold.log.write_text("error: earlier\n")
    sizes = {fold.log: fold.log.stat().st_size}
    assert last_error(fold, sizes) == "it wrote nothing"
    with fold.log.open("a") as file:
        file.write("RuntimeError: boom\n")
    assert last_error(fold, sizes) == "RuntimeError: boom"
    fold.log_of(1).write_text("error: out of memory\nbye\n")
    assert last_error(fold, sizes) == "out of memory"
    # the log of rank 0 comes last
    assert last_error(fold, {}) == "earlier"


def test_full_disk_is_the_reason_if_no_message_is_whole(
    fold: FoldDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(fold.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=0))
    fold.log.write_text("error: cannot wr")
    fold.log_of(1).write_text("Traceback\n    f(x)\n    ^^^^")
    assert last_error(fold, {}).startswith(f"the disk of {fold.root} is full: free some space")
    fold.log.write_text("error: cannot write\n")
    assert last_error(fold, {}) == "cannot write"
