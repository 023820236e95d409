"""``dfer bench``: how fast the parts are on this machine."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import AugmentConfig, Config, DataConfig, Device
from dfer_dist.utils.files import write_json
from dfer_dist.utils.hardware import mfu
from launch.console import console, new_app, number_columns, print_table, progress_bar
from launch.options import JsonFile, Overrides

bench = new_app(
    help="""Measure how fast this machine is.

    Example: [bold]dfer bench loader --json loader.json[/bold]
    """,
)

_GPU_RATE = 300  # clips/s that one GPU may need from its loader workers
# keys of the results, and the rows of the tables
_LOADER_ROWS = {
    "floor": "libjpeg-turbo alone, frames in memory",
    "ours": "one loader worker",
    "in_process": "no worker: in the training process",
    "baseline": "Pillow over frame files",
    "augment_device": "augmentation on the device alone",
}
_STEP_ROWS = {
    "ours": "ours",
    "recomputing": "ours, recomputing activations",
    "floor": "its matrix products alone",
    "baseline": "plain PyTorch, float32, 77 tokens",
}
_SAVE_ROWS = {
    "ours": "ours",
    "floor": "its bytes alone",
    "baseline": "torch.save, frozen weights too",
}
_STARTUP_ROWS = {
    "ours": "dfer train to its first step",
    "again": "the same command after a stop to the next step",
    "floor": "python to the end of the imports alone",
    "baseline": "a plain script to its first step",
}

Model = Annotated[str, typer.Argument(help="Experiment with the model and its settings.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of each variant; medians are reported.")]
ClipsPerStep = Annotated[
    int, typer.Option(min=1, help="Clips per training step, if train.global_batch is not given.")
]


@bench.command()
def loader(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Experiment with shards. Default: generated clips of 224 x 224."),
    ] = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
    clips: Annotated[int, typer.Option(min=8, help="Clips per round.")] = 48,
    rounds: Rounds = 15,
) -> None:
    """Measure how many clips per second one core loads.

    Compares with decoding alone, and with Pillow over frame files.

    Example: [bold]dfer bench loader --json loader.json[/bold]
    """
    from dfer_dist.bench.loader import make_clips, measure
    from dfer_dist.data.shards.index import open_index
    from dfer_dist.distributed.process_group import choose_device

    device = choose_device(Device.auto)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plain").mkdir()
        if experiment:
            data = _load(experiment, overrides).data
            index = open_index(data)
        else:
            # as for DFEW
            data = DataConfig(str(folder), image_size=224, augment=AugmentConfig(brightness=0.5))
            with progress_bar("make clips") as progress:
                index = make_clips(folder, clips, progress=progress)
        with progress_bar("measure, rounds") as progress:
            results = measure(index, data, folder / "plain", clips, rounds, device, progress)
    print_table(_loader_table(results))
    cores = _GPU_RATE / results["ours"]["clips_per_s"]
    console.print(
        f"a GPU that trains on {_GPU_RATE} clips/s needs {cores:.2f} such cores: "
        f"set data.workers={math.ceil(cores)}"
    )
    if json_file:
        write_json(json_file, results)


@bench.command()
def step(
    experiment: Model = "dfew_vitb32",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    clips: ClipsPerStep = 4,
    rounds: Rounds = 5,
) -> None:
    """Measure a training step on this device.

    Compares with its matrix products alone, and with plain PyTorch in float32. Weights are random
    and clips are generated: neither needs to be on this machine.

    Example: [bold]dfer bench step dfew_vitl14 --clips 1 --json step.json[/bold]
    """
    settings = [f"train.global_batch={clips}", *(overrides or [])]
    results = _measure_steps(_load(experiment, settings), ["train"], rounds, json_file)
    fed = results["train"]["fed"]
    print_table(_steps_table(results["train"], "step", results["about"]))
    share = 100 * fed["waited"] / fed["seconds"]
    console.print(
        f"with one loader worker: {fed['seconds']:.2f} s a step, "
        f"of which {share:.1f} % waiting for data"
    )


@bench.command("eval")
def evaluation(
    experiment: Model = "dfew_vitb32",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    clips: ClipsPerStep = 4,
    rounds: Rounds = 5,
) -> None:
    """Measure evaluation on this device.

    Compares with training, with its matrix products alone, and with plain PyTorch in float32.

    Example: [bold]dfer bench eval dfew_vitb32 eval.batch=8[/bold]
    """
    settings = [f"train.global_batch={clips}", *(overrides or [])]
    results = _measure_steps(_load(experiment, settings), ["train", "test"], rounds, json_file)
    print_table(_steps_table(results["test"], "batch", results["about"]))
    rates = {kind: results[kind]["ours"]["clips_per_s"] for kind in ("test", "train")}
    console.print(
        f"{rates['test']:.2f} clips a second, "
        f"{rates['test'] / rates['train']:.1f} times as many as in training"
    )


@bench.command()
def save(
    experiment: Model = "dfew_vitb32",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    into: Annotated[Path, typer.Option(help="Folder to write checkpoints to.")] = Path(),
    rounds: Rounds = 5,
) -> None:
    """Measure how long a checkpoint takes and how long training waits for it.

    Compares with writing the same bytes, and with torch.save.

    Example: [bold]dfer bench save dfew_vitl14 --into runs[/bold]
    """
    settings = ["train.global_batch=1", "data.num_frames=1", *(overrides or [])]
    results = _measure_steps(_load(experiment, settings), ["save"], rounds, json_file, into)
    ours = results["save"]["ours"]
    print_table(_steps_table(results["save"], "checkpoint", results["about"]))
    console.print(
        f"{ours['bytes'] / 1e9:.2f} GB; training waits {ours['held_seconds']:.2f} s for the copy, "
        "the rest is written in the background"
    )


@bench.command()
def startup(json_file: JsonFile = None, rounds: Rounds = 3) -> None:
    """Measure how long the demo's model takes to its first step.

    Measures from the command, and from a stop to the next step.

    Example: [bold]dfer bench startup[/bold]
    """
    from dfer_dist.bench.loader import make_clips
    from dfer_dist.bench.startup import measure

    with tempfile.TemporaryDirectory() as folder:
        with progress_bar("make clips") as progress:
            index = make_clips(Path(folder), 40, 64, progress)
        command = [str(Path(sys.executable).with_name("dfer")), "train", "demo", "--fold", "1"]
        command += ["--name", "startup", "--runs", folder, f"data.shards={index.root}"]
        command += ["train.epochs=1000", "train.global_batch=4", "train.log_every=1"]
        with progress_bar("measure, rounds") as progress:
            results = measure(command, Path(folder), rounds, progress)
    caption = f"medians of {rounds} rounds; the demo's model, one rank, MLflow in a file"
    table = Table("From", *number_columns("seconds"), caption=caption)
    for key, label in _STARTUP_ROWS.items():
        if results[key]:
            table.add_row(label, f"{results[key]['seconds']:.1f}")
    print_table(table)
    if json_file:
        write_json(json_file, results)


def _load(experiment: str, overrides: list[str] | None) -> Config:
    """Return the settings of an experiment with the size of its images."""
    from dfer_dist.models.build import resolve_image_size

    config = load_config(experiment, overrides or [])
    resolve_image_size(config)
    return config


def _measure_steps(
    config: Config,
    kinds: list[str],
    rounds: int,
    json_file: Path | None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure kinds of steps, the last of which goes to ``json_file``."""
    from dfer_dist.distributed.process_group import choose_device, device_name

    device = device_name(choose_device(config.train.device))
    # this module reads the device when it is imported
    from dfer_dist.bench.step import measure

    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        progress_bar("measure, rounds") as progress,
    ):
        results = measure(config, kinds, rounds, Path(name), progress)
    about = {
        "backbone": config.model.backbone,
        "num_frames": config.data.num_frames,
        "image_size": config.data.image_size,
        "rounds": rounds,
        "precision": config.train.precision.name,
        "device": device,
    }
    for result in results.values():
        result["mfu"] = None
        if "flops" in result:
            seconds, precision = result["ours"]["seconds"], config.train.precision.name
            result["mfu"] = mfu(result["flops"], seconds, device, precision)
    training = results.get("train") if len(kinds) > 1 else None
    if json_file:
        write_json(json_file, results[kinds[-1]] | {"training": training, "about": about})
    return {**results, "about": about}


def _steps_table(results: dict[str, Any], unit: str, about: dict[str, Any]) -> Table:
    """Return a row for each variant; ``unit`` is a step, a batch or a checkpoint."""
    caption = f"medians of {about['rounds']} rounds; memory is the peak above the imports"
    if results["mfu"] is not None:
        caption += f"; {results['mfu']:.1%} of the GPU's {about['precision']} peak (MFU)"
    columns = number_columns(f"seconds a {unit}", "clips/s", "ours is faster", "memory")
    title = (
        f"{about['backbone']}, {about['num_frames']} frames of "
        f"{about['image_size']} x {about['image_size']}, {about['device']}"
    )
    table = Table("Variant", *columns, title=title, caption=caption)
    rows, rate = _STEP_ROWS, _rate(results["ours"])
    if unit == "checkpoint":
        rows = _SAVE_ROWS
    for key, label in rows.items():
        row = results.get(key)
        if not row:
            continue
        cells = [f"{row['seconds']:.2f}", "", f"{rate / _rate(row):.2f} times", ""]
        if "clips_per_s" in row:
            cells[1] = f"{row['clips_per_s']:.2f}"
        if "peak_bytes" in row:
            cells[3] = f"{row['peak_bytes'] / 2**30:.2f} GiB"
        table.add_row(label, *cells)
    return table


def _rate(row: Mapping[str, float]) -> float:
    """Return clips per second, or how often per second where there are no clips."""
    return row.get("clips_per_s", 1 / row["seconds"])


def _loader_table(results: dict[str, Any]) -> Table:
    about, bound, rates = results["about"], results["floor"], ("clips_per_s", "clips_per_cpu_s")
    table = Table(
        "Variant",
        *number_columns("clips/s", "clips/s of processor time"),
        title=f"{about['num_frames']} frames of {about['image_size']} x {about['image_size']}, "
        f"{about['frame_bytes'] / 1000:.1f} kB each",
        caption=f"medians of {about['rounds']} rounds of {about['clips']} clips, one core; "
        "in brackets the share of libjpeg-turbo's",
    )
    for key, label in _LOADER_ROWS.items():
        row = results[key]
        if not row:
            continue
        cells = [f"{row[name]:.0f}" for name in rates]
        if key == "augment_device":
            label = f"{label} ({about['device']})"
        elif key != "floor":
            shares = (100 * row[name] / bound[name] for name in rates)
            cells = [f"{cell} ({share:.0f} %)" for cell, share in zip(cells, shares, strict=True)]
        table.add_row(label, *cells)
    return table
