"""The small job by which ``dfer doctor`` checks nodes: submit it, signal it, read its reports."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.files import read_json
from dfer_dist.utils.locks import file_lock
from launch.doctor.checks import NOTE, WRONG, Check
from launch.doctor.machine import MachineRequest
from launch.doctor.probe import SIGNALS
from launch.slurm.batch import fold_options, memory, user_setup_lines
from launch.slurm.clients import SlurmError, parse_pairs, run_client
from launch.slurm.cluster import Cluster
from launch.slurm.sbatch_options import arguments, sent
from launch.slurm.squeue import reason_text

_MINUTES = 3  # the job's time limit
_MAX_MEMORY_GB = 8.0
_POLL = 0.5  # seconds
_FOLDER_MISSING, _PYTHON_MISSING = 33, 34  # exit statuses of the batch script
_CACHE_SECONDS = 10.0  # in which a network file system may show an old state
# what srun starts on each node: $0 is the folder, $1 Python
_TASK = f'[ -d "$0" ] || exit {_FOLDER_MISSING}; [ -x "$1" ] || exit {_PYTHON_MISSING}; exec "$@"'
# reasons of a job that will start
_BUSY = ("None", "Resources", "Priority", "BeginTime", "Cleaning")
# options of the folds' jobs that this job cannot have, or that would delay it
_NOT_FOR_TRIAL = ("begin", "dependency", "hold", "mail_type", "nodelist")
# by which the only task of a node would see one of its GPUs
_BINDING = ("gpus_per_task", "gpu_bind", "tres_per_task", "tres_bind")


@dataclass(frozen=True)
class _JobState:
    """What ``scontrol`` says of the job."""

    state: str = "UNKNOWN"
    reason: str = "None"
    node: str = "the node"
    status: str = "?"

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"

    @property
    def has_ended(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")


@dataclass(frozen=True)
class TrialJob:
    """A job on one or two nodes, and the folder in which they report."""

    id: str
    folder: Path
    nodes: int
    queue_seconds: float

    def follow(self) -> Iterator[Check]:
        """Wait for the nodes' reports and yield their checks, and why one is missing."""
        state = self._wait_for("started", self.queue_seconds)
        if len(started := self._files("started")) < self.nodes:
            yield self._explain(state)
            return
        hosts = [read_json(file)["value"] for file in started]
        for number in SIGNALS:
            # a signal that cannot be sent does not arrive, which the probe reports
            with suppress(SlurmError):
                run_client("scancel", f"--signal={number.name.removeprefix('SIG')}", self.id)
        state = self._wait_for("report", 60 * _MINUTES)
        if printed := self._printed("setup.txt"):
            yield Check(f"{hosts[0]}: setup", NOTE, f"its lines print: {printed[-1]}")
        found: dict[Check, list[str]] = {}
        for file in self._files("report"):
            host = hosts[int(file.stem.rpartition("-")[2])]
            for check in read_json(file)["checks"]:
                found.setdefault(Check(*check), []).append(host)
        # what both nodes report is one line, and lines on one subject follow each other
        subjects = [check.subject for check in found]
        for check in sorted(found, key=lambda check: subjects.index(check.subject)):
            yield check._replace(subject=f"{', '.join(found[check])}: {check.subject}")
        if len(self._files("report")) < self.nodes:
            yield self._explain(state)

    def _files(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}-*.json"))

    def _wait_for(self, name: str, seconds: float) -> _JobState:
        """Wait for a file of each node, the end of the job, or too long; return its state."""
        deadline, ended = time.monotonic() + seconds, 0.0
        while True:
            job = self._state()
            # also makes a network file system read the folder again
            if len(self._files(name)) == self.nodes:
                return job
            will_start = job.reason.partition(",")[0].strip("()") in _BUSY
            if job.waits and (time.monotonic() > deadline or not will_start):
                return job
            if job.has_ended:
                ended = ended or time.monotonic()
                if time.monotonic() > ended + _CACHE_SECONDS:
                    return job
            time.sleep(_POLL)

    def _state(self) -> _JobState:
        try:
            pairs = parse_pairs(run_client("scontrol", "--oneliner", "show", "job", self.id))
        except SlurmError:  # Slurm has forgotten the job, or does not answer for a moment
            return _JobState()
        status = pairs["ExitCode"].partition(":")[0]
        return _JobState(pairs["JobState"], pairs["Reason"], pairs["NodeList"], status)

    def _explain(self, job: _JobState) -> Check:
        """Return why there is no report."""
        if job.waits:
            state, waits = WRONG, "waits"
            if job.reason in _BUSY:
                nodes = ("a node", "two nodes")[self.nodes - 1]
                state, waits = NOTE, f"waited {self.queue_seconds:.0f} s in the queue for {nodes}"
            text = (
                f"{waits}: {reason_text(job.reason)}; no node was checked; try again later, or "
                "with a larger --queue-seconds"
            )
            return Check("job on a node", state, text)
        unseen = {
            str(_FOLDER_MISSING): ("runs folder", self.folder.parent, "give --runs FOLDER"),
            str(_PYTHON_MISSING): ("python", sys.executable, "install dfer_dist"),
        }
        output = self._printed("out.txt")
        # srun tells which node; without its line the batch script ended
        task = re.search(r"error: (\S+): task.* exit code (\d+)", "\n".join(output))
        node, status = task.groups() if task else (job.node, job.status)
        if status in unseen:
            subject, path, remedy = unseen[status]
            text = f"{node} does not see {path}: {remedy} on a file system that all nodes share"
            return Check(subject, WRONG, text)
        own = [line for line in output if not line.startswith(("srun: ", "slurmstepd: "))]
        unknown = f"without output; see scontrol show job {self.id}, and check cluster.setup"
        why = (own or output or self._printed("setup.txt") or [unknown])[-1]
        text = f"{job.node} ended it ({job.state}, status {job.status}): {why}"
        return Check("job on a node", WRONG, text)

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
    report, setup = shlex.quote(str(folder)), user_setup_lines(cluster)
    task = ["bash", "-c", _TASK, str(folder), *python_command()]
    probe = shlex.join([*task, "-m", "launch.doctor.probe", str(folder)])
    # one task on each node
    srun = f"srun --cpus-per-task={cluster.cpus_per_task} --cpu-bind=cores --kill-on-bad-exit=1"
    lines = [
        "#!/bin/bash",
        f"exec > {report}/out.txt 2>&1 || exit {_FOLDER_MISSING}",
        *(["{", *setup, f"}} > {report}/setup.txt 2>&1"] if setup else []),
        f"export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"exec {srun} --export=ALL {probe}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def shared_folder(runs: Path) -> Iterator[Path]:
    """Make a folder in the folder of all runs, lock it from here, and remove it in the end."""
    runs.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(
            prefix=".doctor-", dir=runs, ignore_cleanup_errors=True
        ) as folder,
        file_lock(Path(folder) / "lock"),
    ):
        yield Path(folder)


def check_node(
    cluster: Cluster, machine: MachineRequest, folder: Path, queue_seconds: float
) -> Iterator[Check]:
    """Run the small job and yield the checks of its node, or of two and what is between them."""
    nodes = min(cluster.nodes, 2)
    machine.write(folder / "request.json")
    (folder / "job.sh").write_text(script(cluster, folder))
    options = fold_options(cluster) | sent(cluster.sbatch) | dict.fromkeys(_NOT_FOR_TRIAL)
    if cluster.gpus_per_node:
        options |= dict.fromkeys(_BINDING)
    options |= {
        "nodes": nodes,
        "ntasks_per_node": 1,
        "time": _MINUTES,
        "mem": memory(cluster.memory_gb and min(cluster.memory_gb, _MAX_MEMORY_GB)),
        "job_name": "dfer-doctor",
        "output": "/dev/null",
        "no_requeue": True,
        "parsable": True,
    }
    try:
        printed = run_client("sbatch", *arguments(options), str(folder / "job.sh"))
    except SlurmError as e:
        yield Check("job on a node", WRONG, f"Slurm refuses it: {e}")
        return
    job = TrialJob(printed.split(";")[0].strip(), folder, nodes, queue_seconds)
    try:
        yield from job.follow()
    finally:
        with suppress(SlurmError):
            run_client("scancel", job.id)
