"""The state of a fold, read from the fold's own files, and its progress bar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult, FoldStatus
from launch.console import new_progress

_SCORES = {"val_war": "val WAR", "test_war": "WAR"}  # in metrics.jsonl, and next to the bar


def fold_progress() -> Progress:
    """Return the progress bars of folds; a task has the field ``metrics``."""
    return new_progress(TextColumn("{task.fields[metrics]}"), TimeElapsedColumn())


class FoldProgress:
    """Updates a progress bar from a fold's ``status.json`` and ``metrics.jsonl`` when called."""

    def __init__(self, fold: FoldDir, progress: Progress, task: TaskID) -> None:
        self.fold, self.progress, self.task = fold, progress, task
        self._offset = 0  # bytes of metrics.jsonl that were read
        self._latest: dict[str, float] = {}

    def __call__(self) -> None:
        """Read what is new and update the bar."""
        status = read_status(self.fold)
        if status.state in ("", "STARTING"):
            return
        self.progress.update(self.task, total=status.steps)
        if self._read_metrics():
            step, metrics = self._latest["step"], describe_metrics(self._latest)
            self.progress.update(self.task, completed=step, metrics=metrics)

    def _read_metrics(self) -> bool:
        """Read new lines of ``metrics.jsonl`` and return whether there were any."""
        path = self.fold.metrics
        if not path.exists():
            return False
        if path.stat().st_size < self._offset:
            # a resumed fold wrote the file anew
            self._offset = 0
        with path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        try:
            for line in complete.splitlines():
                self._latest |= json.loads(line)
        except ValueError:
            # written anew, and longer than before: the offset was inside a line
            self._offset = 0
            return False
        return bool(complete)


def describe_metrics(latest: Mapping[str, float]) -> str:
    """Return loss, score and speed for the progress bar."""
    parts = []
    if "loss" in latest:
        parts.append(f"loss {latest['loss']:.2f}")
    parts += [f"{name} {latest[key]:.1f}" for key, name in _SCORES.items() if key in latest]
    if "clips_per_second" in latest:
        parts.append(f"{latest['clips_per_second']:.0f} clips/s")
    return "  ".join(parts)


def describe_result(fold: FoldDir) -> str:
    """Return the scores of a finished fold."""
    result = FoldResult.read(fold.result)
    return f"UAR {result.uar:.2f}  WAR {result.war:.2f}"


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
    lines: list[str] = []
    for log in sorted(fold.root.glob("log*.txt")):
        new = log.read_bytes()[log_sizes.get(log, 0) :]
        lines += new.decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    return lines[-1] if lines else "it wrote nothing"
