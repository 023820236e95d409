"""The small job by which ``dfer doctor`` sees what a node sees: submitted, sent signals, judged by what it reports."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.files import read_json, write_json
from launch.doctor.checks import NOTE, WRONG, Check
from launch.doctor.machine import CheckRequest
from launch.doctor.partition import SlurmError, ask, pairs, request
from launch.doctor.probe import SIGNALS, hold
from launch.slurm.batch import user_setup_lines
from launch.slurm.cluster import Cluster
from launch.slurm.squeue import reason_text

_MINUTES = 2  # the job's time limit
_MEMORY = 8.0  # GB, at most
_POLL = 0.5  # seconds
_UNSEEN, _NO_PYTHON = 33, 34  # statuses of the batch script
_CACHES = 10.0  # seconds that a network file system may show an old state
_BUSY = ("None", "Resources", "Priority", "BeginTime", "Cleaning")  # why a job waits that will run


@dataclass
class Trial:
    """The job, and the folder among the runs by which both sides talk."""

    folder: Path
    queue_seconds: float
    job: str = ""

    def submit(self, cluster: Cluster) -> None:
        memory = min(cluster.memory_gb, _MEMORY) if cluster.memory_gb else None
        words = request(cluster, 1, 1, _MINUTES, memory)
        words += [
            "--job-name=dfer-doctor",
            "--output=/dev/null",
            "--no-requeue",
            str(self.folder / "job.sh"),
        ]
        self.job = ask("sbatch", "--parsable", *words).split(";")[0].strip()

    def follow(self) -> Iterator[Check]:
        """Wait for the job's report; yields what it says, or why there is none."""
        about = self._wait_for("hello.json", self.queue_seconds)
        hello = self.folder / "hello.json"
        if not hello.exists():
            yield self._silence(about)
            return
        host = read_json(hello)["host"]
        for number in SIGNALS:
            with suppress(SlurmError):  # then they do not come, which the probe tells
                ask("scancel", f"--signal={number.name.removeprefix('SIG')}", self.job)
        about = self._wait_for("report.json", 60 * _MINUTES)
        if not (self.folder / "report.json").exists():
            yield self._silence(about)
            return
        if printed := self._printed("setup.txt"):
            yield Check(f"{host}: setup", NOTE, f"its lines say: {printed[-1]}")
        for line in read_json(self.folder / "report.json")["checks"]:
            yield Check(f"{host}: {line['what']}", line["state"], line["words"])

    def _wait_for(self, name: str, seconds: float) -> dict[str, str]:
        """Wait until a file is there, or the job is over, or it has waited too long in the queue; returns what Slurm says of the job."""
        deadline, ended = time.monotonic() + seconds, 0.0
        while True:
            about = self._state()
            os.listdir(self.folder)  # a network file system is asked anew
            if (self.folder / name).exists():
                return about
            waits = about["JobState"] == "PENDING"
            if waits and (
                time.monotonic() > deadline
                or about["Reason"].partition(",")[0].strip("()") not in _BUSY
            ):
                return about
            if not waits and about["JobState"] not in ("RUNNING", "CONFIGURING", "COMPLETING"):
                ended = ended or time.monotonic()
                if time.monotonic() > ended + _CACHES:
                    return about
            time.sleep(_POLL)

    def _state(self) -> dict[str, str]:
        try:
            return pairs(ask("scontrol", "--oneliner", "show", "job", self.job))
        except SlurmError:  # forgotten by Slurm, or it does not answer for a moment
            return {"JobState": "UNKNOWN", "Reason": "None"}

    def _silence(self, about: dict[str, str]) -> Check:
        """Why there is no report."""
        state, reason = about["JobState"], about.get("Reason", "None")
        if state == "PENDING":
            words = (
                f"waited {self.queue_seconds:.0f} s in the queue" if reason in _BUSY else "waits"
            )
            hint = "what a node sees was not checked; try again later, or with a larger --queue-seconds"
            return Check(
                "job on a node",
                NOTE if reason in _BUSY else WRONG,
                f"{words}: {reason_text(reason)}; {hint}",
            )
        node, status = (
            about.get("NodeList", "the node"),
            about.get("ExitCode", "?").partition(":")[0],
        )
        if status == str(_UNSEEN):
            return Check(
                "runs folder",
                WRONG,
                f"{node} does not see {self.folder.parent}: give --runs FOLDER on a file system that all nodes share",
            )
        if status == str(_NO_PYTHON):
            return Check(
                "python",
                WRONG,
                f"{node} does not see {sys.executable}: install dfer_dist on a file system that all nodes share",
            )
        said = [
            line
            for line in self._printed("out.txt")
            if not line.startswith(("srun: ", "slurmstepd: "))
        ]
        why = (said or self._printed("out.txt") or self._printed("setup.txt") or [""])[-1]
        words = (
            why or f"without a word; scontrol show job {self.job}, and look at the lines of `setup`"
        )
        return Check("job on a node", WRONG, f"{node} ended it ({state}, status {status}): {words}")

    def _printed(self, name: str) -> list[str]:
        """Lines that the job printed."""
        with suppress(OSError):
            return [
                line
                for line in (self.folder / name).read_text(errors="replace").splitlines()
                if line.strip()
            ]
        return []


def script(cluster: Cluster, folder: Path) -> str:
    """The batch script: as that of a fold, but for what it says with its status when it cannot say it in the folder."""
    package = Path(__file__).resolve().parents[2]
    python, place, setup = (
        shlex.quote(sys.executable),
        shlex.quote(str(folder)),
        user_setup_lines(cluster),
    )
    words = [*python_command(), "-m", "launch.doctor.probe", str(folder)]
    lines = [
        "#!/bin/bash",
        f"exec > {place}/out.txt 2>&1 || exit {_UNSEEN}",
        f"[ -x {python} ] || exit {_NO_PYTHON}",
        *(["{", *setup, f"}} > {place}/setup.txt 2>&1"] if setup else []),
        f"export PYTHONPATH={shlex.quote(str(package))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"exec srun --ntasks=1 --cpus-per-task={cluster.cpus_per_task} --cpu-bind=cores {shlex.join(words)}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def meeting_place(runs: Path) -> Iterator[Path]:
    """A folder among the runs, locked from here, and removed in the end."""
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs))
    try:
        lock = hold(folder)
        yield folder
        os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def examine_node(
    cluster: Cluster, machine: CheckRequest, folder: Path, queue_seconds: float
) -> Iterator[Check]:
    """Run the small job; yields what a node sees."""
    write_json(folder / "ask.json", {"machine": asdict(machine)})
    (folder / "job.sh").write_text(script(cluster, folder))
    trial = Trial(folder, queue_seconds)
    try:
        trial.submit(cluster)
        yield from trial.follow()
    except SlurmError as e:
        yield Check("job on a node", WRONG, f"Slurm does not take it: {e}")
    finally:
        if trial.job:
            subprocess.run(["scancel", trial.job], capture_output=True, check=False)
