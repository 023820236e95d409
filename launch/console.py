"""Printing, progress bars and errors of the command line."""

from __future__ import annotations

import atexit
import gc
import io
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich import progress
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dfer_dist.utils.errors import UserError, is_disk_full
from dfer_dist.utils.log import setup_logging

# the modules of optional dependencies, by the extra of this package that installs them
_EXTRAS = {
    "train": {
        *("aiohttp", "deepspeed", "fastapi", "jinja2", "mlflow", "sklearn", "submitit", "uvicorn"),
        "webdataset",
    },
    "faces": {"dlib"},
    "captions": {"requests", "urllib3"},
    "tune": {"optuna"},
}

# characters in a table
_SHORT_CELL = 8  # not wrapped
_LONG_WORD = 10  # folded if it is longer and no number
_MAX_NUMBER = 24
_GAP = 1  # between columns without rules
_UNLIMITED = 10_000
_PATIENCE = 3.0  # seconds after which a line says what takes so long
# it colours nothing by itself
console = Console(highlight=False)


def new_app(**settings: Any) -> typer.Typer:
    """Return a group of commands with the settings that all of ours share."""
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        **{"add_completion": False, **settings},
    )


def print_line(text: str, style: str | None = None) -> None:
    """Print one line as it is: not wrapped, and without markup."""
    console.print(text, style=style, soft_wrap=True, markup=False)


def number_columns(*heads: str) -> list[Column]:
    """Return the columns of a table that are aligned right."""
    return [Column(head, justify="right") for head in heads]


def print_table(table: Table, file: str = "") -> None:
    """Print a table as :func:`fit_table` makes it fit; ``file`` has all of its columns."""
    console.print(fit_table(table, console.width, file))


def fit_table(table: Table, width: int, file: str = "") -> Table:
    """Make a table fit into ``width`` characters; no number is cut or broken.

    Texts are wrapped, then rules between columns go, then the last columns are left out. The
    caption names these, and the ``file`` that has them.
    """
    left_out: list[str] = []
    # a table that was fitted before is measured anew
    for column in table.columns:
        column.width = None
    while True:
        cells = [[str(c.header), *map(str, c.cells)] for c in table.columns]
        widths = [max(1, *map(cell_len, column)) for column in cells]
        least = [_least_width(*column) for column in cells]
        natural = console.measure(table, options=console.options.update(width=_UNLIMITED))
        space = width - (natural.maximum - sum(widths))
        if sum(least) <= space or len(table.columns) == 1:
            break
        if table.box:
            table.box, table.padding = None, (0, _GAP, 0, 0)
        else:
            left_out.insert(0, str(table.columns.pop().header))
    while sum(widths) > max(space, sum(least)):
        spare = [most - fewest for most, fewest in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    for column, size in zip(table.columns, widths, strict=True):
        column.width, column.overflow, column.no_wrap = size, "fold", False
    if left_out:
        where = f"{file} has them" if file else "a wider terminal shows them"
        note = f"Left out at {width} characters: {', '.join(left_out)}; {where}."
        table.caption = Text("\n").join([Text(str(table.caption or "")), Text(note)])
    return table


def _least_width(header: str, *cells: str) -> int:
    """Return the width of a column in which no number is broken, nor any but a long word."""
    least = [min(cell_len(word), _LONG_WORD) for word in header.split()]
    for cell in cells:
        parts = [cell] if len(cell) <= _SHORT_CELL else re.findall(r"\S+ to|\S+", cell)
        for part in parts:
            longest = _MAX_NUMBER if re.search(r"\d", part) else _LONG_WORD
            least.append(min(cell_len(part), longest))
    return max([1, *least])


def format_seconds(seconds: float | None) -> str:
    """Return a duration as ``H:MM:SS``, or ``3 d 04 h``; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours}:{minutes:02d}:{rest:02d}"


def format_loss(loss: float | None) -> str:
    """Return a loss in at most seven characters; empty for None."""
    if loss is None:
        return ""
    if abs(loss) < 100:
        return f"{loss:.3f}"
    return f"{loss:.3g}"


def format_speed(speed: float | None) -> str:
    """Return clips per second; empty for None."""
    if speed is None:
        return ""
    return f"{speed:.{int(speed < 10)}f}"


class _RateColumn(progress.ProgressColumn):
    """Items per second."""

    def render(self, task: progress.Task) -> Text:
        return progress.TaskProgressColumn.render_speed(task.finished_speed or task.speed)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows ``(done, total)`` as a bar with rate and time left.

    The bar appears with the first call, so that nothing shows where there is nothing to do, nor
    above an error.
    """
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _RateColumn(),
        progress.TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task(title, total=None)

    def update(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Say what the block does: at once on a terminal, elsewhere if it takes some seconds."""
    if console.is_terminal:
        with console.status(text):
            yield
        return
    timer = threading.Timer(_PATIENCE, print_line, [f"{text} …"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_app(app: typer.Typer) -> None:
    """Run a command of ``app`` and exit.

    An error that the user can fix is printed as one line, with exit status 2. With ``--debug``
    its traceback is shown instead, and ranks show theirs.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != "--debug")]
        os.environ["DFER_DEBUG"] = "1"
    _use_utf8()
    setup_logging()
    # Where a command imported torch, Python's last collections would take it a second or two.
    atexit.register(gc.freeze)
    try:
        sys.exit(app(standalone_mode=False))
    except Exception as error:
        message = user_message(error)
        if debug or message is None:
            raise
        if message:
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding, such as ASCII.

    Otherwise file names and texts that are not ASCII could not be read. What a terminal cannot show
    is replaced.
    """
    if sys.getfilesystemencoding() != "utf-8":
        # for ranks and other processes too
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.startswith("utf"):
            stream.reconfigure(errors="replace")


def user_message(error: Exception) -> str | None:
    """Return what to print for an error that the user can fix, None for a fault of the program."""
    # OSError: a full disk, or a folder that may not be written
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        # of a folder: one failure for each of its files
        (_, target, reason), *_ = error.args[0]
        return f"{len(error.args[0])} files cannot be copied, such as {target}: {reason}"
    if isinstance(error, UserError | OSError) or is_disk_full(error):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        # in a path that the user gave: names in data sets are escaped
        near = error.object[max(0, error.start - 20) : error.end + 20]
        return f"{near!a} is no UTF-8: choose another name for what is written"
    if isinstance(error, ModuleNotFoundError):
        module = str(error.name).partition(".")[0]
        for extra, modules in _EXTRAS.items():
            if module in modules:
                return f"{error.name} is not installed: run pip install 'dfer_dist[{extra}]'"
        return None
    # errors of the command line; a class of click or of the copy of click that Typer brings
    if hasattr(error, "format_message"):
        message = error.format_message()
        # without a command the help was shown already
        return f"{message} (try --help)" if message else ""
    return None
