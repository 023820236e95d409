"""The small job by which ``dfer doctor`` checks a node: submit it, signal it, read its report."""

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
from launch.doctor.clients import SlurmError, parse_pairs, run_client, sbatch_arguments
from launch.doctor.machine import MachineRequest
from launch.doctor.probe import SIGNALS, lock_folder
from launch.slurm.batch import user_setup_lines
from launch.slurm.cluster import Cluster
from launch.slurm.squeue import reason_text

_MINUTES = 2  # the job's time limit
_MAX_MEMORY_GB = 8.0
_POLL = 0.5  # seconds
_FOLDER_MISSING, _PYTHON_MISSING = 33, 34  # exit statuses of the batch script
_CACHE_SECONDS = 10.0  # in which a network file system may show an old state
# reasons of a job that will start
_BUSY = ("None", "Resources", "Priority", "BeginTime", "Cleaning")
# options of the folds' jobs that a job on one node cannot have, or that would delay it
_NOT_FOR_TRIAL = ("begin", "dependency", "hold", "mail-type", "nodelist")


@dataclass(frozen=True)
class _JobState:
    """What ``scontrol`` says of the job."""

    state: str = "UNKNOWN"
    reason: str = "None"
    node: str = "the node"
    status: str = "?"

    @classmethod
    def parse(cls, line: str) -> _JobState:
        values = parse_pairs(line)
        return cls(
            state=values["JobState"],
            reason=values.get("Reason", "None"),
            node=values.get("NodeList", "the node"),
            status=values.get("ExitCode", "?").partition(":")[0],
        )

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"

    @property
    def will_start(self) -> bool:
        return self.reason.partition(",")[0].strip("()") in _BUSY

    @property
    def has_ended(self) -> bool:
        return not self.waits and self.state not in ("RUNNING", "CONFIGURING", "COMPLETING")


@dataclass
class TrialJob:
    """A job on one node, and the folder in which it reports."""

    folder: Path
    queue_seconds: float
    id: str = ""

    def submit(self, cluster: Cluster) -> None:
        """Submit the job.

        Raises
        ------
        SlurmError
            If Slurm refuses it.
        """
        memory = min(cluster.memory_gb, _MAX_MEMORY_GB) if cluster.memory_gb else None
        options = sbatch_arguments(cluster, 1, 1, _MINUTES, memory, without=_NOT_FOR_TRIAL)
        options += ["--job-name=dfer-doctor", "--output=/dev/null", "--no-requeue"]
        printed = run_client("sbatch", "--parsable", *options, str(self.folder / "job.sh"))
        self.id = printed.split(";")[0].strip()

    def follow(self) -> Iterator[Check]:
        """Wait for the job's report and yield its checks, or why there is none."""
        state = self._wait_for("started.json", self.queue_seconds)
        started = self.folder / "started.json"
        if not started.exists():
            yield self._explain(state)
            return
        host = read_json(started)["host"]
        for number in SIGNALS:
            # a signal that cannot be sent does not arrive, which the probe reports
            with suppress(SlurmError):
                run_client("scancel", f"--signal={number.name.removeprefix('SIG')}", self.id)
        state = self._wait_for("report.json", 60 * _MINUTES)
        if not (self.folder / "report.json").exists():
            yield self._explain(state)
            return
        if printed := self._printed("setup.txt"):
            yield Check(f"{host}: setup", NOTE, f"its lines print: {printed[-1]}")
        for values in read_json(self.folder / "report.json")["checks"]:
            yield Check(f"{host}: {values['subject']}", values["state"], values["text"])

    def _wait_for(self, name: str, seconds: float) -> _JobState:
        """Wait for a file, the end of the job, or too long in the queue; return its state."""
        deadline, ended = time.monotonic() + seconds, 0.0
        while True:
            state = self._state()
            # makes a network file system read the folder again
            os.listdir(self.folder)
            if (self.folder / name).exists():
                return state
            if state.waits and (time.monotonic() > deadline or not state.will_start):
                return state
            if state.has_ended:
                ended = ended or time.monotonic()
                if time.monotonic() > ended + _CACHE_SECONDS:
                    return state
            time.sleep(_POLL)

    def _state(self) -> _JobState:
        try:
            return _JobState.parse(run_client("scontrol", "--oneliner", "show", "job", self.id))
        except SlurmError:  # Slurm has forgotten the job, or does not answer for a moment
            return _JobState()

    def _explain(self, state: _JobState) -> Check:
        """Return why there is no report."""
        if state.waits:
            return self._explain_waiting(state)
        if state.status == str(_FOLDER_MISSING):
            return Check(
                "runs folder",
                WRONG,
                f"{state.node} does not see {self.folder.parent}: give --runs FOLDER on a file "
                "system that all nodes share",
            )
        if state.status == str(_PYTHON_MISSING):
            return Check(
                "python",
                WRONG,
                f"{state.node} does not see {sys.executable}: install dfer_dist on a file system "
                "that all nodes share",
            )
        output = self._printed("out.txt")
        own = [line for line in output if not line.startswith(("srun: ", "slurmstepd: "))]
        lines = own or output or self._printed("setup.txt")
        unknown = f"without output; see scontrol show job {self.id}, and check cluster.setup"
        why = lines[-1] if lines else unknown
        text = f"{state.node} ended it ({state.state}, status {state.status}): {why}"
        return Check("job on a node", WRONG, text)

    def _explain_waiting(self, state: _JobState) -> Check:
        is_busy = state.reason in _BUSY
        waits = f"waited {self.queue_seconds:.0f} s in the queue" if is_busy else "waits"
        text = (
            f"{waits}: {reason_text(state.reason)}; no node was checked; try again later, or with "
            "a larger --queue-seconds"
        )
        return Check("job on a node", NOTE if is_busy else WRONG, text)

    def _printed(self, name: str) -> list[str]:
        """Return the lines that the job printed."""
        with suppress(OSError):
            lines = (self.folder / name).read_text(errors="replace").splitlines()
            return [line for line in lines if line.strip()]
        return []


def script(cluster: Cluster, folder: Path) -> str:
    """Return the batch script.

    It is that of a fold, but reports by its exit status what it cannot write into the folder.
    """
    package = shlex.quote(str(Path(__file__).resolve().parents[2]))
    python, report = shlex.quote(sys.executable), shlex.quote(str(folder))
    setup = user_setup_lines(cluster)
    probe = shlex.join([*python_command(), "-m", "launch.doctor.probe", str(folder)])
    srun = f"srun --ntasks=1 --cpus-per-task={cluster.cpus_per_task} --cpu-bind=cores"
    lines = [
        "#!/bin/bash",
        f"exec > {report}/out.txt 2>&1 || exit {_FOLDER_MISSING}",
        f"[ -x {python} ] || exit {_PYTHON_MISSING}",
        *(["{", *setup, f"}} > {report}/setup.txt 2>&1"] if setup else []),
        f"export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"exec {srun} {probe}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def shared_folder(runs: Path) -> Iterator[Path]:
    """Make a folder in the folder of all runs, lock it from here, and remove it in the end."""
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs))
    try:
        lock = lock_folder(folder)
        yield folder
        os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_node(
    cluster: Cluster, machine: MachineRequest, folder: Path, queue_seconds: float
) -> Iterator[Check]:
    """Run the small job and yield the checks of its node."""
    write_json(folder / "request.json", {"machine": asdict(machine)})
    (folder / "job.sh").write_text(script(cluster, folder))
    job = TrialJob(folder, queue_seconds)
    try:
        job.submit(cluster)
        yield from job.follow()
    except SlurmError as e:
        yield Check("job on a node", WRONG, f"Slurm refuses it: {e}")
    finally:
        if job.id:
            subprocess.run(["scancel", job.id], capture_output=True, check=False)
