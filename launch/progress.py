"""How far a fold is, from its own files."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldStatus
from dfer_dist.runs.status import Phase

# less than a checkpoint or a whole message of a rank needs
_FULL_DISK = 1 << 16
_PACE_LINES = 1000  # of the metrics file, over which the time of a step is averaged
_LINE_SECONDS = 60.0  # from one line about a fold to the next


def read_status(fold: FoldDir) -> FoldStatus:
    """Return the status of a fold, an empty one before its first attempt."""
    return FoldStatus.read(fold.status) if fold.status.exists() else FoldStatus()


def is_done(fold: FoldDir) -> bool:
    """Return whether a fold has a result and was closed.

    A kill may come between the two, before the tracking server has the result.
    """
    return fold.result.exists() and read_status(fold).state == "DONE"


def last_error(fold: FoldDir, log_sizes: Mapping[Path, int]) -> str:
    """Return the line that says why an attempt failed.

    Parameters
    ----------
    log_sizes : mapping from Path to int
        Bytes that earlier attempts left in each log.
    """
    logs = sorted(fold.root.glob("log*.txt"))
    texts = [log.read_bytes()[log_sizes.get(log, 0) :].decode(errors="replace") for log in logs]
    errors = list(filter(None, map(error_line, texts)))
    if errors:
        return errors[-1]
    if full := full_disk(fold):
        return full
    lines = [line for text in texts for line in text.splitlines()]
    return lines[-1].rstrip() if lines else "it wrote nothing"


def error_line(text: str) -> str:
    """Return the last whole line of a log at ERROR, without its level; empty if there is none."""
    errors = re.findall(r"^error: (.*)\n", text, re.MULTILINE)
    return errors[-1].rstrip() if errors else ""


def full_disk(fold: FoldDir) -> str:
    """Return that the fold's disk is full, if it is; else an empty text.

    It cuts logs anywhere, so that their last line explains nothing.
    """
    if shutil.disk_usage(fold.root).free >= _FULL_DISK:
        return ""
    return f"the disk of {fold.root} is full: free some space and run the same command again"


def unix_time(text: str | None) -> float:
    """Return the time of ISO 8601, by default in this machine's zone; 0 for anything else."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return 0.0


class LoggedMetrics:
    """What the lines of ``metrics.jsonl`` say: the newest value of each metric, and the pace."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {}
        self._steps: deque[tuple[int, float]] = deque(maxlen=_PACE_LINES)  # with their times

    def add(self, line: bytes) -> None:
        """Add a line.

        Raises
        ------
        ValueError
            If it is not a JSON object.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"{line!r} is no JSON object")
        self.latest |= values
        if {"loss", "step", "time"} <= values.keys():
            self._steps.append((values["step"], values["time"]))

    def is_since(self, since: float) -> bool:
        """Return whether the newest line was written since a Unix time."""
        return bool(since) and self.latest.get("time", 0.0) >= since

    def seconds_per_step(self, since: float) -> float | None:
        """Return the mean time from step to step since a Unix time; None before two steps."""
        own = [line for line in self._steps if line[1] >= since]
        if not own or own[-1][0] <= own[0][0]:
            return None
        (first, begin), (last, end) = own[0], own[-1]
        return (end - begin) / (last - first)


@dataclass(frozen=True)
class FoldProgress:
    """How far the newest attempt of a fold is.

    ``step`` and ``epoch`` count those done by all attempts, ``from_step`` those done before this
    one. ``loss`` and ``clips_per_second`` are None unless it trains, ``scores`` such as
    ``val WAR 51.26`` are those of the newest epoch.
    """

    phase: str = Phase.IMPORTS
    step: int | None = None
    steps: int | None = None
    epoch: int = 0
    from_step: int = 0
    scores: str = ""
    loss: float | None = None
    clips_per_second: float | None = None
    seconds_per_step: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the steps that are left; None until the pace is known."""
        if self.phase != Phase.TRAINING or self.step is None or self.steps is None:
            return None
        return self.seconds_per_step and (self.steps - self.step) * self.seconds_per_step

    @classmethod
    def of(cls, status: FoldStatus, metrics: LoggedMetrics, since: float) -> FoldProgress:
        """Return what the files of a fold show of an attempt that began at a Unix time."""
        latest, from_step = metrics.latest, (status.last and status.last.from_step) or 0
        phase, has_steps = status.phase, metrics.is_since(since)
        # a full disk keeps rank 0 from recording that it has begun; earlier versions had no phases
        is_over = status.last is not None and status.last.ended
        if has_steps and not is_over and phase in ("", Phase.WEIGHTS, Phase.FIRST_BATCH):
            phase = Phase.TRAINING
        progress = cls(
            phase=phase,
            step=latest.get("step", status.last and status.last.from_step),
            steps=status.steps,
            epoch=latest.get("epoch", 0),
            from_step=from_step,
            scores=_epoch_scores(latest),
            seconds_per_step=metrics.seconds_per_step(since),
        )
        if not has_steps or phase != Phase.TRAINING:
            return progress
        speed = latest.get("clips_per_second")
        return replace(progress, loss=latest.get("loss"), clips_per_second=speed)


def _epoch_scores(latest: Mapping[str, Any]) -> str:
    """Return the newest scores of an epoch; empty where only the last one is tested."""
    for split in ("val", "test"):
        if f"{split}_war" in latest:
            return f"{split} WAR {latest[f'{split}_war']:.2f}"
    return ""


class LineTimer:
    """Says when a line about a fold is due: once a minute, and when an epoch has ended."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[float, int]] = {}  # time and epochs by fold

    def is_due(self, fold: Hashable, epoch: int) -> bool:
        """Return whether a line is due for a fold that has done ``epoch`` epochs."""
        now = time.monotonic()
        then, epoch_then = self._last.setdefault(fold, (now, epoch))
        if now - then < _LINE_SECONDS and epoch <= epoch_then:
            return False
        self._last[fold] = now, epoch
        return True
