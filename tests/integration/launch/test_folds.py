"""Folds on this machine: failures, restarts, signals and locks, with real processes.

Ranks run from the run's own code, so a few lines there stand for what a rank may do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.config.load import read_config
from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import read_json
from launch import processes
from launch.processes import RanksExit, SignalCounter, wait_for_ranks
from launch.runs import open_run
from tests.helpers.cli import check_refusal, dfer, small_run
from tests.helpers.forked import Forked
from tests.helpers.paths import DFER

TIMEOUT = 60  # seconds

# Rank 1 dies; its peer fails a moment later and prints another reason.
KILLED_RANK = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
sys.exit("connection reset by peer")
"""
# Five attempts leave a checkpoint, and the next ones none.
DYING_RANK = """
import os, pathlib, signal, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--run") + 1]) / "fold-2" / "checkpoints"
folder.mkdir(exist_ok=True)
count = len(list(folder.iterdir()))
print("attempt", flush=True)
if count < 5:
    (folder / f"step-{count}").mkdir()
os.kill(os.getpid(), signal.SIGKILL)
"""
RANK_OUT_OF_TIME = """
import json, pathlib, sys
root = pathlib.Path(sys.argv[sys.argv.index("--run") + 1]) / "fold-1"
attempts = [{"why": "time is up"}]
status = {"version": 1, "state": "PREEMPTED", "steps": 9, "attempts": attempts}
(root / "status.json").write_text(json.dumps(status))
print(json.dumps(sys.argv[-2:]), flush=True)
sys.exit(75)
"""
# The first rank takes two seconds to save; the second one fails at once.
SAVING_RANK = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(75)))
mark = pathlib.Path(sys.argv[sys.argv.index("--run") + 1]) / "seen"
if mark.exists():
    sys.exit("the second")
mark.touch()
time.sleep(60)
"""
STOPPABLE_RANK = """
import os, signal, sys, time
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
print("up", os.environ["RANK"], os.environ["WORLD_SIZE"], flush=True)
deadline = time.monotonic() + 60
while not signals and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(STATUS if signals else 9)
"""


@pytest.fixture
def settings(tiny_shards: Index) -> list[str]:
    return small_run(tiny_shards)


@pytest.fixture
def run(tmp_path: Path, settings: list[str]) -> RunDir:
    """A run without trained folds."""
    return open_run(tmp_path / "runs", None, "demo", settings, (), None, 1)[0]


def replace_rank(run: RunDir, code: str) -> None:
    """Let ranks of a run do something else."""
    (run.code / "dfer_dist" / "train.py").write_text(code)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_missing_weights_are_named_by_a_rank(tmp_path: Path, tiny_shards: Index) -> None:
    """A real rank, which must not try the network."""
    given = ["train", "dfew_vitb32", "--fold", "1", *small_run(tiny_shards)[:2]]
    done = dfer(*given, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    remedy = "dfer fetch-weights ViT-B-32-quickgelu openai"
    check_refusal(done, "ViT-B-32-quickgelu are not on this machine", remedy)
    status = read_json(RunDir(tmp_path / "runs" / "dfew_vitb32").fold(1).status)
    assert status["state"] == "FAILED"
    assert "fetch-weights" in status["attempts"][0]["why"]


def test_run_that_failed_before_its_first_step_is_replaced(
    tmp_path: Path, settings: list[str]
) -> None:
    done = dfer("train", "demo", "--fold", "1", *settings, "model.backbone=foo", cwd=tmp_path)
    check_refusal(done, "no backbone 'foo'")
    again, _ = open_run(tmp_path / "runs", None, "demo", settings, (), "1", 1)
    assert read_config(again.config).model.backbone == "tiny"
    assert not again.fold(1).root.exists()


def test_crashed_fold_fails_with_its_own_reason(
    run: RunDir, settings: list[str], tmp_path: Path
) -> None:
    """With status 1; 2 is for errors that the user can fix."""
    replace_rank(run, "raise RuntimeError('boom')\n")
    run.fold(2).root.mkdir()
    run.fold(2).log.write_text("error: of an earlier attempt\n")
    done = dfer("train", "demo", "--fold", "2", *settings, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("fold 2 failed")
    assert "the same command" in done.stderr
    assert "fold 2 failed (status 1): RuntimeError: boom" in done.stdout
    assert str(run.fold(2).log) in done.stdout
    done = dfer("crossval", "demo", "--folds", "1,3", *settings, cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("fold 1, 3 failed")) == (1, True)


def test_killed_rank_is_named(run: RunDir, settings: list[str], tmp_path: Path) -> None:
    replace_rank(run, KILLED_RANK)
    done = dfer("train", "demo", "--fold", "2", *settings, "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "rank 1 was ended by SIGKILL" in done.stdout


def test_dying_ranks_restart_while_checkpoints_advance(
    run: RunDir, settings: list[str], tmp_path: Path
) -> None:
    """Then three times more."""
    replace_rank(run, DYING_RANK)
    done = dfer("train", "demo", "--fold", "2", *settings, cwd=tmp_path)
    assert done.returncode == 1
    assert run.fold(2).log.read_text().count("attempt") == 5 + 1 + 3
    message = "rank 0 was ended by SIGKILL, as by the kernel when memory runs out; resuming from"
    assert done.stdout.count(message) == 8


def test_command_ends_when_time_is_up(run: RunDir, settings: list[str], tmp_path: Path) -> None:
    replace_rank(run, RANK_OUT_OF_TIME)
    before = time.time()
    done = dfer("crossval", "demo", *settings, "--max-minutes", "7", cwd=tmp_path)
    assert done.returncode == 75
    assert f"time is up: saved in {run.root}; run the same command to resume" in done.stdout
    flag, deadline = json.loads(run.fold(1).log.read_text())
    assert flag == "--deadline"
    assert 0 <= float(deadline) - before - 420 < 20
    assert not run.fold(2).root.exists()
    # not enough to start a fold
    given = ["--folds", "2", "--max-minutes", "0.5"]
    done = dfer("crossval", "demo", *settings, *given, cwd=tmp_path)
    assert done.returncode == 75
    assert "time is up" in done.stdout
    assert not run.fold(2).log.exists()


def test_ranks_of_a_killed_command_are_waited_for(
    run: RunDir, settings: list[str], tmp_path: Path
) -> None:
    """They hold the fold while they save; a command that runs is not waited for."""
    replace_rank(run, SAVING_RANK)
    command = ["train", "demo", "--fold", "1", *settings]
    # real children: the kernel tells them that the command was killed
    first = Forked([DFER, *command], os.environ, tmp_path)
    wait_until((run.root / "seen").exists)
    check_refusal(dfer(*command, cwd=tmp_path), "another command is working on")
    first.send_signal(signal.SIGKILL)
    first.wait(TIMEOUT)
    begin = time.monotonic()
    done = dfer(*command, cwd=tmp_path)
    assert (done.returncode, "the second" in done.stdout) == (1, True)
    assert time.monotonic() - begin > 1.5


def test_mistake_found_by_a_rank_stops_all_folds(
    run: RunDir, settings: list[str], tmp_path: Path
) -> None:
    replace_rank(run, "import sys\nprint('error: of mine', file=sys.stderr)\nsys.exit(2)\n")
    done = dfer("crossval", "demo", *settings, "--nproc", "2", cwd=tmp_path)
    check_refusal(done, "error: of mine\n")
    assert not run.fold(2).root.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("status", [75, 1])
def test_signal_to_the_command_stops_its_ranks(
    run: RunDir, settings: list[str], tmp_path: Path, status: int, number: signal.Signals
) -> None:
    """A rank that fails while it stops is a failure: nobody is to start it again."""
    replace_rank(run, STOPPABLE_RANK.replace("STATUS", str(status)))
    command = [DFER, "crossval", "demo", *settings, "--nproc", "2"]
    process = Forked(command, os.environ, tmp_path, new_session=True)
    logs = [run.fold(1).log_of(rank) for rank in (0, 1)]
    wait_until(lambda: all(log.exists() and log.read_text() for log in logs))
    if number == signal.SIGINT:
        # as a terminal does: to all processes of the foreground
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    done = process.wait(TIMEOUT)
    out, err = done.stdout, done.stderr
    assert [log.read_text() for log in logs] == ["up 0 2\n", "up 1 2\n"]
    if status == 75:
        assert "saved in" in out
        assert "run the same command to resume" in out
        assert (done.returncode, err) == (75, "")
    else:
        assert "fold 1 failed (status 1)" in out
        assert done.returncode == 1
    assert not run.fold(2).log.exists()


@pytest.mark.parametrize(
    ("status", "other", "result"),
    [
        (75, 75, 75),
        (0, 0, 0),
        (1, -signal.SIGKILL, -signal.SIGKILL),
        (2, -signal.SIGKILL, 2),
    ],
)
def test_lagging_rank_is_killed_only_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, status: int, other: int, result: int
) -> None:
    """Rank 0 may still write to the tracking server when the others have saved and ended."""
    monkeypatch.setattr(processes, "_GRACE", 0.1)
    ends = f"import sys; sys.exit({status})"
    lags = f"import sys, time; time.sleep(1.5); sys.exit({status})"
    ranks = [subprocess.Popen([sys.executable, "-S", "-c", code]) for code in (lags, ends)]
    signals = SignalCounter()
    try:
        ended = wait_for_ranks(ranks, signals, lambda: None)
    finally:
        signals.restore()
    assert [process.returncode for process in ranks] == [other, status]
    assert ended == RanksExit(result, None)
