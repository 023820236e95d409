"""Why a start of a fold failed, from the messages of ``srun`` in Slurm 22.05 and ranks' logs."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.files import write_json
from launch.slurm.failures import (
    Failure,
    bad_nodes,
    failed_starts,
    find_failure,
    is_stuck,
    nodes_to_avoid,
    record_failure,
)

KILLED = """\
srun: launch/slurm: _step_signal: Terminating StepId=7.0
slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-29T07:50:43 ***
srun: error: n1: task 0: Killed
srun: Force Terminated StepId=7.0
"""
DEAD_NODE = """\
srun: error: Task launch for StepId=7.0 failed on node n2: Communication connection failure
srun: error: Application launch failed: Communication connection failure
srun: Job step aborted: Waiting up to 17 seconds for job step to finish.
srun: error: n1: task 0: Killed
"""
IMPORT_ERROR = """\
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    import torch
ImportError: libcudart.so.13: cannot open shared object file
"""


@pytest.fixture
def fold(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> FoldDir:
    """A fold of a job on two nodes, of which an earlier start has logged an error."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1,n2")
    fold = run.fold(1)
    fold.root.mkdir()
    fold.log.write_text("error: of an earlier start\n")
    begin(fold)
    return fold


def output_of(fold: FoldDir, task: int = 0) -> Path:
    return fold.root.with_name(f"7_{task}_log.out")


def begin(fold: FoldDir) -> None:
    """Note what the logs hold, as job.sh does."""
    output_of(fold).touch()
    files = [output_of(fold), *fold.root.glob("log*.txt")]
    sizes = "".join(f"{file.stat().st_size} {file}\n" for file in files)
    fold.start.write_text(f"{int(time.time())}\n{sizes}")


def fail(fold: FoldDir, status: int, output: str, *logs: str) -> Failure:
    """Return why the ranks failed that wrote these logs."""
    for rank, text in enumerate(logs):
        with fold.log_of(rank).open("a") as file:
            file.write(text)
    with output_of(fold).open("a") as file:
        file.write(output)
    return find_failure(fold, status)


def exited(node: int, code: int = 1) -> str:
    return f"srun: error: n{node}: task {node - 1}: Exited with exit code {code}\n"


def test_node_on_which_srun_cannot_launch_is_at_fault(fold: FoldDir) -> None:
    reason = "Task launch for StepId=7.0 failed on node n2: Communication connection failure"
    assert fail(fold, 233, DEAD_NODE) == Failure(reason, True, ["n2"])


def test_node_that_falls_silent_is_at_fault(fold: FoldDir) -> None:
    """Its power is gone: the other rank loses its peer, and srun hears nothing of it."""
    failure = fail(fold, 1, exited(1), "RuntimeError: Connection closed by peer\n")
    assert failure == Failure("n2 does not answer", True, ["n2"])


def test_node_lost_after_steps_may_be_left(fold: FoldDir) -> None:
    log_step(fold)
    assert fail(fold, 1, exited(1), "RuntimeError: Connection closed\n").may_help


@pytest.mark.parametrize("status", [1, 137, 143])
def test_error_on_one_node_is_the_nodes(fold: FoldDir, status: int) -> None:
    """Whatever srun reports of the rank that it ended itself."""
    failure = fail(fold, status, exited(2) + KILLED, "", IMPORT_ERROR)
    reason = "ImportError: libcudart.so.13: cannot open shared object file"
    assert failure == Failure(reason, True, ["n2"])


def test_error_of_a_peer_is_a_consequence(fold: FoldDir) -> None:
    logs = "RuntimeError: Connection closed by peer [n2]\n", "error: /data/weights is missing\n"
    failure = fail(fold, 2, exited(2, 2) + exited(1), *logs)
    assert failure == Failure("/data/weights is missing", True, ["n2"])


def test_program_missing_on_one_node_is_the_nodes(fold: FoldDir) -> None:
    output = "slurmstepd-n2: error: execve(): /opt/python: No such file or directory\n"
    failure = fail(fold, 2, output + exited(2, 2) + KILLED)
    assert failure == Failure("execve(): /opt/python: No such file or directory", True, ["n2"])


@pytest.mark.parametrize(
    "end", ["Killed", "Out Of Memory", "Segmentation fault (core dumped)", "Bus error", "Aborted"]
)
def test_rank_killed_before_its_first_step_may_be_elsewhere(fold: FoldDir, end: str) -> None:
    """A signal ended rank 1, and rank 0 lost its peer."""
    output = f"srun: error: n2: task 1: {end}\n" + exited(1)
    failure = fail(fold, 137, output, "RuntimeError: Connection closed\n")
    assert failure == Failure(f"n2: rank 1: {end}", True, ["n2"])


@pytest.mark.parametrize(
    "logs",
    [
        (IMPORT_ERROR, IMPORT_ERROR),
        ("error: rank 0 of n1 sees no GPU\n", "error: rank 1 of n2 sees no GPU\n"),
    ],
)
def test_error_of_all_ranks_is_the_folds(fold: FoldDir, logs: tuple[str, str]) -> None:
    failure = fail(fold, 1, exited(2) + exited(1), *logs)
    assert not failure.may_help and "earlier" not in failure.reason


def test_error_after_a_step_is_the_folds(fold: FoldDir) -> None:
    """Though srun reports only the rank that it killed."""
    log_step(fold)
    failure = fail(fold, 137, exited(2) + KILLED, "", "ValueError: a bad clip\n")
    assert failure == Failure("ValueError: a bad clip", False, [])


@pytest.mark.parametrize("nodes", ["n1,n2", "n1"])
def test_error_of_rank_0_after_the_ranks_joined_is_the_folds(
    fold: FoldDir, monkeypatch: pytest.MonkeyPatch, nodes: str
) -> None:
    """One that the user can fix."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(fold.status, {"state": "STARTING", "attempts": [{"started": now}]})
    error = "error: the disk is full\n"
    assert not fail(fold, 137, exited(1, 2) + KILLED.replace("n1", "n2"), error).may_help


@pytest.fixture
def single(fold: FoldDir, monkeypatch: pytest.MonkeyPatch) -> FoldDir:
    """The fold of a job on n1 alone."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    return fold


@pytest.mark.parametrize(
    ("code", "output", "log"),
    [
        (1, "", IMPORT_ERROR),
        (1, "", "RuntimeError: CUDA error: uncorrectable ECC error encountered\n"),
        (2, "slurmstepd-n1: error: execve(): /opt/python: No such file or directory\n", ""),
        # of a broken driver
        (2, "", "error: this job has GPUs on n1, and torch sees none\n"),
        (127, "bash: line 1: /opt/python: Permission denied\n", ""),
    ],
)
def test_error_on_the_only_node_may_be_the_nodes(
    single: FoldDir, code: int, output: str, log: str
) -> None:
    failure = fail(single, code, output + exited(1, code), log)
    assert (failure.may_help, failure.nodes) == (True, ["n1"])
    assert failure.reason in output + log


def test_same_error_on_another_node_is_the_folds(single: FoldDir) -> None:
    reason = "ImportError: libcudart.so.13: cannot open shared object file"
    # not this one: on the same node, where no other was free, and for another reason
    record_failure(single, "7", Failure(reason, True, ["n1"]))
    record_failure(single, "7", Failure("Task launch failed on node n2", True, ["n2"]))
    assert fail(single, 1, exited(1), IMPORT_ERROR).may_help
    record_failure(single, "7", Failure(reason, True, ["n3"]))
    assert find_failure(single, 1) == Failure(reason, False, ["n1"])


def test_error_on_the_only_node_after_a_step_is_the_folds(single: FoldDir) -> None:
    log_step(single)
    assert not fail(single, 1, exited(1), IMPORT_ERROR).may_help


def test_job_on_one_node_is_started_elsewhere_at_once(
    run: RunDir, single: FoldDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure("ImportError: x", True, ["n1"])
    assert (nodes_to_avoid(run, failure), nodes_to_avoid(run, None)) == (["n1"], [])
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1,n2")
    assert nodes_to_avoid(run, failure) == []


@pytest.mark.parametrize(
    ("status", "output", "reason", "may_help"),
    [
        (1, "srun: error: Unable to create step for job 7: Socket timed out\n", None, True),
        (1, 'srun: error: Unable to resolve "n2": Unknown host\n', None, True),
        (
            1,
            "srun: error: slurm_receive_msgs: [[n2]:31012] failed: Socket timed out on send/recv\n",
            None,
            True,
        ),
        (1, "srun: error: Timed out waiting for job step to complete\n", None, True),
        (1, "srun: error: Zero Bytes were transmitted or received\n", None, True),
        (1, "srun: error: StepId=7.0 aborted before step completely launched.\n", None, True),
        # the output cannot be opened there
        (1, "srun: error: task 0 launch failed: Slurmd could not connect IO\n", None, True),
        (1, "srun: error: Invalid generic resource (gres) specification\n", None, False),
        (1, "srun: fatal: SLURM_MEM_PER_CPU and SLURM_MEM_PER_NODE\n", None, False),
        (127, "bash: srun: command not found\n", "bash: srun: command not found", False),
        (137, "", "srun ended with 137", True),
    ],
)
def test_srun_that_starts_no_rank(
    fold: FoldDir, status: int, output: str, reason: str | None, may_help: bool
) -> None:
    expected = reason or output.partition(": ")[2].partition(": ")[2].strip()
    assert fail(fold, status, output) == Failure(expected, may_help, [])


def test_output_of_a_task_explains_what_its_log_does_not(fold: FoldDir) -> None:
    """It failed before it opened its log."""
    output_of(fold, 1).write_text("submitit INFO (now) - Loading pickle\nModuleNotFoundError: x\n")
    failure = fail(fold, 143, exited(2) + KILLED)
    assert failure == Failure("ModuleNotFoundError: x", True, ["n2"])


def test_reason_is_the_end_of_the_traceback(fold: FoldDir) -> None:
    noise = "sys:1: ResourceWarning: a process group was not destroyed\n"
    assert fail(fold, 1, exited(2) + KILLED, "", IMPORT_ERROR + noise).reason.startswith("Import")


def test_start_without_notes_is_judged_by_its_status(fold: FoldDir) -> None:
    fold.start.unlink()
    assert find_failure(fold, 137).may_help and not find_failure(fold, 1).may_help


def test_three_restarts_without_a_newer_checkpoint_are_enough(fold: FoldDir) -> None:
    for number in range(3):
        assert not is_stuck(fold, "7")
        record_failure(fold, "7", Failure(f"reason {number}", True, ["n2"]))
    assert is_stuck(fold, "7")
    # another submission begins anew, and so does a newer checkpoint
    assert not is_stuck(fold, "8")
    (fold.checkpoints / "step-00000005").mkdir(parents=True)
    assert not is_stuck(fold, "7")
    assert [start.reason for start in failed_starts(fold)] == ["reason 0", "reason 1", "reason 2"]


def test_second_failure_excludes_a_node_for_all_folds(run: RunDir, fold: FoldDir) -> None:
    record_failure(fold, "7", Failure("a", True, ["n2"]))
    record_failure(fold, "7", Failure("b", True, ["n3"]))
    assert bad_nodes(run) == []
    other = run.fold(2)
    record_failure(other, "8", Failure("a", True, ["n2"]))
    assert bad_nodes(run) == ["n2"]


def log_step(fold: FoldDir) -> None:
    fold.metrics.write_text(f'{{"step": 6, "epoch": 0, "time": {time.time() + 1}, "loss": 1.0}}\n')
