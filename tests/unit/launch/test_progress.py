"""How far a fold is, from its own files, and its last error."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import AttemptRecord, FoldStatus
from dfer_dist.runs.status import Attempt, Phase
from dfer_dist.utils.files import write_json
from launch import progress
from launch.fold_table import FoldTable
from launch.local import FoldWatcher
from launch.processes import FoldJob, SignalCounter
from launch.progress import FoldProgress, LineTimer, LoggedMetrics, is_done, last_error
from tests.helpers.slurm.run_folders import write_attempt


@pytest.fixture
def fold(tmp_path: Path) -> FoldDir:
    """A fold without files."""
    fold = RunDir(tmp_path).fold(1)
    fold.root.mkdir()
    return fold


class Shown(FoldTable):
    """Keeps what it would show."""

    def update(self, fold: int, progress: FoldProgress) -> None:
        self.newest = progress


@pytest.fixture
def watcher(fold: FoldDir, tmp_path: Path) -> FoldWatcher:
    """Watches a fold whose attempt before was killed in step 7."""
    write_attempt(fold, job=None)
    write_lines(fold, 7, began=time.time() - 100)
    signals = cast(SignalCounter, SimpleNamespace(count=0))
    job = FoldJob(RunDir(tmp_path), 1, 1, None, signals)
    return FoldWatcher(job, Shown(1, 1))


def step_line(step: int, began: float = 0.0, **values: object) -> str:
    """Return the line of a step; a step takes two seconds."""
    line = {"step": step, "epoch": step // 4, "time": (began or time.time()) + 2 * step}
    return json.dumps({**line, "loss": 1.234, "clips_per_second": 41.6, **values}) + "\n"


def write_lines(fold: FoldDir, steps: int, began: float = 0.0) -> None:
    fold.metrics.write_text("".join(step_line(k, began) for k in range(1, steps + 1)))


def shown(watcher: FoldWatcher) -> FoldProgress:
    """Return what the table shows after a call."""
    watcher()
    return cast(Shown, watcher.table).newest


def test_phases_follow_each_other(watcher: FoldWatcher, fold: FoldDir) -> None:
    assert shown(watcher) == FoldProgress(Phase.IMPORTS)
    attempt = write_attempt(fold, job=None, begin=False)
    assert shown(watcher).phase == "weights"
    attempt.begin(5, 36, 2)
    before = shown(watcher)
    assert (before.phase, before.step, before.steps, before.loss) == ("first batch", 7, 36, None)
    write_lines(fold, 12)
    attempt.enter(Phase.TRAINING)
    watcher()
    training = shown(watcher)
    assert (training.phase, training.step, training.epoch) == ("training", 12, 3)
    assert (training.loss, training.clips_per_second) == (1.234, 41.6)
    assert training.seconds_left == pytest.approx(2 * (36 - 12), rel=0.01)
    for phase in (Phase.TESTING, Phase.SAVING):
        attempt.enter(phase)
        ends = shown(watcher)
        assert (ends.phase, ends.step, ends.loss) == (phase, 12, None)
        assert (ends.clips_per_second, ends.seconds_left) == (None, None)


def test_stopping_is_shown_until_the_ranks_save(watcher: FoldWatcher, fold: FoldDir) -> None:
    attempt = write_attempt(fold, job=None)
    watcher.job.signals.count = 1
    assert shown(watcher).phase == "stopping"
    attempt.enter(Phase.SAVING)
    assert shown(watcher).phase == "saving"


def test_epoch_scores_are_shown(watcher: FoldWatcher, fold: FoldDir) -> None:
    write_attempt(fold, job=None)
    fold.metrics.write_text(step_line(4) + step_line(4, val_war=51.256))
    assert shown(watcher).scores == "val WAR 51.26"


def test_unfinished_line_is_not_read(watcher: FoldWatcher, fold: FoldDir) -> None:
    write_attempt(fold, job=None)
    fold.metrics.write_text(step_line(3) + step_line(4)[:9])
    assert shown(watcher).step == 3
    with fold.metrics.open("a") as file:
        file.write(step_line(4)[9:])
    assert shown(watcher).step == 4


@pytest.mark.parametrize("padding", [0, 5000], ids=["shorter", "longer"])
def test_rewritten_file_is_read_anew(watcher: FoldWatcher, fold: FoldDir, padding: int) -> None:
    write_attempt(fold, job=None)
    write_lines(fold, 9)
    assert shown(watcher).step == 9
    fold.metrics.write_text(step_line(1, note="x" * padding))
    # a line that the old offset cuts is damaged, so the second call reads from the start
    watcher()
    assert shown(watcher).step == 1


def test_pace_is_that_of_one_attempt() -> None:
    metrics = LoggedMetrics()
    for line in (step_line(1, 10.0), step_line(2, 500.0), step_line(4, 600.0)):
        metrics.add(line.encode())
    assert metrics.seconds_per_step(500.0) == pytest.approx(104 / 2)
    assert metrics.seconds_per_step(600.0) is None


def test_files_of_earlier_versions_have_no_phase() -> None:
    metrics = LoggedMetrics()
    metrics.add(step_line(2, 10.0).encode())
    status = FoldStatus("RUNNING", 9, [AttemptRecord(started="1970-01-01T00:00:01+00:00")])
    assert FoldProgress.of(status, metrics, 1.0).phase == "training"
    assert FoldProgress.of(status, LoggedMetrics(), 1.0).phase == ""


def test_lines_are_due_each_minute_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    timer, due = LineTimer(), []
    for seconds, epoch in [(0, 0), (1, 0), (59, 0), (61, 0), (62, 1), (63, 1), (121, 1), (122, 1)]:
        now = float(seconds)
        due.append(timer.is_due(1, epoch))
    assert due == [False, False, False, True, True, False, False, True]
    # folds that run at once have lines of their own
    assert not timer.is_due(2, 1)


def test_phase_is_written_when_it_changes(fold: FoldDir) -> None:
    attempt = Attempt(fold, 1, writes=True)
    attempt.begin(0, 9, 0)
    attempt.enter(Phase.TRAINING)
    written = fold.status.stat().st_mtime_ns
    attempt.enter(Phase.TRAINING)
    assert fold.status.stat().st_mtime_ns == written
    attempt.end("DONE", "all steps done")
    assert FoldStatus.read(fold.status).phase == ""
    other_rank = Attempt(fold, 1, writes=False)
    other_rank.enter(Phase.TESTING)
    assert FoldStatus.read(fold.status).phase == ""


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
