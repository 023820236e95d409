"""``dfer plan``: memory and time of a run on machines that are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from launch.console import new_console, print_line
from launch.options import Experiment, Overrides

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from dfer_dist.planning.estimate import DataSize, Machine, Row

_GIB = 2**30

Tflops = Annotated[
    float, typer.Option(min=0.001, help="bf16 TFLOP/s that one GPU achieves in practice.")
]
Bandwidth = Annotated[
    float, typer.Option(min=0.001, help="GB/s that one GPU sends to the others of its node.")
]
Scale = Annotated[
    str,
    typer.Option(help="Estimate step time on these numbers of nodes, such as 1,2,4,...,512."),
]
Network = Annotated[
    float, typer.Option(min=0.001, help="With --scale: GB/s that a node sends to the others.")
]
Latency = Annotated[float, typer.Option(min=0, help="Microseconds from one GPU to another.")]
LoaderRate = Annotated[
    float,
    typer.Option(min=0.1, help="With --scale: clips/s of a loader worker (see dfer bench loader)."),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="Take two steps on this machine and compare the estimated memory with them; "
        "with --scale, compare time and traffic on that many ranks.",
    ),
]


def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of all nodes; of one with --scale.")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.1, help="Memory of a GPU in GiB.")] = 80,
    tflops: Tflops = 120,
    bandwidth: Bandwidth = 100,
    scale: Scale = "",
    network: Network = 25,
    latency: Latency = 15,
    loaded: LoaderRate = 250,
    measure: Measure = False,
) -> None:
    """Estimate memory, speed and hours of a run.

    Prints a row for each ZeRO stage and micro batch. Takes seconds, and needs no GPU, no data and
    no weights.

    Example: [bold]dfer plan dfew_vitl14 --gpus 8 --gpu-memory 80[/bold]
    """
    from dfer_dist.config.load import load_config

    console, config = new_console(), load_config(experiment, overrides or [])
    if measure and not scale:
        _compare_memory(console, config)
        return
    from dfer_dist.planning.estimate import Machine, data_size
    from launch.commands.plan_scale import node_counts, print_measured_scale, print_scale

    size = data_size(config)
    machine = Machine(
        "cuda", gpus, gpu_memory * _GIB, tflops * 1e12, bandwidth * 1e9, latency * 1e-6
    )
    if scale and measure:
        print_measured_scale(console, config, node_counts(scale), size.classes)
    elif scale:
        nodes = node_counts(scale)
        print_scale(console, config, machine, network * 1e9, loaded, nodes, size.classes)
    else:
        _print_plan(console, config, machine, size)


def _print_plan(console: Console, config: Config, machine: Machine, size: DataSize) -> None:
    from dfer_dist.models.tuning import trained_line
    from dfer_dist.planning.estimate import fastest
    from dfer_dist.planning.estimate import plan as make_plan
    from dfer_dist.planning.step_costs import build_meta_model

    rows = make_plan(config, machine, size)
    best = fastest(rows)
    console.print(_table(config, rows, best, machine, size))
    console.print(trained_line(build_meta_model(config, size.classes)))
    if not best:
        advice = _advice(config)
        console.print(f"nothing fits {machine.memory / _GIB:g} GiB: {advice}", soft_wrap=True)
    print_line(
        console,
        "memory: counted on the real model, CUDA and its libraries taken as 1 GiB "
        f"(docs/background/memory.md). speed: arithmetic at an assumed {machine.flops / 1e12:g} "
        f"TFLOP/s, {machine.bandwidth / 1e9:g} GB/s a GPU and {machine.latency * 1e6:g} µs a hop; "
        "loading, testing and saving not counted. no step was run.",
    )


def _table(
    config: Config, rows: list[Row], best: Row | None, machine: Machine, size: DataSize
) -> Table:
    gpus = "1 GPU" if machine.ranks == 1 else f"{machine.ranks} GPUs"
    folds = "1 fold" if size.folds == 1 else f"{size.folds} folds"
    table = Table(
        title=f"{config.model.backbone}, {config.data.num_frames} frames, "
        f"global batch {config.train.global_batch}, {gpus} of {machine.memory / _GIB:g} GiB",
        caption="GiB of one GPU at its peak, with float32 master weights; host: main memory of "
        "rank 0 for the copy that is being saved, prefetched batches and an offloaded optimizer; "
        "sent: GB that a GPU sends in a step; "
        f"hours of {config.train.epochs} epochs x {folds} of {size.clips} clips",
        box=None,
        padding=(0, 1, 0, 0),
    )
    heads = ["ZeRO", "micro", "weight", "grads", "mom.", "activ.", "rest", "total", "host"]
    for head in [*heads, "clips/s", "sent", "hours"]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        if row is best:
            table.add_row(*_cells(row), "fastest", style="bold")
        elif row.fits:
            table.add_row(*_cells(row), "")
        else:
            table.add_row(*_cells(row), "too big", style="dim")
    return table


def _cells(row: Row) -> list[str]:
    memory = row.memory
    kinds = (
        memory.weights,
        memory.gradients,
        memory.moments,
        memory.activations,
        memory.other,
        memory.total,
        row.host,
    )
    return [
        str(row.stage),
        f"{row.micro} x {row.accumulation}" if row.accumulation > 1 else str(row.micro),
        *(f"{size / _GIB:.1f}" for size in kinds),
        f"{row.clips_per_second:.0f}",
        f"{row.sent / 1e9:.1f}",
        f"{row.hours:.1f}",
    ]


def _advice(config: Config) -> str:
    if not config.model.checkpoint_image:
        return "set model.checkpoint_image=true, which recomputes activations"
    if not config.train.offload_optimizer:
        return "set train.offload_optimizer=true, or use more GPUs"
    return "use more GPUs, fewer frames (data.num_frames) or a smaller backbone"


def _compare_memory(console: Console, config: Config) -> None:
    """Take steps on this machine and print their memory next to the estimate."""
    from launch.measured_steps import take_steps

    steps = take_steps(config, exact_memory=True)
    planned, measured, size = steps["planned"], steps["measured"], steps["image_size"]
    print_line(
        console,
        f"{config.model.backbone}, {config.data.num_frames} frames of {size} x {size}, "
        f"micro batch {steps['micro_batch']} x {steps['accumulation']}, "
        f"ZeRO-{config.train.zero_stage}: planned {planned / _GIB:.2f} GiB, "
        f"measured {measured / _GIB:.2f} GiB ({100 * (planned / measured - 1):+.1f} %); "
        f"a step took {steps['seconds']:.1f} s",
    )
