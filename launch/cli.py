"""The command table of ``dfer``. A command's module is imported only when the command is used."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from launch.console import new_app, run_app


class Entry(NamedTuple):
    """Where a command is, and the first sentence of its help."""

    function: str  # module:attribute in this package
    summary: str


# by panel of the help
COMMANDS = {
    "Data": {
        "pack": Entry("commands.data:pack", "Pack a data set into shards."),
        "verify": Entry("commands.data:verify", "Check every byte of packed shards."),
        "enrich": Entry("commands.data:enrich", "Add landmarks and parsing maps to packed shards."),
        "describe": Entry(
            "commands.describe:describe",
            "Describe each clip with a vision model, or import captions.",
        ),
    },
    "Training": {
        "demo": Entry(
            "commands.train:demo",
            "Render a small data set, pack it, train five folds, and print the results.",
        ),
        "crossval": Entry(
            "commands.train:crossval",
            "Train and test all folds, on this machine or on a Slurm cluster.",
        ),
        "train": Entry("commands.train:train", "Train and test one fold."),
        "resume": Entry("commands.train:resume", "Resume a run with the settings it has."),
    },
    "Cluster": {
        "status": Entry("slurm.status:status", "Show the state of each fold."),
        "logs": Entry("slurm.logs:logs", "Print the log of a fold."),
        "cancel": Entry("slurm.cancel:cancel", "Cancel all folds of a run that wait or train."),
        "doctor": Entry(
            "doctor.doctor:doctor",
            "Check whether training would run on this machine or on a cluster.",
        ),
    },
    "Results": {
        "eval": Entry("commands.results:evaluate", "Test a checkpoint on a fold."),
        "report": Entry("commands.results:report", "Write the report of a run, or compare runs."),
        "ui": Entry("commands.tracking:ui", "Open a run in the MLflow UI."),
        "sync": Entry("commands.tracking:sync", "Send to MLflow what its server lacks of a run."),
    },
    "Models": {
        "export": Entry("commands.models:export", "Export a checkpoint as a standalone model."),
        "predict": Entry("commands.predict:predict", "Predict expressions in videos over time."),
        "register": Entry(
            "commands.tracking:register", "Register a fold's model in the MLflow model registry."
        ),
        "convert": Entry(
            "commands.models:convert",
            "Convert the authors' DFER-CLIP checkpoints to ours and back.",
        ),
        "fetch-weights": Entry(
            "commands.models:fetch_weights", "Download pretrained weights for offline training."
        ),
        "pretrain-demo": Entry(
            "commands.models:pretrain_demo", "Train the tiny CLIP of the demo on drawn faces."
        ),
    },
    "Tools": {
        "plan": Entry("commands.plan:plan", "Estimate memory, speed and hours of a run."),
        "bench": Entry("commands.bench:bench", "Measure how fast this machine is."),
    },
}


class LazyCommand(TyperCommand):
    """A line of the table that becomes the command itself when arguments are parsed."""

    def __init__(self, name: str, entry: Entry, panel: str) -> None:
        super().__init__(name, help=entry.summary, rich_help_panel=panel, rich_markup_mode="rich")
        self.entry = entry

    def load(self) -> Any:
        """Import the module and return its command, for the copy of click that Typer uses."""
        module, _, attribute = self.entry.function.partition(":")
        function = getattr(importlib.import_module(f"launch.{module}"), attribute)
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
