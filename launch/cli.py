"""The command table of ``dfer``. A command's module is imported only when the command is used."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from launch.console import new_app, run_app


class Entry(NamedTuple):
    """Where a command is, in which panel of the help it is listed, and its first sentence."""

    function: str  # module:attribute
    panel: str
    summary: str


_DATA, _TRAINING, _CLUSTER = "Data", "Training", "Cluster"
_RESULTS, _MODELS, _TOOLS = "Results", "Models", "Tools"

COMMANDS = {
    "pack": Entry("launch.commands.pack:pack", _DATA, "Pack a data set into shards."),
    "verify": Entry("launch.commands.verify:verify", _DATA, "Check every byte of packed shards."),
    "enrich": Entry(
        "launch.commands.enrich:enrich", _DATA, "Add landmarks and parsing maps to packed shards."
    ),
    "describe": Entry(
        "launch.commands.describe:describe",
        _DATA,
        "Describe each clip with a vision model, or import captions.",
    ),
    "demo": Entry(
        "launch.commands.train:demo",
        _TRAINING,
        "Render a small data set, pack it, train five folds, and print the results.",
    ),
    "crossval": Entry(
        "launch.commands.train:crossval",
        _TRAINING,
        "Train and test all folds, on this machine or on a Slurm cluster.",
    ),
    "train": Entry("launch.commands.train:train", _TRAINING, "Train and test one fold."),
    "resume": Entry(
        "launch.commands.train:resume", _TRAINING, "Resume a run with the settings it has."
    ),
    "status": Entry("launch.slurm.status:status", _CLUSTER, "Show the state of each fold."),
    "logs": Entry("launch.slurm.logs:logs", _CLUSTER, "Print the log of a fold."),
    "cancel": Entry(
        "launch.slurm.cancel:cancel", _CLUSTER, "Cancel all folds of a run that wait or train."
    ),
    "doctor": Entry(
        "launch.doctor.doctor:doctor",
        _CLUSTER,
        "Check whether training would run on this machine or on a cluster.",
    ),
    "eval": Entry("launch.commands.evaluate:evaluate", _RESULTS, "Test a checkpoint on a fold."),
    "report": Entry(
        "launch.commands.report:report", _RESULTS, "Write the report of a run, or compare runs."
    ),
    "ui": Entry("launch.commands.tracking:ui", _RESULTS, "Open a run in the MLflow UI."),
    "sync": Entry(
        "launch.commands.tracking:sync",
        _RESULTS,
        "Send to MLflow what its server lacks of a run.",
    ),
    "export": Entry(
        "launch.commands.export:export", _MODELS, "Export a checkpoint as a standalone model."
    ),
    "predict": Entry(
        "launch.commands.predict:predict", _MODELS, "Predict expressions in videos over time."
    ),
    "register": Entry(
        "launch.commands.tracking:register",
        _MODELS,
        "Register a fold's model in the MLflow model registry.",
    ),
    "convert": Entry(
        "launch.commands.convert:convert",
        _MODELS,
        "Convert the authors' DFER-CLIP checkpoints to ours and back.",
    ),
    "fetch-weights": Entry(
        "launch.commands.weights:fetch_weights",
        _MODELS,
        "Download pretrained weights for offline training.",
    ),
    "pretrain-demo": Entry(
        "launch.commands.weights:pretrain_demo",
        _MODELS,
        "Train the tiny CLIP of the demo on drawn faces.",
    ),
    "plan": Entry(
        "launch.commands.plan:plan", _TOOLS, "Estimate memory, speed and hours of a run."
    ),
    "bench": Entry("launch.commands.bench:bench", _TOOLS, "Measure how fast this machine is."),
}


class LazyCommand(TyperCommand):
    """A line of the table that becomes the command itself when arguments are parsed."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(
            name,
            help=entry.summary,
            rich_help_panel=entry.panel,
            rich_markup_mode="rich",
        )
        self.entry = entry

    def load(self) -> Any:
        """Import the module and return its command, for the copy of click that Typer uses."""
        module, _, attribute = self.entry.function.partition(":")
        function = getattr(importlib.import_module(module), attribute)
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
        for name, entry in COMMANDS.items():
            self.add_command(LazyCommand(name, entry))


app = new_app(cls=LazyGroup, add_completion=True)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train, compare and publish CLIP-based models of dynamic facial expressions."""


def main() -> None:
    """Run a command of ``dfer``."""
    run_app(app)
