"""Why a start of a fold's job failed, and whether another start may help.

The facts are ``srun``'s messages in the output of the job, and what each rank has logged since the
job started. A start that fails before its first step on one node only is that node's fault, and so
is one that ``srun`` cannot launch, or in which a node falls silent. An error that all ranks have,
or one after the first step, is the fold's own. A job on a single node has no other to compare with:
it is started once more elsewhere.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldStatus
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hosts import expand_host_list
from dfer_dist.utils.records import Record
from launch.progress import error_line, full_disk
from launch.slurm.jobs import last_own_line, read_tail

MAX_RESTARTS = 3  # of a fold whose ranks fail without a newer checkpoint
_MAX_NODE_FAILURES = 2  # after which a node is excluded
_SIGNAL_STATUSES = range(129, 193)  # what a shell and srun make of signals 1 to 64
_USER_ERROR = 2  # exit status of a rank
_TAIL_BYTES = 1 << 16  # of a log or an output
# messages of srun, as read in Slurm 22.05
_TASKS = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)
_LAUNCH = re.compile(r"^srun: error: (Task launch for \S+ failed on node (\S+): .+)$", re.MULTILINE)
_NODE_LOST = re.compile(r"^srun: error: (Node failure on (\S+))$", re.MULTILINE)
_NO_LAUNCH = re.compile(
    r"^srun: error: (Unable to .+|Application launch failed: .+"
    r"|.*(?:[Tt]imed out|Connection re|Communication|Zero Bytes|before step completely"
    r"|launch failed).*)$",
    re.MULTILINE,
)
_REFUSED = re.compile(r"^srun: (?:fatal|error): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class FailedStart:
    """A start of a fold's job that failed, though not for a reason of the fold's own."""

    job: str = ""
    time: str = ""  # ISO 8601
    nodes: list[str] = field(default_factory=list)  # at fault; empty if no node is known to be
    reason: str = ""
    checkpoint: str = ""  # the newest one, from which the next start resumes


@dataclass(frozen=True)
class _FailedStarts(Record):
    """``failures.json`` of a fold, oldest first."""

    starts: list[FailedStart]


class RankExit(NamedTuple):
    """How a rank ended, according to ``srun``."""

    rank: int
    node: str
    text: str  # such as "Exited with exit code 1", or "Killed"

    @property
    def status(self) -> int | None:
        """The exit status; None if a signal ended the rank."""
        code = re.fullmatch(r"Exited with exit code (\d+)", self.text)
        return int(code[1]) if code else None


class Failure(NamedTuple):
    """Why the ranks ended, and whether another start may help."""

    reason: str
    may_help: bool
    nodes: list[str]  # at fault


def failed_starts(fold: FoldDir) -> list[FailedStart]:
    """Return the failed starts of a fold, oldest first; none if the file is damaged."""
    with suppress(UserError):
        if fold.failures.exists():
            return _FailedStarts.read(fold.failures).starts
    return []


def bad_nodes(run: RunDir) -> list[str]:
    """Return the nodes on which starts of a run's folds failed too often."""
    starts = [start for file in run.root.glob("fold-*") for start in failed_starts(FoldDir(file))]
    nodes = [node for start in starts for node in start.nodes]
    return sorted({node for node in nodes if nodes.count(node) >= _MAX_NODE_FAILURES})


def nodes_to_avoid(run: RunDir, failure: Failure | None) -> list[str]:
    """Return the nodes on which a job is not started again after a failure.

    Whether an error is that of a job's only node shows on another one.
    """
    hosts = expand_host_list(os.environ.get("SLURM_JOB_NODELIST", ""))
    own = failure.nodes if failure and len(hosts) == 1 else []
    return sorted({*bad_nodes(run), *own})


def record_failure(fold: FoldDir, job: str, failure: Failure) -> None:
    """Append a failed start to those of the fold."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    start = FailedStart(job, now, failure.nodes, failure.reason, _newest_checkpoint(fold))
    _FailedStarts([*failed_starts(fold), start]).write(fold.failures)


def is_stuck(fold: FoldDir, job: str) -> bool:
    """Return whether the job's last starts all failed without a newer checkpoint."""
    newest = _newest_checkpoint(fold)
    same = [s for s in failed_starts(fold) if s.job == job and s.checkpoint == newest]
    return len(same) >= MAX_RESTARTS


def _newest_checkpoint(fold: FoldDir) -> str:
    return max((folder.name for folder in fold.checkpoints.glob("step-*")), default="")


def find_failure(fold: FoldDir, status: int) -> Failure:
    """Find out why the ranks of the job's newest start ended with ``status``.

    Parameters
    ----------
    fold : FoldDir
        The fold, on the node of the batch script.
    status : int
        The exit status of ``srun``; 0 and 75 are no failures.
    """
    start = _Start.read(fold)
    exits = start.rank_exits()
    hosts = expand_host_list(os.environ.get("SLURM_JOB_NODELIST", ""))
    lost = _LAUNCH.search(start.output) or _NODE_LOST.search(start.output)
    if lost:
        return Failure(lost[1], True, [lost[2]])
    silent = sorted(set(hosts) - {exit.node for exit in exits})
    if exits and silent:
        return Failure(f"{', '.join(silent)} does not answer", True, silent)
    if not exits:
        no_launch = _NO_LAUNCH.search(start.output)
        refused = no_launch or _REFUSED.search(start.output)
        reason = refused[1] if refused else start.last_line() or f"srun ended with {status}"
        return Failure(reason, bool(no_launch) or status in _SIGNAL_STATUSES, [])
    return _judge_first(start, exits, hosts)


def _judge_first(start: _Start, exits: list[RankExit], hosts: list[str]) -> Failure:
    """Judge by the rank that ended first; the others ended because of it, or for its reason."""
    first = exits[0]
    reason = start.reason_of(first)
    nodes = [] if start.has_trained() else [first.node]
    if first.status is None:
        return Failure(reason, True, nodes)
    if not nodes or (first.rank == 0 and first.status == _USER_ERROR and start.is_recorded()):
        return Failure(reason, False, [])
    if len(hosts) == 1:
        return Failure(reason, not start.failed_elsewhere(reason, first.node), nodes)
    wanted = _without_numbers(reason)
    alike = [e.node for e in exits if e.status and _without_numbers(start.reason_of(e)) == wanted]
    return Failure(reason, not set(hosts) <= set(alike), nodes)


def _without_numbers(text: str) -> str:
    """Return a text in which ranks, process ids, addresses and nodes do not differ."""
    return re.sub(r"[\w.-]*\d[\w.-]*", "#", text)


@dataclass(frozen=True)
class _Start:
    """What was printed since the job started, from the sizes that ``job.sh`` noted then."""

    fold: FoldDir
    sizes: dict[Path, int]
    time: float  # Unix time at which it started, by rank 0's clock
    output_file: Path
    output: str

    @classmethod
    def read(cls, fold: FoldDir) -> _Start:
        sizes: dict[Path, int] = {}
        time = float("inf")
        with suppress(OSError):
            first, *others = fold.start.read_text(errors="surrogateescape").splitlines()
            time = float(first)
            for line in others:
                size, _, name = line.partition(" ")
                sizes[Path(name)] = int(size)
        output_file = next(iter(sizes), Path(os.devnull))
        return cls(fold, sizes, time, output_file, _text_after(output_file, sizes))

    def rank_exits(self) -> list[RankExit]:
        """Return how ranks ended, in the order in which they did."""
        return [
            RankExit(rank, node, text)
            for hosts, tasks, text in _TASKS.findall(self.output)
            for node, rank in _spread(expand_host_list(hosts), _parse_ranges(tasks))
        ]

    def reason_of(self, exit: RankExit) -> str:
        """Return the line that says why a rank ended: its own, or that of Slurm."""
        text = self.text_of(self.fold.log_of(exit.rank))
        if error := error_line(text):
            return error
        if full := full_disk(self.fold):
            return full
        by_slurm = f"{exit.node}: rank {exit.rank}: {exit.text}"
        if exit.status is None:
            return by_slurm
        name = self.output_file.name.removesuffix("_0_log.out")
        own = self.text_of(self.output_file.with_name(f"{name}_{exit.rank}_log.out"))
        return last_own_line(text) or last_own_line(own) or self.last_line() or by_slurm

    def text_of(self, file: Path) -> str:
        """Return what was written to a log or an output."""
        return _text_after(file, self.sizes)

    def last_line(self) -> str:
        """Return the last line of the output that neither srun nor Submitit wrote."""
        failed = re.findall(r"^slurmstepd\S*: error: (execve\(\): .+)$", self.output, re.MULTILINE)
        return last_own_line(self.output) or next(reversed(failed), "")

    def failed_elsewhere(self, reason: str, node: str) -> bool:
        """Return whether an earlier start failed for this reason without this node."""
        wanted = _without_numbers(reason)
        alike = [s for s in failed_starts(self.fold) if _without_numbers(s.reason) == wanted]
        return any(start.nodes and node not in start.nodes for start in alike)

    def is_recorded(self) -> bool:
        """Return whether the ranks had joined: rank 0 has recorded this attempt."""
        with suppress(UserError, ValueError):
            last = FoldStatus.read(self.fold.status).last
            if last and last.started:
                return datetime.fromisoformat(last.started).timestamp() >= self.time
        return False

    def has_trained(self) -> bool:
        """Return whether a step, or a test, was logged."""
        lines = read_tail(self.fold.metrics, 1 << 12).decode(errors="replace").splitlines()
        times = [float(t) for t in re.findall(r'"time": ([\d.]+)', "\n".join(lines[-2:]))]
        return any(time >= self.time for time in times)


def _text_after(file: Path, sizes: dict[Path, int]) -> str:
    """Return the end of a file, as far as it was written since its size was noted."""
    with suppress(OSError):
        new = file.stat().st_size - sizes.get(file, 0)
        if new > 0:
            return read_tail(file, min(new, _TAIL_BYTES)).decode(errors="replace")
    return ""


def _parse_ranges(text: str) -> list[int]:
    """Return the numbers in a list such as ``0-2,5``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _spread(hosts: list[str], ranks: list[int]) -> list[tuple[str, int]]:
    """Pair ranks with their nodes; Slurm numbers tasks node by node."""
    each = max(1, len(ranks) // len(hosts))
    return [(hosts[min(i // each, len(hosts) - 1)], rank) for i, rank in enumerate(ranks)]
