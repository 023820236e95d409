"""Paths of the files in a run's folder.

::

    runs/NAME/
      config.yaml  run.json  provenance.json  folds.json  environment.txt  code/  jobs.json
      fold-1/
        metrics.jsonl  system-NODE.jsonl  status.json  log.txt  checkpoints/
        predictions.parquet  result.json  confusion.png  curves.png
      summary.json  summary.md  summary.tex  summary.png  confusion.csv  report.html  mistakes.png
    runs/NAME.sweep/  sweep.json  comparison.md  comparison.tex  comparison.html
                      search.json  journal.log  folds.json  trials.csv  best.yaml
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfer_dist.runs.records import RunInfo
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.locks import file_lock

# In the folder of a sweep, next to its runs: :class:`~dfer_dist.runs.sweep.SweepInfo`.
SWEEP_FILE, SEARCH_FILE = "sweep.json", "search.json"


class _Entry:
    """A file or folder with a fixed name: read from its owner, the path in the owner's ``root``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: FoldDir | RunDir, owner_type: type) -> Path:
        return owner.root / self.name


@dataclass(frozen=True)
class FoldDir:
    """Paths of one fold."""

    root: Path

    # Metrics, one JSON object a line.
    metrics = _Entry("metrics.jsonl")
    # The number of bytes of ``metrics.jsonl`` that the tracking server has.
    sent = _Entry("metrics.sent")
    # The sha256 of each file that the tracking server has.
    files_sent = _Entry("files.sent")
    # Skipped steps with the keys of their clips.
    bad_steps = _Entry("bad_steps.json")
    # A :class:`~dfer_dist.runs.records.FoldStatus`.
    status = _Entry("status.json")
    # Starts of the fold's Slurm job that failed, and what the logs held when the newest one began.
    failures = _Entry("failures.json")
    start = _Entry(".start")
    checkpoints = _Entry("checkpoints")
    # Predictions of the test clips, and of the same with their frames shuffled.
    predictions = _Entry("predictions.parquet")
    shuffled_predictions = _Entry("predictions_shuffled.parquet")
    # Features of the test clips, which are never uploaded.
    features = _Entry("features.parquet")
    # A :class:`~dfer_dist.runs.records.FoldResult`; it is written last.
    result = _Entry("result.json")
    # The confusion matrix and the training curves as pictures.
    confusion = _Entry("confusion.png")
    curves = _Entry("curves.png")
    # Traces of training steps.
    profile = _Entry("profile")
    # The log of rank 0, over all attempts.
    log = _Entry("log.txt")

    def predictions_of(self, dataset: str) -> Path:
        """Return the file of predictions of a set but the first that a fold was trained on."""
        return self.root / f"predictions-{re.sub(r'[^A-Za-z0-9_-]', '_', dataset)}.parquet"

    def system(self, node: str) -> Path:
        """Return the file of CPU and GPU load of the machine ``node``."""
        return self.root / f"system-{node}.jsonl"

    def log_of(self, rank: int) -> Path:
        """Return the log of rank ``rank``, over all attempts."""
        return self.log if rank == 0 else self.log.with_name(f"log-rank{rank}.txt")

    def stacks(self, rank: int) -> Path:
        """Return the file of stack traces of rank ``rank`` when it hung."""
        return self.root / f"stacks-rank{rank}.txt"

    def nccl_trace(self, rank: int) -> Path:
        """Return the file of NCCL's last collectives of rank ``rank`` when it hung."""
        return self.root / f"nccl-trace-rank{rank}"


@dataclass(frozen=True)
class RunDir:
    """Paths of one run (a cross-validation)."""

    root: Path

    # The resolved settings.
    config = _Entry("config.yaml")
    # A :class:`~dfer_dist.runs.records.RunInfo`.
    run = _Entry("run.json")
    # A :class:`~dfer_dist.runs.records.Provenance`.
    provenance = _Entry("provenance.json")
    # A copy of the file of ``data.folds``, if the run has one.
    folds = _Entry("folds.json")
    # All packages installed where the run was opened.
    environment = _Entry("environment.txt")
    # A copy of the code that the run uses.
    code = _Entry("code")
    # The answers of a model at an endpoint, in place of settings and training.
    answers = _Entry("answers.jsonl")
    # The jobs submitted to a cluster.
    jobs = _Entry("jobs.json")
    # A :class:`~dfer_dist.runs.records.Summary`.
    summary = _Entry("summary.json")
    # The report as Markdown, its figure, its tables for LaTeX, and the report as a web page.
    report = _Entry("summary.md")
    picture = _Entry("summary.png")
    latex = _Entry("summary.tex")
    page = _Entry("report.html")
    # The confusion matrix over all folds, in clips.
    confusion = _Entry("confusion.csv")
    # Frames of the most confident errors; they are faces and are never uploaded.
    mistakes = _Entry("mistakes.png")
    # The sha256 of each file that the tracking server has.
    files_sent = _Entry("files.sent")

    @property
    def array(self) -> Path:
        """The id of the last Slurm array that opened the run with ``slurm/crossval.sbatch``.

        The file is next to the run's folder, which is made later.
        """
        return self.root.with_name(f".{self.root.name}.array")

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
        if (self.root / SWEEP_FILE).is_file():
            raise UserError(
                f"{self.root} is a sweep of several runs: give one of "
                f"{self.root.with_suffix('')}-*, which dfer status {self.root} lists"
            )
        if not self.run.is_file():
            raise UserError(
                f"{self.root} is not a run: it has no {self.run.name}; start one with dfer crossval"
            )
        return RunInfo.read(self.run)

    def update_info(self, **changes: Any) -> None:
        """Replace fields in ``run.json``, one process at a time."""
        with file_lock(self.root / ".run.lock"):
            replace(self.info(), **changes).write(self.run)


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
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        ends = [int(n) for n in match.groups() if n] if match else []
        if not ends or ends != sorted(ends):
            raise UserError(f"folds '{text}': give numbers and ranges such as 1,3-5")
        for fold in ends:
            if fold not in known:
                have = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
                raise UserError(f"fold {fold} is out of range: this data set has {have}")
        chosen.update(range(ends[0], ends[-1] + 1))
    return sorted(chosen)
