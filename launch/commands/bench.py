"""``dfer bench``: how fast the parts are on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from launch.console import ProgressBar, new_app

if TYPE_CHECKING:
    from dfer_dist.config.schema import DataConfig

bench = new_app(
    help="""Measure how fast the parts are on this machine.

    Example: [bold]dfer bench loader --json loader.json[/bold]
    """,
    short_help="Measure how fast the parts are on this machine.",
)

_GPU = 300  # clips a second: what one GPU may ask of its loader workers
_ROWS = {
    "floor": "libjpeg-turbo alone, frames in memory",
    "ours": "one loader worker",
    "in_process": "no worker: in the training process",
    "baseline": "Pillow over frame files",
    "augment_device": "augmentation on the device, apart",
}


@bench.command()
def loader(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Use its shards and settings; made clips of 224 x 224 by default."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of it.", metavar="[KEY=VALUE]...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    clips: Annotated[int, typer.Option(min=8, help="Clips in a round.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each way; the median counts.")] = 15,
) -> None:
    """How many clips a second one core loads, beside decoding alone and Pillow over frame files.

    Example: [bold]dfer bench loader --json loader.json[/bold]
    """
    import tempfile

    from dfer_dist.bench.loader import make_clips, measure
    from dfer_dist.config.schema import AugmentConfig, DataConfig, Device
    from dfer_dist.data.shards.index import open_index
    from dfer_dist.distributed.process_group import choose_device
    from dfer_dist.utils.files import write_json

    console = Console(highlight=False)
    device = choose_device(Device.auto)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "plain").mkdir()
        if experiment:
            data = _settings(experiment, overrides or [])
            index = open_index(data)
        else:  # as for DFEW
            data = DataConfig(str(root), image_size=224, augment=AugmentConfig(brightness=0.5))
            with ProgressBar(console, "make clips") as advance:
                index = make_clips(root, clips, progress=advance)
        with ProgressBar(console, "measure, rounds") as advance:
            figures = measure(index, data, root / "plain", clips, rounds, device, advance)
    console.print(_table(figures))
    need = _GPU / figures["ours"]["clips_per_s"]
    console.print(
        f"a GPU that trains on {_GPU} clips a second needs {need:.2f} such cores: data.workers={math.ceil(need)}"
    )
    if json_file:
        write_json(json_file, figures)


@bench.command()
def step(
    experiment: Annotated[str, typer.Argument(help="Whose model and settings.")] = "dfew_vitb32",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of it.", metavar="[KEY=VALUE]...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    clips: Annotated[
        int, typer.Option(min=1, help="Clips in a step, if train.global_batch is not given.")
    ] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each way; the median counts.")] = 5,
) -> None:
    """How long a training step takes on this device, beside its matrix products alone and beside plain PyTorch in float32.

    Weights are random and clips are made up: neither has to be on this machine.

    Example: [bold]dfer bench step dfew_vitl14 --clips 1 --json step.json[/bold]
    """
    figures = _measure_steps(
        experiment,
        [f"train.global_batch={clips}", *(overrides or [])],
        ["train"],
        rounds,
        json_file,
    )
    console, fed = Console(highlight=False), figures["train"]["fed"]
    console.print(_steps_table(figures["train"], "step", figures["about"]))
    share = 100 * fed["waited"] / fed["seconds"]
    console.print(
        f"with one loader worker: {fed['seconds']:.2f} s a step, of which {share:.1f} % waiting for data"
    )


@bench.command("eval")
def evaluation(
    experiment: Annotated[str, typer.Argument(help="Whose model and settings.")] = "dfew_vitb32",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of it.", metavar="[KEY=VALUE]...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    clips: Annotated[
        int,
        typer.Option(min=1, help="Clips in a training step, if train.global_batch is not given."),
    ] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each way; the median counts.")] = 5,
) -> None:
    """How fast clips are tested, beside training in the same run, matrix products alone and plain PyTorch in float32.

    Example: [bold]dfer bench eval dfew_vitb32 eval.batch=8[/bold]
    """
    figures = _measure_steps(
        experiment,
        [f"train.global_batch={clips}", *(overrides or [])],
        ["train", "test"],
        rounds,
        json_file,
    )
    console = Console(highlight=False)
    console.print(_steps_table(figures["test"], "batch", figures["about"]))
    rates = [figures[kind]["ours"]["clips_per_s"] for kind in ("test", "train")]
    console.print(
        f"{rates[0]:.2f} clips a second, {rates[0] / rates[1]:.1f} times as many as in training"
    )


@bench.command()
def save(
    experiment: Annotated[str, typer.Argument(help="Whose model and settings.")] = "dfew_vitb32",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of it.", metavar="[KEY=VALUE]...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    into: Annotated[Path, typer.Option(help="Write below this folder.")] = Path(),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each way; the median counts.")] = 5,
) -> None:
    """How long a checkpoint takes and how long training waits for it, beside writing the same bytes and beside torch.save.

    Example: [bold]dfer bench save dfew_vitl14 --into runs[/bold]
    """
    words = ["train.global_batch=1", "data.num_frames=1", *(overrides or [])]
    figures = _measure_steps(experiment, words, ["save"], rounds, json_file, into)
    console = Console(highlight=False)
    console.print(_steps_table(figures["save"], "checkpoint", figures["about"]))
    ours = figures["save"]["ours"]
    console.print(
        f"{ours['bytes'] / 1e9:.2f} GB; training waits {ours['held_seconds']:.2f} s for the copy, the rest is written meanwhile"
    )


@bench.command()
def startup(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each way; the median counts.")] = 3,
) -> None:
    """How long the demo's model takes from the command to its first step, and from a stop to the next one.

    Example: [bold]dfer bench startup[/bold]
    """
    import sys
    import tempfile

    from dfer_dist.bench.loader import make_clips
    from dfer_dist.bench.startup import measure
    from dfer_dist.utils.files import write_json

    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with ProgressBar(console, "make clips") as advance:
            index = make_clips(root, 40, 64, advance)
        words = [
            f"data.shards={index.root}",
            "train.epochs=1000",
            "train.global_batch=4",
            "train.log_every=1",
        ]
        command = [
            str(Path(sys.executable).with_name("dfer")),
            "train",
            "demo",
            "--fold",
            "1",
            "--name",
            "startup",
            "--runs",
            folder,
            *words,
        ]
        with ProgressBar(console, "measure, rounds") as advance:
            figures = measure(command, root, rounds, advance)
    table = Table(
        caption=f"medians of {rounds} rounds; the demo's model, one rank, figures at MLflow in a file"
    )
    for column in ("From", "seconds"):
        table.add_column(column, justify="left" if column == "From" else "right")
    for name, words_ in _STARTS.items():
        if figures[name]:
            table.add_row(words_, f"{figures[name]['seconds']:.1f}")
    console.print(table)
    if json_file:
        write_json(json_file, figures)


_STARTS = {
    "ours": "dfer train to its first step",
    "again": "the same command after a stop to the next step",
    "floor": "python to the end of the imports alone",
    "baseline": "a plain script to its first step",
}


def _measure_steps(
    experiment: str,
    overrides: list[str],
    what: list[str],
    rounds: int,
    json_file: Path | None,
    into: Path | None = None,
) -> dict[str, Any]:
    import tempfile

    from dfer_dist.config.load import load_config
    from dfer_dist.config.schema import Precision
    from dfer_dist.distributed.process_group import choose_device, device_name
    from dfer_dist.models.build import resolve_image_size
    from dfer_dist.utils.files import write_json
    from dfer_dist.utils.flops import mfu

    config = load_config(experiment, overrides)
    size, device = resolve_image_size(config), choose_device(config.train.device)
    from dfer_dist.bench.step import measure  # reads what was chosen when imported

    with (
        tempfile.TemporaryDirectory(dir=into) as folder,
        ProgressBar(Console(highlight=False), "measure, rounds") as advance,
    ):
        figures = measure(config, what, rounds, Path(folder), advance)
    about = {
        "backbone": config.model.backbone,
        "num_frames": config.data.num_frames,
        "image_size": size,
        "rounds": rounds,
    }
    name = device_name(device)
    about |= {"precision": config.train.precision.name, "device": name}
    for figure in figures.values():
        known = (
            config.train.precision is Precision.bf16 and "flops" in figure
        )  # peaks are those of bf16
        figure["mfu"] = mfu(figure["flops"], figure["ours"]["seconds"], name) if known else None
    figures["about"] = about
    if json_file:
        write_json(
            json_file,
            figures[what[-1]]
            | {"training": figures.get("train") if len(what) > 1 else None, "about": about},
        )
    return figures


def _steps_table(figures: dict[str, Any], work: str, about: dict[str, Any]) -> Table:
    saved = work == "checkpoint"
    ways = {
        "ours": "ours",
        "recomputing": "ours, recomputing activations",
        "floor": "its bytes alone" if saved else "its matrix products alone",
        "baseline": "torch.save, frozen weights too"
        if saved
        else "plain PyTorch, float32, 77 tokens",
    }
    title = f"{about['backbone']}, {about['num_frames']} frames of {about['image_size']} x {about['image_size']}, {about['device']}"
    caption = f"medians of {about['rounds']} rounds; memory is the peak above the imports"
    if figures["mfu"] is not None:
        caption += f"; {figures['mfu']:.1%} of the GPU's bf16 peak (MFU)"
    table = Table(title=title, caption=caption)
    for column in ("Way", f"seconds a {work}", "clips/s", "ours is faster", "memory"):
        table.add_column(column, justify="left" if column == "Way" else "right")
    for name, words in ways.items():
        row = figures.get(name)
        if row:
            memory = f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else ""
            rate = [x.get("clips_per_s", 1 / x["seconds"]) for x in (figures["ours"], row)]
            table.add_row(
                words,
                f"{row['seconds']:.2f}",
                "" if saved else f"{rate[1]:.2f}",
                f"{rate[0] / rate[1]:.2f} times",
                memory,
            )
    return table


def _settings(experiment: str, overrides: list[str]) -> DataConfig:
    from dfer_dist.config.load import load_config
    from dfer_dist.models.build import resolve_image_size

    config = load_config(experiment, overrides)
    resolve_image_size(config)
    return config.data


def _table(figures: dict[str, Any]) -> Table:
    about, floor = figures["about"], figures["floor"]
    title = f"{about['num_frames']} frames of {about['image_size']} x {about['image_size']}, {about['frame_bytes'] / 1000:.1f} kB each"
    table = Table(
        title=title,
        caption=f"medians of {about['rounds']} rounds of {about['clips']} clips, one core; in brackets the share of libjpeg-turbo's",
    )
    for column in ("Way", "clips/s", "clips/s of processor time"):
        table.add_column(column, justify="left" if column == "Way" else "right")
    for name, words in _ROWS.items():
        if figures[name]:
            cells = [
                _cell(figures[name][k], floor[k], name) for k in ("clips_per_s", "clips_per_cpu_s")
            ]
            table.add_row(
                f"{words} ({about['device']})" if name == "augment_device" else words, *cells
            )
    return table


def _cell(value: float, floor: float, name: str) -> str:
    return (
        f"{value:.0f}"
        if name in ("floor", "augment_device")
        else f"{value:.0f} ({100 * value / floor:.0f} %)"
    )
