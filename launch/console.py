"""Printing, progress bars and errors of the command line."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.log import setup_logging

# the module of an optional dependency, and the extra of this package that installs it
_EXTRAS = {
    "aiohttp": "train",
    "deepspeed": "train",
    "dlib": "faces",
    "jinja2": "train",
    "mlflow": "train",
    "requests": "captions",
    "sklearn": "train",
    "submitit": "train",
    "urllib3": "captions",
    "webdataset": "train",
}


def new_app(**settings: Any) -> typer.Typer:
    """Return a group of commands with the settings that all of ours share."""
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        **{"add_completion": False, **settings},
    )


def new_console() -> Console:
    """Return a console that colours nothing by itself."""
    return Console(highlight=False)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line as it is: not wrapped, and without markup."""
    console.print(text, style=style, soft_wrap=True, markup=False)


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        digits = 0 if speed >= 10 else 1
        return Text(f"{speed:.{digits}f}/s")


class ProgressBar:
    """A progress bar with rate and time left.

    Use it as a context manager and call it with ``(done, total)``. It appears with the first
    call, so that nothing shows where there is nothing to do, nor above an error.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> ProgressBar:
        """Return the bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        if self._progress.live.is_started:
            self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""
        self._progress.start()
        self._progress.update(self._task, completed=done, total=total)


def run_app(app: typer.Typer) -> None:
    """Run a command of ``app`` and exit.

    An error that the user can fix is printed as one line, with exit status 2. With ``--debug``
    its traceback is shown instead, and ranks show theirs.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != "--debug")]
        os.environ["DFER_DEBUG"] = "1"
    setup_logging()
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


def user_message(error: Exception) -> str | None:
    """Return what to print for an error that the user can fix, None for a fault of the program."""
    # OSError: a full disk, or a folder that may not be written
    if isinstance(error, UserError | OSError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get(str(error.name).partition(".")[0])
        return (
            f"{error.name} is not installed: run pip install 'dfer_dist[{extra}]'"
            if extra
            else None
        )
    # errors of the command line; a class of click or of the copy of click that Typer brings
    if hasattr(error, "format_message"):
        message = error.format_message()
        # without a command the help was shown already
        return f"{message} (try --help)" if message else ""
    return None
