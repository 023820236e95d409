"""The folds that a command trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import JustifyMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dfer_dist.runs.status import Phase
from launch.console import console, format_loss, format_seconds, format_speed, print_line
from launch.progress import FoldProgress, LineTimer

if TYPE_CHECKING:
    from launch.slurm.state import FoldState

# Characters of the columns. The state is two scores, or a phase and a bar, and is wider where there
# is space.
_WIDTHS = {"Fold": 4, "State": 21, "Step": 9, "Epoch": 7}
_WIDTHS |= {"Loss": 6, "clips/s": 7, "Elapsed": 8, "Left": 8}
_MAX_BAR = 40
_ECHO = 2  # of the terminal: ^C after the last row would break it
# on a narrow terminal, in this order
_LEFT_OUT_FIRST = ("Epoch", "Elapsed", "clips/s", "Loss", "Step")
_OTHER_LINES = 4  # of a terminal: what is trained, heads, all folds, the cursor
_JUSTIFY: dict[str, JustifyMethod] = {"Fold": "left", "State": "left"}
_STYLES = {"failed": "red", "stopped": "yellow", "pruned": "yellow"}


def progress_text(progress: FoldProgress | FoldState, epoch: str) -> str:
    """Return the phase and the numbers of a fold as a part of a line."""
    step = ""
    if progress.steps is not None:
        step = f"step {progress.step} of {progress.steps}"
    loss, speed = format_loss(progress.loss), format_speed(progress.clips_per_second)
    left = format_seconds(progress.seconds_left)
    parts = [progress.phase, step, epoch, loss and f"loss {loss}", speed and f"{speed} clips/s"]
    return ", ".join(filter(None, [*parts, left and f"{left} left"]))


@dataclass
class FoldRow:
    """A fold in the table. ``outcome`` are its scores, or why it ended; empty while it trains."""

    begin: float  # of the monotonic clock
    progress: FoldProgress = field(default_factory=FoldProgress)
    outcome: str = ""
    seconds: float | None = None  # that it took; None if an earlier command trained it

    @property
    def elapsed(self) -> float | None:
        """Seconds since it began, or that it took."""
        if self.outcome:
            return self.seconds
        return time.monotonic() - self.begin

    @property
    def fraction(self) -> float:
        """The part of its steps that is done."""
        if self.is_done:
            return 1.0
        return (self.progress.step or 0) / (self.progress.steps or 1)

    @property
    def is_done(self) -> bool:
        """Whether it has scores."""
        return bool(self.outcome) and self.outcome not in _STYLES

    @property
    def seconds_spent(self) -> float:
        """Seconds so far; steps of earlier attempts count at the pace of this one."""
        pace = self.progress.seconds_per_step or 0.0
        return (self.elapsed or 0.0) + self.progress.from_step * pace

    @property
    def seconds_in_all(self) -> float | None:
        """Seconds until its last step at this pace, or that it took; None if not known."""
        if self.progress.seconds_per_step is None:
            return None
        return self.seconds_spent + (self.progress.seconds_left or 0.0)


class FoldTable:
    """Shows the folds of a command while it trains them, as a context manager.

    Parameters
    ----------
    num_folds : int
        That the command trains, with those that are done before.
    epochs : int
        Of a fold; 0 if they differ.
    noun : str
        What a row is: a fold, or a trial of a search.
    parallel : int
        Rows that are trained at the same time.
    """

    def __init__(self, num_folds: int, epochs: int, noun: str = "fold", parallel: int = 1) -> None:
        self.num_folds, self.epochs = num_folds, epochs
        self.noun, self.parallel = noun, parallel
        self.rows: dict[int, FoldRow] = {}
        self.begin = time.monotonic()
        self._timer = LineTimer()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Show the table, if this is a terminal."""
        if console.is_terminal:
            self._live = Live(get_renderable=self.render, console=console)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        """Show the last state. A fold that is not over was stopped."""
        for row in self.rows.values():
            if not row.outcome:
                row.seconds = row.elapsed
                row.outcome = "stopped"
        if self._live:
            self._live.stop()

    def start(self, fold: int) -> None:
        """Add a fold."""
        # not changed in place: the thread that shows the table iterates over it
        self.rows = {**self.rows, fold: FoldRow(time.monotonic())}

    def update(self, fold: int, progress: FoldProgress) -> None:
        """Show how far a fold is; without a terminal print a line if one is due."""
        self.rows[fold].progress = progress
        if not self._live and self._timer.is_due(fold, progress.epoch):
            print_line(f"{self.noun} {fold}: {self._text(fold)}")

    def finish(self, fold: int, outcome: str, is_new: bool = True) -> None:
        """Show how a fold ended; ``is_new`` says that this command trained it."""
        row = self.rows[fold]
        if is_new:
            row.seconds = row.elapsed
        row.outcome = outcome
        if not self._live and row.is_done:
            print_line(f"{self.noun} {fold}: {outcome}{', done before' * (not is_new)}")

    def prune(self, fold: int) -> None:
        """Show that a trial was pruned, if this command has trained it."""
        if fold in self.rows:
            self.finish(fold, "pruned")

    def _text(self, fold: int) -> str:
        progress = self.rows[fold].progress
        epoch = self._epoch(progress)
        parts = [progress_text(progress, epoch and f"epoch {epoch} of {self.epochs}")]
        if progress.phase == Phase.TRAINING:
            parts.append(progress.scores)
        left = format_seconds(self.seconds_left())
        if left and self.num_folds > 1:
            parts.append(f"all {self.noun}s {left} left")
        return ", ".join(filter(None, parts))

    def _epoch(self, progress: FoldProgress) -> str:
        """Return the epoch of the newest step, counted from 1; empty before the first."""
        if not progress.steps or not progress.step or not self.epochs:
            return ""
        return str(-(-progress.step * self.epochs // progress.steps))

    def seconds_left(self) -> float | None:
        """Return the seconds until all folds are done; None until the pace is known.

        A fold takes as long as those that are done, or else as its own steps suggest.
        """
        done = [row.seconds_in_all for row in self.rows.values() if row.is_done]
        running = [row for row in self.rows.values() if not row.outcome]
        totals = [total for total in done if total is not None]
        totals = totals or [t for row in running if (t := row.seconds_in_all) is not None]
        if not totals:
            return None
        mean = statistics.fmean(totals)
        left = mean * (self.num_folds - len(self.rows))
        for row in running:
            left += max(mean - row.seconds_spent, row.progress.seconds_left or 0.0)
        return left / self.parallel

    def render(self) -> RenderableType:
        """Return the table: a row for each fold that has begun, and one for all."""
        widths = self._widths(console.width)
        heads = {"Fold": self.noun.capitalize()}
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name, width in widths.items():
            justify = _JUSTIFY.get(name, "right")
            head = heads.get(name, name)
            table.add_column(head, justify=justify, width=width, no_wrap=True)
        # the newest ones, if the terminal has no space for all
        for fold in list(self.rows)[-max(1, console.height - _OTHER_LINES) :]:
            cells = self._cells(fold, widths["State"])
            table.add_row(*(cells.get(name, "") for name in widths))
        if self.num_folds > 1:
            cells = self._cells_of_all(widths["State"])
            table.add_row(*(cells.get(name, "") for name in widths))
        return table

    def _widths(self, width: int) -> dict[str, int]:
        """Return the columns that fit into ``width`` characters, with their widths."""
        steps = max((row.progress.steps or 0 for row in self.rows.values()), default=0)
        widths = _WIDTHS | {"Fold": max(_WIDTHS["Fold"], len(self.noun))}
        widths["Step"] = max(widths["Step"], len(f"{steps}/{steps}"))
        widths["Epoch"] = max(widths["Epoch"], len(f"{self.epochs}/{self.epochs}"))
        spare = width - sum(widths.values()) - len(widths)
        for name in _LEFT_OUT_FIRST:
            if spare < 0:
                spare += widths.pop(name) + 1
        widths["State"] += max(0, min(spare - _ECHO, _MAX_BAR))
        return widths

    def _cells(self, fold: int, width: int) -> dict[str, RenderableType]:
        """Return what the row of a fold has in each column."""
        row, progress = self.rows[fold], self.rows[fold].progress
        cells: dict[str, RenderableType] = {"Fold": str(fold)}
        epoch = self._epoch(progress)
        if progress.steps:
            cells["Step"] = f"{progress.step}/{progress.steps}"
            cells["Epoch"] = epoch and f"{epoch}/{self.epochs}"
        cells["Elapsed"] = format_seconds(row.elapsed) or "earlier"
        if row.outcome:
            cells["State"] = Text(row.outcome, style=_STYLES.get(row.outcome, "green"))
            return cells
        cells["State"] = progress.phase
        if progress.phase == Phase.TRAINING:
            label = progress.scores or progress.phase
            cells["State"] = _label_and_bar(label, row.fraction, width)
        cells["Loss"] = format_loss(progress.loss)
        cells["clips/s"] = format_speed(progress.clips_per_second)
        cells["Left"] = format_seconds(progress.seconds_left)
        return cells

    def _cells_of_all(self, width: int) -> dict[str, RenderableType]:
        """Return what the row of all folds has in each column."""
        done = sum(row.is_done for row in self.rows.values())
        fraction = sum(row.fraction for row in self.rows.values()) / self.num_folds
        label = f"{done} of {self.num_folds} done"
        return {
            "Fold": "all",
            "State": _label_and_bar(label, fraction, width),
            "Elapsed": format_seconds(time.monotonic() - self.begin),
            "Left": format_seconds(self.seconds_left()),
        }


def _label_and_bar(label: str, fraction: float, width: int) -> RenderableType:
    """Return a text and a bar of what is done in the rest of ``width`` characters."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(label, ProgressBar(1.0, fraction, width=max(1, width - len(label) - 1)))
    return grid
