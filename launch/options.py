"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Experiment = Annotated[
    str, typer.Argument(help="Name of an experiment in configs/, or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings such as train.epochs=3.", metavar="[KEY=VALUE]..."),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.", metavar="RUN")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
RunName = Annotated[
    str | None, typer.Option("--name", help="Name of the run. Default: the experiment's name.")
]
NumRanks = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Ranks on this machine: one per GPU, or a few on the CPU."),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option("--max-minutes", min=0.01, help="Save and stop before this time is over."),
]
AllowDrift = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-drift",
        metavar="KEY",
        help="Resume despite a changed KEY: a setting, code or versions (repeatable).",
    ),
]
ClusterName = Annotated[
    str,
    typer.Option(
        help="Slurm cluster to submit to: a name in configs/cluster/, or a YAML file. "
        "Override its settings with cluster.KEY=VALUE."
    ),
]
Checkpoint = Annotated[
    Path, typer.Argument(help="A folder such as runs/demo/fold-1/checkpoints/LATEST.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the results to this JSON file.")
]
