"""``dfer status``: what the folds of runs are doing, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.slurm.jobs import all_jobs, folds_of, read_object, submissions
from launch.slurm.squeue import queue, reason_text
from launch.slurm.state import DONE, FAILED, LIVE, LOST, RUNNING, FoldState, Jobs, get_state

_STYLES = {DONE: "green", RUNNING: "cyan", FAILED: "red", LOST: "red", "NOT STARTED": "dim"}
_SILENT = "Slurm does not answer: what is said of its jobs is from the files of the run alone"


@dataclass(frozen=True)
class RunState:
    """A run with all its folds."""

    run: RunDir
    about: dict[str, Any]  # run.json
    folds: list[FoldState]
    summary: str  # where the summary is, or what it waits for
    unsure: bool  # whether it has jobs that Slurm did not tell of

    @property
    def name(self) -> str:
        return self.run.root.name


def look_at(runs: Sequence[RunDir], jobs: Jobs | None) -> list[RunState]:
    """The state of each run; ``jobs`` as :func:`launch.slurm.squeue.queue` gives them.

    Raises
    ------
    UserError
        If a folder is no run, or its ``run.json`` is damaged.
    """
    states = []
    for run in runs:
        folds = [get_state(run, k, jobs) for k in folds_of(run)]
        unsure = jobs is None and any(f.state in LIVE for f in folds) and bool(all_jobs(run))
        states.append(RunState(run, run.describe(), folds, _summary(run, folds, jobs), unsure))
    return states


def query_squeue(runs: Sequence[RunDir]) -> Jobs | None:
    """Slurm's queue, where any of the runs has jobs: a controller that does not answer takes seconds."""
    return queue() if any(all_jobs(run) for run in runs) else {}


def _summary(run: RunDir, folds: list[FoldState], jobs: Jobs | None) -> str:
    submitted = submissions(run)
    job = (jobs or {}).get(str(submitted[-1].get("summary"))) if submitted else None
    if job:
        return f"job {job.id} " + (reason_text(job.reason) if job.waits else f"is {job.state}")
    results = [f for k in folds if (f := run.fold(k.fold).result).exists()]
    if any(f.state in LIVE for f in folds):
        return "when the folds are over"
    if not results:
        return "none, as no fold is done"
    if not run.summary.exists() or any(
        f.stat().st_mtime > run.summary.stat().st_mtime for f in results
    ):
        return f"to be written: dfer report {_short(run.root)}"
    return _short(run.report)


def _short(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def render(states: Sequence[RunState]) -> RenderableType:
    """All runs, for a rich console."""
    parts: list[RenderableType] = []
    for state in states:
        parts += [
            _heading(state),
            _table(state.folds),
            *_reasons(state.folds),
            _footer(state),
            Text(),
        ]
    if any(s.unsure for s in states):
        parts.append(Text(_SILENT, style="yellow"))
    return Group(*parts)


def _heading(state: RunState) -> Text:
    submitted = submissions(state.run)
    where = f", cluster {submitted[-1].get('cluster')}" if submitted else ""
    return Text.assemble((state.name, "bold"), f": data set {state.about.get('dataset')}{where}")


def _table(folds: list[FoldState]) -> Table:
    """A row a fold. Columns that would be empty in all rows are left out."""
    columns = {
        "Fold": [str(f.fold) for f in folds],
        "State": [f.state for f in folds],
        "Try": [str(f.attempts or "") for f in folds],
        "Step": [_steps(f) for f in folds],
        "clips/s": [
            _figure(f.clips_per_second, 0 if (f.clips_per_second or 0) >= 10 else 1) for f in folds
        ],
        "UAR %": [_figure(f.uar, 2) for f in folds],
        "WAR %": [_figure(f.war, 2) for f in folds],
        "From": [f.scored for f in folds],
        "Nodes": [f.nodes for f in folds],
        "Left": [f.left for f in folds],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells) or name == "State"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        right = name in ("Fold", "Try", "Step", "clips/s", "UAR %", "WAR %", "Left")
        table.add_column(
            name, justify="right" if right else "left", overflow="fold", no_wrap=name != "Nodes"
        )
    for fold, *row in zip(folds, *columns.values(), strict=True):
        style = _STYLES.get(fold.state, "yellow")
        table.add_row(
            *(
                Text(cell, style=style if name == "State" else "")
                for name, cell in zip(columns, row, strict=True)
            )
        )
    return table


def _steps(fold: FoldState) -> str:
    if fold.step is None:
        return ""
    return f"{fold.step} of {fold.steps}" if fold.steps is not None else str(fold.step)


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _reasons(folds: list[FoldState]) -> list[Text]:
    """A line for each thing there is to say, with the folds that it is said of. Cells of the table would break it into many."""
    said: dict[tuple[str, str], list[str]] = {}
    for f in folds:
        if f.why or f.error:
            said.setdefault((f.why or f.error, "red" if f.error else ""), []).append(str(f.fold))
    return [
        Text(f"fold {', '.join(numbers)}: {words}", style=style)
        for (words, style), numbers in said.items()
    ]


def _footer(state: RunState) -> Text:
    done = [f for f in state.folds if f.state == DONE]
    text = f"{len(done)} of {len(state.folds)} folds done"
    means = [_mean([getattr(f, name) for f in done]) for name in ("uar", "war")]
    if done and None not in means:
        over = (
            ""
            if len(done) == len(state.folds)
            else f" of {len(done)} of {len(state.folds)} folds only"
        )
        selection = (read_object(state.run.fold(done[0].fold).result) or {}).get("selection")
        text += f": mean UAR {means[0]:.2f}, mean WAR {means[1]:.2f}{over} (selection {selection})"
    return Text(f"{text}\nsummary: {state.summary}")


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def find_runs(folder: Path) -> list[RunDir]:
    """All runs in a folder, the one that was worked on last first."""
    found: list[tuple[float, RunDir]] = []
    for file in folder.glob("*/run.json"):
        with suppress(OSError):
            files = [file, *file.parent.glob("fold-*/status.json")]
            found.append((max(f.stat().st_mtime for f in files), RunDir(file.parent.resolve())))
    return [run for _, run in sorted(found, key=lambda pair: -pair[0])]


def widen(console: Console) -> None:
    """Let lines be as long as they are, where the console is no terminal: nothing is cropped or folded."""
    if not console.is_terminal:
        console.width = 10_000


def status(
    run: Annotated[
        Path | None, typer.Argument(help="A run's folder; all runs by default, newest first.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="The folder of all runs.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a run, one a line.")
    ] = False,
) -> None:
    """Show what each fold does: how far it is, where it runs, why it waits, why it failed.

    Example: [bold]dfer status runs/dfew_vitb32[/bold]
    """
    chosen = [RunDir(run.resolve())] if run else find_runs(runs)
    if not chosen:
        raise UserError(
            f"{runs} holds no run: start one with dfer crossval, or say where with --runs"
        )
    states, damaged = [], []
    jobs = query_squeue(chosen) if run else queue()
    for one in chosen:
        try:
            states += look_at([one], jobs)
        except UserError as e:
            if run:
                raise
            damaged.append(str(e))
    if as_json:
        for state in states:
            folds = [asdict(f) for f in state.folds]
            print(
                json.dumps(
                    {
                        "run": str(state.run.root),
                        "folds": folds,
                        "summary": state.summary,
                        "slurm": not state.unsure,
                    }
                )
            )
        return
    console = Console(highlight=False)
    widen(console)
    console.print(render(states), *map(Text, damaged), sep="\n", soft_wrap=False)
