"""Paths of the files in a run's folder.

::

    runs/NAME/
      config.yaml  run.json  provenance.json  environment.txt  code/  jobs.json
      fold-1/
        metrics.jsonl  system-NODE.jsonl  status.json  log.txt  checkpoints/
        predictions.parquet  result.json  confusion.png  curves.png
      summary.json  summary.md  summary.tex  summary.png  report.html  mistakes.png
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfer_dist.runs.records import RunInfo
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.locks import file_lock


@dataclass(frozen=True)
class FoldDir:
    """Paths of one fold."""

    root: Path

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def sent(self) -> Path:
        """The number of bytes of ``metrics.jsonl`` that the tracking server has."""
        return self.root / "metrics.sent"

    def system(self, node: str) -> Path:
        """Return the file of CPU and GPU load of the machine ``node``."""
        return self.root / f"system-{node}.jsonl"

    @property
    def files_sent(self) -> Path:
        """The sha256 of each file that the tracking server has."""
        return self.root / "files.sent"

    @property
    def bad_steps(self) -> Path:
        """Skipped steps with the keys of their clips."""
        return self.root / "bad_steps.json"

    @property
    def status(self) -> Path:
        """A :class:`~dfer_dist.runs.records.FoldStatus`."""
        return self.root / "status.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Predictions of the test clips."""
        return self.root / "predictions.parquet"

    @property
    def shuffled_predictions(self) -> Path:
        """Predictions of the test clips with their frames shuffled."""
        return self.root / "predictions_shuffled.parquet"

    @property
    def result(self) -> Path:
        """A :class:`~dfer_dist.runs.records.FoldResult`; it is written last."""
        return self.root / "result.json"

    @property
    def confusion(self) -> Path:
        """The confusion matrix as a picture."""
        return self.root / "confusion.png"

    @property
    def curves(self) -> Path:
        """Training curves as a picture."""
        return self.root / "curves.png"

    @property
    def log(self) -> Path:
        """The log of rank 0, over all attempts."""
        return self.root / "log.txt"

    def log_of(self, rank: int) -> Path:
        """Return the log of rank ``rank``, over all attempts."""
        return self.log if rank == 0 else self.log.with_name(f"log-rank{rank}.txt")

    def stacks(self, rank: int) -> Path:
        """Return the file of stack traces of rank ``rank`` when it hung."""
        return self.root / f"stacks-rank{rank}.txt"


@dataclass(frozen=True)
class RunDir:
    """Paths of one run (a cross-validation)."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "config.yaml"

    @property
    def run(self) -> Path:
        """A :class:`~dfer_dist.runs.records.RunInfo`."""
        return self.root / "run.json"

    @property
    def array(self) -> Path:
        """The id of the last Slurm array that opened the run with ``slurm/crossval.sbatch``.

        The file is next to the run's folder, which is made later.
        """
        return self.root.with_name(f".{self.root.name}.array")

    @property
    def provenance(self) -> Path:
        """A :class:`~dfer_dist.runs.records.Provenance`."""
        return self.root / "provenance.json"

    @property
    def environment(self) -> Path:
        """All packages installed where the run was opened."""
        return self.root / "environment.txt"

    @property
    def code(self) -> Path:
        """A copy of the code that the run uses."""
        return self.root / "code"

    @property
    def jobs(self) -> Path:
        """The jobs submitted to a cluster."""
        return self.root / "jobs.json"

    @property
    def summary(self) -> Path:
        """A :class:`~dfer_dist.runs.records.Summary`."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The report as Markdown."""
        return self.root / "summary.md"

    @property
    def picture(self) -> Path:
        """The report's figure."""
        return self.root / "summary.png"

    @property
    def files_sent(self) -> Path:
        """The sha256 of each file that the tracking server has."""
        return self.root / "files.sent"

    @property
    def latex(self) -> Path:
        """The report's tables for LaTeX."""
        return self.root / "summary.tex"

    @property
    def page(self) -> Path:
        """The report as a web page."""
        return self.root / "report.html"

    @property
    def mistakes(self) -> Path:
        """Frames of the most confident errors; they are faces and are never uploaded."""
        return self.root / "mistakes.png"

    def fold(self, fold: int) -> FoldDir:
        """Return the paths of fold ``fold``, counted from 1."""
        return FoldDir(self.root / f"fold-{fold}")

    def info(self) -> RunInfo:
        """Return the content of ``run.json``.

        Raises
        ------
        UserError
            If this folder is not a run, or its ``run.json`` is damaged.
        """
        self._check_exists()
        return RunInfo.read(self.run)

    def update_info(self, **changes: Any) -> None:
        """Replace fields in ``run.json``, one process at a time."""
        with file_lock(self.root / ".run.lock"):
            replace(self.info(), **changes).write(self.run)

    def describe(self) -> dict[str, Any]:
        """Return the content of ``run.json`` as a dictionary.

        Raises
        ------
        UserError
            If this folder is not a run.
        """
        self._check_exists()
        return read_json(self.run)

    def change(self, **new: Any) -> None:
        """Change values in ``run.json``, one process at a time."""
        with file_lock(self.root / ".run.lock"):
            write_json(self.run, {**self.describe(), **new})

    def drifts(self) -> list[dict[str, Any]]:
        """Return each resumption of the run with changed settings, data or code."""
        return list(self.describe().get("drift", []))

    def _check_exists(self) -> None:
        if not self.run.is_file():
            raise UserError(
                f"{self.root} is not a run: it has no {self.run.name} "
                "(start one with dfer crossval)"
            )


def parse_folds(text: str | None, known: list[int]) -> list[int]:
    """Return the fold numbers in a text such as ``1,3-5``, sorted and without repetition.

    Without a text, return all known folds.

    Raises
    ------
    UserError
        If a part is neither a number nor a range, or the data set does not have a fold.
    """
    if text is None:
        return known
    chosen: set[int] = set()
    for part in text.split(","):
        first, last = _parse_range(part.strip(), text)
        for fold in (first, last):
            if fold not in known:
                have = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
                raise UserError(f"fold {fold} is out of range: this data set has {have}")
        chosen |= set(range(first, last + 1))
    return sorted(chosen)


def _parse_range(part: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last:
            return first, last
    raise UserError(f"folds '{text}': give numbers and ranges such as 1,3-5")
