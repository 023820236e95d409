"""``dfer status``: the state of the folds of runs, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import expand
from dfer_dist.utils.errors import UserError
from launch.console import console, fit_table, format_loss, format_seconds, format_speed
from launch.slurm.failures import bad_nodes
from launch.slurm.jobs import all_jobs, read_if_valid, submissions
from launch.slurm.squeue import Queue, query_squeue, reason_text
from launch.slurm.state import DONE, FAILED, LIVE, LOST, NOT_STARTED, RUNNING, FoldState, get_state

_STYLES = {DONE: "green", RUNNING: "cyan", FAILED: "red", LOST: "red", NOT_STARTED: "dim"}
_NO_ANSWER = "Slurm does not answer: the state of its jobs is from the files of the run alone"
# columns
_TEXTS = ("State", "Phase", "From", "Device", "Nodes")
_JUSTIFY: dict[str, JustifyMethod] = dict.fromkeys(_TEXTS, "left")


@dataclass(frozen=True)
class RunState:
    """A run with the state of all its folds."""

    run: RunDir
    dataset: str
    folds: list[FoldState]
    summary: str  # where the summary is, or what it waits for
    unsure: bool  # whether it has jobs and Slurm does not answer
    bad_nodes: list[str]  # on which starts failed too often: requeued folds avoid them

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.run.root.name


def get_run_state(run: RunDir, queue: Queue | None) -> RunState:
    """Return the state of a run.

    Parameters
    ----------
    run : RunDir
        The run.
    queue : mapping or None
        From :func:`launch.slurm.squeue.query_squeue`; None if Slurm did not answer.

    Raises
    ------
    UserError
        If the folder is no run, or its ``run.json`` is damaged.
    """
    info = run.info()
    folds = [get_state(run, k, queue) for k in info.folds]
    summary = _describe_summary(run, folds, queue)
    is_live = any(fold.state in LIVE for fold in folds)
    unsure = queue is None and is_live and bool(all_jobs(run))
    return RunState(run, info.dataset, folds, summary, unsure, bad_nodes(run))


def query_squeue_for(run: RunDir) -> Queue | None:
    """Return Slurm's queue if the run has jobs: a silent controller costs seconds."""
    return query_squeue() if all_jobs(run) else {}


def _describe_summary(run: RunDir, folds: list[FoldState], queue: Queue | None) -> str:
    newest = next((entry.summary or "" for entry in reversed(submissions(run))), "")
    if queue and newest in queue:
        job = queue[newest]
        return f"job {job.id} {reason_text(job.reason) if job.waits else f'is {job.state}'}"
    results = [path for k in folds if (path := run.fold(k.fold).result).exists()]
    if any(fold.state in LIVE for fold in folds):
        return "when the folds are over"
    if not results:
        return "none, as no fold is done"
    last_change = max(path.stat().st_mtime for path in results)
    if not run.summary.exists() or run.summary.stat().st_mtime < last_change:
        return f"to be written: dfer report {_from_here(run.root)}"
    return _from_here(run.report)


def _from_here(path: Path) -> str:
    """Return a path relative to the working directory if it is in there."""
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return str(path)


def render(states: Sequence[RunState]) -> RenderableType:
    """Return a heading, a table and a summary of each run, for a rich console."""
    parts: list[RenderableType] = []
    for state in states:
        reasons = _reasons(state.folds)
        parts += [_heading(state), _table(state.folds), *reasons, _footer(state), Text()]
    if any(state.unsure for state in states):
        parts.append(Text(_NO_ANSWER, style="yellow"))
    return Group(*parts)


def _heading(state: RunState) -> Text:
    cluster = "".join(f", cluster {entry.cluster}" for entry in submissions(state.run)[-1:])
    return Text.assemble((state.name, "bold"), f": data set {state.dataset}{cluster}")


def _table(folds: list[FoldState]) -> Table:
    """Return a row for each fold; columns that would be empty are left out.

    The last columns are those that a narrow terminal may lack.
    """
    columns = {
        "Fold": [str(fold.fold) for fold in folds],
        "State": [fold.state for fold in folds],
        "Phase": [fold.phase for fold in folds],
        "Step": [_format_step(fold) for fold in folds],
        "Loss": [format_loss(fold.loss) for fold in folds],
        "clips/s": [format_speed(fold.clips_per_second) for fold in folds],
        "Left": [format_seconds(fold.seconds_left) for fold in folds],
        "Last line": [_format_age(fold.seconds_silent) for fold in folds],
        "Device": [fold.device for fold in folds],
        "UAR %": [_format(fold.uar) for fold in folds],
        "WAR %": [_format(fold.war) for fold in folds],
        "From": [fold.scored for fold in folds],
        "MFU %": ["" if fold.mfu is None else f"{100 * fold.mfu:.0f}" for fold in folds],
        "Try": [str(fold.attempts or "") for fold in folds],
        "Limit": [fold.left for fold in folds],
        "Nodes": [fold.nodes for fold in folds],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells) or name == "State"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify=_JUSTIFY.get(name, "right"))
    for fold, *row in zip(folds, *columns.values(), strict=True):
        styles = {"State": _STYLES.get(fold.state, "yellow")}
        cells = zip(columns, row, strict=True)
        table.add_row(*(Text(cell, style=styles.get(name, "")) for name, cell in cells))
    return fit_table(table, console.width)


def _format_step(fold: FoldState) -> str:
    if fold.step is None:
        return ""
    if fold.steps is None:
        return str(fold.step)
    return f"{fold.step} of {fold.steps}"


def _format_age(seconds: float | None) -> str:
    """Return an age such as ``12 s`` or ``5 min``; hours as :func:`format_seconds` does."""
    if seconds is None or seconds >= 3600:
        return format_seconds(seconds)
    if seconds >= 100:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"


def _format(value: float | None, spec: str = ".2f") -> str:
    return "" if value is None else format(value, spec)


def _reasons(folds: list[FoldState]) -> list[Text]:
    """Return a line for each reason or error with its folds; a cell would break it into many."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for fold in folds:
        if fold.error or fold.why:
            key = (fold.why or fold.error, "red" if fold.error else "")
            numbers.setdefault(key, []).append(str(fold.fold))
    return [
        Text(f"fold {', '.join(folds_of_line)}: {line}", style=style)
        for (line, style), folds_of_line in numbers.items()
    ]


def _footer(state: RunState) -> Text:
    done = [fold for fold in state.folds if fold.state == DONE]
    count = f"{len(done)} of {len(state.folds)} folds"
    text = f"{count} done"
    scores = [
        (fold.uar, fold.war) for fold in done if fold.uar is not None and fold.war is not None
    ]
    # a damaged result has none
    if done and len(scores) == len(done):
        uar, war = (sum(column) / len(done) for column in zip(*scores, strict=True))
        over = "" if len(done) == len(state.folds) else f" of {count} only"
        result = read_if_valid(state.run.fold(done[0].fold).result) or {}
        selection = f"(selection {result.get('selection')})"
        text += f": mean UAR {uar:.2f}, mean WAR {war:.2f}{over} {selection}"
    if state.bad_nodes:
        nodes = ", ".join(state.bad_nodes)
        text += f"\nexcluded, as starts failed there again and again: {nodes}"
    return Text(f"{text}\nsummary: {state.summary}")


def find_runs(folder: Path) -> list[RunDir]:
    """Return all runs in a folder, the one that was worked on last first."""
    runs = [RunDir(file.parent.resolve()) for file in folder.glob("*/run.json")]
    return sorted(runs, key=_last_change, reverse=True)


def _last_change(run: RunDir) -> float:
    return max(file.stat().st_mtime for file in [run.run, *run.root.glob("fold-*/status.json")])


def widen() -> None:
    """Let lines have any length if the console is no terminal: nothing is cropped or folded."""
    if not console.is_terminal:
        console.width = 10_000


def status(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a run, of a sweep, or of several runs. Default: all of --runs."
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="The folder of all runs.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line for each run.")
    ] = False,
) -> None:
    """Show the state of each fold.

    Prints its progress, its nodes, why it waits and why it failed.

    Example: [bold]dfer status runs/dfew_vitb32[/bold]
    """
    if run and not RunDir(run).run.exists() and find_runs(run):
        runs, run = run, None
    if run:
        chosen = expand(run)
        queue = query_squeue() if any(map(all_jobs, chosen)) else {}
    else:
        chosen = find_runs(runs)
        if not chosen:
            raise UserError(
                f"{runs} holds no run: start one with dfer crossval, or give --runs FOLDER"
            )
        queue = query_squeue()
    states: list[RunState] = []
    errors: list[str] = []
    for one in chosen:
        try:
            states.append(get_run_state(one, queue))
        except UserError as e:
            if run:
                raise
            errors.append(str(e))
    if as_json:
        for state in states:
            folds = [asdict(fold) for fold in state.folds]
            values = {"run": str(state.run.root), "folds": folds, "summary": state.summary}
            facts = {"bad_nodes": state.bad_nodes, "slurm": not state.unsure}
            print(json.dumps({**values, **facts}))
        return
    widen()
    console.print(render(states), *map(Text, errors), sep="\n", soft_wrap=False)
