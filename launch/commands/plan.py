"""``dfer plan``: memory and time of a run on machines that are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from dfer_dist.planning.planner import DataSize, Machine, Row

_GIB = 2**30


def plan(
    experiment: Annotated[str, typer.Argument(help="A name in configs/ or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as train.epochs=3.", metavar="[KEY=VALUE]..."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, over all nodes.")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.1, help="GiB of each.")] = 80,
    tflops: Annotated[
        float,
        typer.Option(min=0.001, help="What one GPU achieves in bf16, 10^12 operations a second."),
    ] = 120,
    bandwidth: Annotated[
        float, typer.Option(min=0.001, help="GB a second that one GPU sends to the others.")
    ] = 100,
    scale: Annotated[
        str,
        typer.Option(
            help="Instead step time and efficiency on so many nodes, such as 1,2,4,...,512, of --gpus each."
        ),
    ] = "",
    network: Annotated[
        float, typer.Option(min=0.001, help="For --scale: GB a second that a node sends to others.")
    ] = 25,
    latency: Annotated[
        float, typer.Option(min=0, help="Microseconds from one GPU to another.")
    ] = 15,
    loaded: Annotated[
        float,
        typer.Option(
            min=0.1, help="For --scale: clips a second of a loader worker (dfer bench loader)."
        ),
    ] = 250,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Instead take two steps here, on one rank, and hold the plan against their memory; with --scale on so many ranks, against their time and the bytes sent.",
        ),
    ] = False,
) -> None:
    """Memory, speed and hours for each ZeRO stage and micro batch, before there is a GPU. Takes seconds; needs no data and no weights.

    Example: [bold]dfer plan dfew_vitl14 --gpus 8 --gpu-memory 80[/bold]
    """
    from dfer_dist.config.load import load_config

    console = Console(highlight=False)
    config = load_config(experiment, overrides or [])
    if measure and not scale:
        _measure(console, config)
        return
    from dfer_dist.models.tuning import trained_line
    from dfer_dist.planning.planner import Machine, data_size, fastest
    from dfer_dist.planning.planner import plan as make_plan
    from dfer_dist.planning.trace import outline
    from launch.commands.plan_scale import node_counts, print_measured_scale, print_scale

    size = data_size(config)
    machine = Machine(
        "cuda", gpus, gpu_memory * _GIB, tflops * 1e12, bandwidth * 1e9, latency * 1e-6
    )
    if scale and measure:
        print_measured_scale(console, config, node_counts(scale), size.classes)
        return
    if scale:
        print_scale(
            console, config, machine, network * 1e9, loaded, node_counts(scale), size.classes
        )
        return
    rows = make_plan(config, machine, size)
    console.print(_table(config, rows, fastest(rows), machine, size))
    console.print(trained_line(outline(config, size.classes)))
    if not fastest(rows):
        console.print(f"nothing fits {gpu_memory:g} GiB: {_advice(config)}", soft_wrap=True)
    console.print(
        f"memory: counted on the real model, CUDA and its libraries taken as 1 GiB (docs/background/memory.md). speed: arithmetic at an assumed "
        f"{tflops:g} TFLOP/s, {bandwidth:g} GB/s a GPU and {latency:g} µs a hop, loading, testing and saving not counted. no step was run.",
        soft_wrap=True,
    )


def _table(
    config: Config, rows: list[Row], best: Row | None, machine: Machine, size: DataSize
) -> Table:
    times = f"{config.train.epochs} epochs x {size.folds} fold{'s' if size.folds > 1 else ''} of {size.clips} clips"
    table = Table(
        title=f"{config.model.backbone}, {config.data.num_frames} frames, global batch {config.train.global_batch}, "
        f"{machine.ranks} GPU{'s' if machine.ranks > 1 else ''} of {machine.memory / _GIB:g} GiB",
        caption="GiB of one GPU when most is in use, float32 masters among the weights; host: main memory of rank 0 for the copy that is "
        f"being saved, batches on their way and an offloaded optimizer; GB that a GPU sends in a step; hours of {times}",
        box=None,
        padding=(0, 1, 0, 0),
    )
    heads = ["ZeRO", "micro", "weight", "grads", "mom.", "activ.", "rest", "total", "host"]
    for head in [*heads, "clips/s", "sent", "hours"]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        m = row.memory
        kinds = [
            f"{x / _GIB:.1f}"
            for x in (m.weights, m.gradients, m.moments, m.activations, m.other, m.total)
        ]
        cells = [
            str(row.stage),
            f"{row.micro} x {row.accumulation}" if row.accumulation > 1 else str(row.micro),
            *kinds,
        ]
        cells += [
            f"{row.host / _GIB:.1f}",
            f"{row.clips_per_second:.0f}",
            f"{row.sent / 1e9:.1f}",
            f"{row.hours:.1f}",
        ]
        mark = "fastest" if row is best else ("" if row.fits else "too big")
        table.add_row(*cells, mark, style="bold" if row is best else (None if row.fits else "dim"))
    return table


def _advice(config: Config) -> str:
    if not config.model.checkpoint_image:
        return "set model.checkpoint_image=true, which recomputes activations"
    if not config.train.offload_optimizer:
        return "set train.offload_optimizer=true, or take more GPUs"
    return "take more GPUs, fewer frames (data.num_frames) or a smaller backbone"


def _measure(console: Console, config: Config) -> None:
    from launch.measured_steps import take_steps

    seen = take_steps(config, exact_memory=True)
    console.print(
        f"{config.model.backbone}, {config.data.num_frames} frames of {seen['image_size']} x {seen['image_size']}, micro batch "
        f"{seen['micro_batch']} x {seen['accumulation']}, ZeRO-{config.train.zero_stage}: planned {seen['planned'] / _GIB:.2f} GiB, "
        f"measured {seen['measured'] / _GIB:.2f} GiB ({100 * (seen['planned'] / seen['measured'] - 1):+.1f} %); a step took "
        f"{seen['seconds']:.1f} s",
        soft_wrap=True,
    )
