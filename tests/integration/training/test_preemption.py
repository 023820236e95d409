"""When a rank leaves by itself: told to, out of time, or hanging; and losses that leap."""

import signal
import subprocess
import sys
import time

import pytest

from dfer_dist.distributed import preemption as preempt
from dfer_dist.distributed.preemption import PreemptionHandler
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.status import Attempt
from dfer_dist.training.meters import Meter, Spikes
from dfer_dist.utils.files import read_json


@pytest.mark.parametrize(
    ("job_ends", "given", "first"),
    [(None, None, float("inf")), ("1000", None, 1000), ("1000", 900.0, 900), (None, 5.0, 5)],
)
def test_the_earlier_deadline_counts(monkeypatch, job_ends, given, first):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if job_ends:
        monkeypatch.setenv("SLURM_JOB_END_TIME", job_ends)
    flag = PreemptionHandler()
    flag.set_deadline(given)
    assert flag.deadline == first


def test_time_is_up_when_there_is_just_enough_to_leave(monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    flag = PreemptionHandler()
    flag.set_deadline(now + preempt._MARGIN + 100)
    flag.need = 99
    assert not flag and flag.why is None
    flag.need = 101
    assert flag and flag.why == "time is up"


def test_a_signal_is_named():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        flag = PreemptionHandler().install()
        assert not flag
        signal.raise_signal(signal.SIGUSR2)
        assert flag and flag.why == "SIGUSR2"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


HANG = """
import multiprocessing, os, sys, threading, time
from pathlib import Path
from dfer_dist.distributed.watchdog import Watchdog
dog = Watchdog(Path(sys.argv[1]), 0.5, lambda why: print(why, flush=True))
def a_name_to_look_for():
    time.sleep(60)
threading.Thread(target=a_name_to_look_for, daemon=True).start()
def a_worker_to_look_for(rank):
    while os.getppid() == rank:
        time.sleep(0.1)
multiprocessing.get_context("fork").Process(target=a_worker_to_look_for, args=[os.getpid()], daemon=True).start()
for _ in range(10):
    time.sleep(0.1)
    dog.beat()
print("alive", flush=True)
if sys.argv[2] == "stop":
    dog.stop()
    time.sleep(1.5)
    sys.exit(0)
time.sleep(60)
"""


def test_a_process_that_hangs_ends_itself_and_leaves_its_stacks(tmp_path):
    file = tmp_path / "stacks.txt"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANG, str(file), "hang"], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - begin < 30
    assert done.returncode == -signal.SIGABRT
    assert done.stdout.splitlines()[0] == "alive" and "no step for 0 s" in done.stdout
    assert "a_worker_to_look_for" in done.stderr and "a_name_to_look_for" not in done.stderr
    assert "a_name_to_look_for" in file.read_text() and "no step for" in file.read_text()


def test_a_process_that_works_or_is_done_is_left_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HANG, str(tmp_path / "s"), "stop"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")
    assert not (tmp_path / "s").exists()


def test_a_process_that_was_stopped_for_long_goes_on(tmp_path):
    """SIGSTOP is no hang of this rank: after SIGCONT it has its full time again."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANG, str(tmp_path / "s"), "stop"], stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "alive\n" and process.returncode == 0


def test_the_longest_step_is_one_of_the_last_and_no_test_between_them(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = Meter()
    assert meter.longest == 0

    def step(seconds: float, between: float) -> None:
        meter.begin()
        clock[0] += seconds
        meter.count(8)
        clock[0] += between

    step(30, 0)  # the first one warms up
    for _ in range(60):
        step(2, 500)
    assert meter.longest == 30
    for _ in range(60):
        step(3, 500)
    assert meter.longest == 3


def test_a_loss_that_leaps_is_a_spike():
    spikes = Spikes()
    calm = [2 - 0.01 * i + 0.02 * (-1) ** i for i in range(40)]
    assert not any(spikes.is_spike(x) for x in calm)
    assert spikes.is_spike(3.0)
    assert not spikes.is_spike(1.62)
    assert not spikes.is_spike(float("nan")) and len(spikes.recent) == 42


def test_spikes_go_on_where_they_were():
    one, other = Spikes(), Spikes()
    losses = [2 + 0.1 * ((7 * i) % 5) for i in range(70)]
    for x in losses:
        one.is_spike(x)
    for x in losses[:33]:
        other.is_spike(x)
    resumed = Spikes(other.recent)
    for x in losses[33:]:
        resumed.is_spike(x)
    assert resumed.recent == one.recent and len(one.recent) == Spikes.WINDOW


def test_the_first_losses_are_no_spikes():
    spikes = Spikes()
    assert not any(spikes.is_spike(x) for x in (1.0, 50.0, 1.0, 50.0))


def test_an_attempt_that_said_nothing_at_its_end_is_told(tmp_path):
    fold = FoldDir(tmp_path)
    Attempt(fold, 2, True).begin(5, 100, 0)
    second = Attempt(fold, 4, True)
    second.begin(10, 100, 3)
    second.end("DONE", "all steps done")
    status = read_json(fold.status)
    assert [a["why"] for a in status["attempts"]] == [
        "it said nothing at its end: killed, or its machine was lost",
        "all steps done",
    ]
    assert [(a["world_size"], a["from_step"], a["undone_steps"]) for a in status["attempts"]] == [
        (2, 5, 0),
        (4, 10, 3),
    ]
