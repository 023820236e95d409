"""Every path of a run, and how files in it are written: whole or not at all.

::

    runs/NAME/
      config.yaml  run.json  provenance.json  environment.txt  code/  jobs.json
      fold-1/  metrics.jsonl  system-NODE.jsonl  status.json  checkpoints/  predictions.parquet  result.json  confusion.png  curves.png  log.txt
      summary.json  summary.md  summary.tex  summary.png  report.html  mistakes.png
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.locks import file_lock


@dataclass(frozen=True)
class FoldDir:
    """Paths of one fold."""

    root: Path

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def sent(self) -> Path:
        """How much of ``metrics.jsonl`` the tracking server has."""
        return self.root / "metrics.sent"

    def system(self, node: str) -> Path:
        """Load of the processors and GPUs of a machine that worked on it."""
        return self.root / f"system-{node}.jsonl"

    @property
    def files_sent(self) -> Path:
        """Which files the tracking server has, by their sha256."""
        return self.root / "files.sent"

    @property
    def bad_steps(self) -> Path:
        """Steps that were skipped, with the keys of their clips."""
        return self.root / "bad_steps.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.parquet"

    @property
    def shuffled_predictions(self) -> Path:
        return self.root / "predictions_shuffled.parquet"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def confusion(self) -> Path:
        return self.root / "confusion.png"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    def log_of(self, rank: int) -> Path:
        """What rank ``rank`` printed, over all attempts."""
        return self.log if rank == 0 else self.log.with_name(f"log-rank{rank}.txt")

    def stacks(self, rank: int) -> Path:
        """Where rank ``rank`` writes what it was doing when it hung."""
        return self.root / f"stacks-rank{rank}.txt"


@dataclass(frozen=True)
class RunDir:
    """Paths of one run (a cross-validation)."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def run(self) -> Path:
        """What the run is: experiment, data set, its folds, ids at the tracking server."""
        return self.root / "run.json"

    @property
    def array(self) -> Path:
        """The id of the Slurm array that opened it last with ``slurm/crossval.sbatch``; beside the run, whose folder comes later."""
        return self.root.with_name(f".{self.root.name}.array")

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def environment(self) -> Path:
        """All packages that were installed where the run was opened."""
        return self.root / "environment.txt"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def jobs(self) -> Path:
        """What was submitted to a cluster."""
        return self.root / "jobs.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "summary.md"

    @property
    def picture(self) -> Path:
        return self.root / "summary.png"

    @property
    def files_sent(self) -> Path:
        """Which files the tracking server has, by their sha256."""
        return self.root / "files.sent"

    @property
    def latex(self) -> Path:
        return self.root / "summary.tex"

    @property
    def page(self) -> Path:
        return self.root / "report.html"

    @property
    def mistakes(self) -> Path:
        """Frames of the most confident mistakes; faces, which stay on this machine."""
        return self.root / "mistakes.png"

    def fold(self, fold: int) -> FoldDir:
        """Paths of fold ``fold``, counted from 1."""
        return FoldDir(self.root / f"fold-{fold}")

    def describe(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises
        ------
        UserError
            If this folder is no run.
        """
        if not self.run.is_file():
            raise UserError(
                f"{self.root} is not a run: it has no {self.run.name} (start one with dfer crossval)"
            )
        return read_json(self.run)

    def change(self, **new: Any) -> None:
        """Change values in ``run.json``; of several processes one after the other."""
        with file_lock(self.root / ".run.lock"):
            write_json(self.run, {**self.describe(), **new})

    def drifts(self) -> list[dict[str, Any]]:
        """Each time that the run went on although something differed: ``time``, and ``changes`` from key to what was and is."""
        return list(self.describe().get("drift", []))


def parse_folds(words: str, known: list[int]) -> list[int]:
    """Fold numbers from words such as ``1,3-5``, in order and once each.

    Raises
    ------
    UserError
        For anything that is not a number or a range, and for a fold the data set does not have.
    """
    chosen: set[int] = set()
    for part in words.split(","):
        ends = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            raise UserError(f"folds '{words}': give numbers and ranges such as 1,3-5")
        unknown = [k for k in (first, last) if k not in known]
        if unknown:
            have = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
            raise UserError(f"fold {unknown[0]} is out of range: this data set has {have}")
        chosen |= set(range(first, last + 1))
    return sorted(chosen)
