"""The command table of ``dfer``. A command's module is imported only when the command is used."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from launch.console import new_app, run_app


class Row(NamedTuple):
    """Where a command is, and the first sentence of its help."""

    module: str  # in this package
    summary: str
    function: str = ""  # the name of the command by default


# by panel of the help
COMMANDS = {
    "Data": {
        "pack": Row("commands.data", "Pack a data set into shards."),
        "verify": Row("commands.data", "Check every byte of packed shards."),
        "enrich": Row("commands.data", "Add landmarks and parsing maps to packed shards."),
        "folds": Row(
            "commands.folds", "Make folds of a packed set that share no group, or check folds."
        ),
        "describe": Row(
            "commands.describe", "Describe each clip with a vision model, or import captions."
        ),
    },
    "Training": {
        "demo": Row(
            "commands.train",
            "Render a small data set, pack it, train five folds, and print the results.",
        ),
        "crossval": Row(
            "commands.train", "Train and test all folds, on this machine or on a Slurm cluster."
        ),
        "train": Row("commands.train", "Train and test one fold."),
        "tune": Row("commands.tune", "Search settings on a part of the training clips."),
        "resume": Row("commands.train", "Resume a run with the settings it has."),
    },
    "Cluster": {
        "status": Row("slurm.status", "Show the state of each fold."),
        "logs": Row("slurm.logs", "Print the log of a fold."),
        "cancel": Row("slurm.cancel", "Cancel all folds of a run that wait or train."),
        "doctor": Row(
            "doctor.doctor", "Check whether training would run on this machine or on a cluster."
        ),
    },
    "Results": {
        "eval": Row("commands.results", "Test a checkpoint, or a vision model.", "evaluate"),
        "crosseval": Row("commands.results", "Test several runs on several data sets."),
        "report": Row("commands.results", "Write the report of a run, or compare runs."),
        "ui": Row("commands.tracking", "Open a run in the MLflow UI."),
        "sync": Row("commands.tracking", "Send to MLflow what its server lacks of a run."),
    },
    "Models": {
        "export": Row("commands.models", "Export a checkpoint as a standalone model."),
        "predict": Row("commands.models", "Predict expressions in videos and frames over time."),
        "serve": Row(
            "commands.serve", "Open a local page to try a model with a video or the camera."
        ),
        "register": Row(
            "commands.tracking", "Register a fold's model in the MLflow model registry."
        ),
        "convert": Row("commands.convert", "Convert the authors' checkpoints to ours, or back."),
        "backbones": Row("commands.backbones", "List image and video towers, and their weights."),
        "fetch-weights": Row(
            "commands.backbones", "Download pretrained weights for offline training."
        ),
        "pretrain-demo": Row("commands.models", "Train the tiny CLIP of the demo on drawn faces."),
    },
    "Tools": {
        "plan": Row("commands.plan", "Estimate memory, speed and hours of a run."),
        "bench": Row("commands.bench", "Measure how fast this machine is."),
    },
}


class LazyCommand(TyperCommand):
    """A line of the table that becomes the command itself when arguments are parsed."""

    def __init__(self, name: str, entry: Row, panel: str) -> None:
        super().__init__(name, help=entry.summary, rich_help_panel=panel, rich_markup_mode="rich")
        self.entry = entry

    def load(self) -> Any:
        """Import the module and return its command, for the copy of click that Typer uses."""
        module = importlib.import_module(f"launch.{self.entry.module}")
        function = getattr(module, self.entry.function or str(self.name).replace("-", "_"))
        if isinstance(function, typer.Typer):
            command = get_command(function)
        else:
            single = new_app()
            single.command(self.name)(function)
            command = get_command(single)
        command.name = self.name
        return command

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse arguments with the command itself."""
        return self.load().make_context(*args, **extra)


class LazyGroup(TyperGroup):
    """The group of all commands in the table."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for panel, entries in COMMANDS.items():
            for name, entry in entries.items():
                self.add_command(LazyCommand(name, entry, panel))


app = new_app(cls=LazyGroup, add_completion=True)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train, compare and publish CLIP-based models of dynamic facial expressions."""


def main() -> None:
    """Run a command of ``dfer``."""
    run_app(app)
