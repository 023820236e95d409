"""``dfer plan``: memory and time of a run on machines that are not here."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from launch.console import console, number_columns, print_line, print_table
from launch.options import Experiment, Overrides

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from dfer_dist.planning.estimate import DataSize, Machine, PlannedStep

_GIB = 2**30
_HEADS = ["ZeRO", "micro", "weight", "grads", "mom.", "activ.", "rest", "total", "host"]
_HEADS += ["clips/s", "sent", "hours"]
_SCALE_HEADS = ["nodes", "GPUs", "batch", "compute", "network", "data", "step", "clips/s"]
_SCALE_HEADS += ["efficiency", "limit"]
_MEASURED_HEADS = ["ranks", "compute", "network", "formula", "measured", ""]
_MEASURED_HEADS += ["formula MB", "counted MB", ""]

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
    from dfer_dist.planning.estimate import Machine, data_size

    config = load_config(experiment, overrides or [])
    if measure and not scale:
        _compare_memory(config)
        return
    size = data_size(config)
    machine = Machine(
        "cuda", gpus, gpu_memory * _GIB, tflops * 1e12, bandwidth * 1e9, latency * 1e-6
    )
    if scale and measure:
        _print_measured_scale(config, node_counts(scale), size.classes)
    elif scale:
        _print_scale(config, machine, network * 1e9, loaded, node_counts(scale), size.classes)
    else:
        _print_plan(config, machine, size)


def _print_plan(config: Config, machine: Machine, size: DataSize) -> None:
    from dfer_dist.models.flops import build_meta_model
    from dfer_dist.models.tuning import trained_line
    from dfer_dist.planning.estimate import fastest
    from dfer_dist.planning.estimate import plan as make_plan

    rows = make_plan(config, machine, size.classes)
    best = fastest(rows)
    gpus = "1 GPU" if machine.ranks == 1 else f"{machine.ranks} GPUs"
    folds = "1 fold" if size.folds == 1 else f"{size.folds} folds"
    epochs = f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}"
    table = _table(
        f"{config.model.backbone}, {config.data.num_frames} frames, "
        f"global batch {config.train.global_batch}, {gpus} of {machine.memory / _GIB:g} GiB",
        "GiB of one GPU at its peak, with float32 master weights; host: main memory of "
        "rank 0 for the copy that is being saved, prefetched batches and an offloaded optimizer; "
        "sent: GB that a GPU sends in a step; "
        f"hours of {epochs} x {folds} of {size.clips} clips",
        _HEADS,
    )
    table.add_column("")
    for row in rows:
        if row is best:
            table.add_row(*_cells(row, size), "fastest", style="bold")
        elif row.fits:
            table.add_row(*_cells(row, size), "")
        else:
            table.add_row(*_cells(row, size), "too big", style="dim")
    print_table(table)
    console.print(trained_line(build_meta_model(config, size.classes)))
    print_line(
        "memory: counted on the real model, CUDA and its libraries taken as 1 GiB "
        f"(docs/background/memory.md). speed: arithmetic at an assumed {machine.flops / 1e12:g} "
        f"TFLOP/s, {machine.bandwidth / 1e9:g} GB/s a GPU and {machine.latency * 1e6:g} µs a hop; "
        "loading, testing and saving not counted. no step was run."
    )
    print_line(_verdict(config, machine, best, size))


def _verdict(config: Config, machine: Machine, best: PlannedStep | None, size: DataSize) -> str:
    """Return the overrides for the fastest step that fits, or what to change if none does."""
    from dfer_dist.reporting.wording import duration_text

    memory = f"{machine.memory / _GIB:g} GiB"
    if not best:
        return f"nothing fits {memory}: {_advice(config)}"
    settings = f"train.zero_stage={best.stage} train.micro_batch={best.micro}"
    hours = duration_text(3600 * best.hours(size))
    return f"use: {settings} ({best.memory.total / _GIB:.1f} of {memory}, about {hours})"


def _cells(row: PlannedStep, size: DataSize) -> list[str]:
    memory = row.memory
    # weights, gradients, moments, activations, other
    kinds = astuple(memory)[:5]
    return [
        str(row.stage),
        f"{row.micro} x {row.accumulation}" if row.accumulation > 1 else str(row.micro),
        *(f"{kind / _GIB:.1f}" for kind in (*kinds, memory.total, row.host)),
        f"{row.clips_per_second:.0f}",
        f"{row.sent / 1e9:.1f}",
        f"{row.hours(size):.1f}",
    ]


def _advice(config: Config) -> str:
    if not config.model.checkpoint_image:
        return "set model.checkpoint_image=true, which recomputes activations"
    if not config.train.offload_optimizer:
        return "set train.offload_optimizer=true, or use more GPUs"
    return "use more GPUs, fewer frames (data.num_frames) or a smaller backbone"


def _compare_memory(config: Config) -> None:
    """Take steps on this machine and print their memory next to the estimate."""
    steps = take_steps(config, exact_memory=True)
    planned, measured, size = steps["planned"], steps["measured"], steps["image_size"]
    print_line(
        f"{config.model.backbone}, {config.data.num_frames} frames of {size} x {size}, "
        f"micro batch {steps['micro_batch']} x {steps['accumulation']}, "
        f"ZeRO-{config.train.zero_stage}: planned {planned / _GIB:.2f} GiB, "
        f"measured {measured / _GIB:.2f} GiB ({_difference(planned, measured)}); "
        f"a step took {steps['seconds']:.1f} s"
    )


def take_steps(config: Config, world_size: int = 1, exact_memory: bool = False) -> dict[str, Any]:
    """Take steps in processes of their own; return what planning.measure prints on rank 0.

    Parameters
    ----------
    exact_memory : bool
        Return freed memory to the system at once, so that the peak is what was in use and not what
        malloc kept. Steps take longer.

    Raises
    ------
    UserError
        If a rank dies, with its last line.
    """
    from dfer_dist.config.load import dump_config
    from launch.processes import describe_exit, started_ranks
    from launch.progress import last_error

    variables = {"MALLOC_MMAP_THRESHOLD_": "65536"} if exact_memory else {}
    with tempfile.TemporaryDirectory() as folder:
        run, logs = RunDir(Path(folder)), FoldDir(Path(folder))
        run.config.write_text(dump_config(config), encoding="utf-8")
        arguments = ["dfer_dist.planning.measure", str(run.config)]
        with started_ranks(arguments, run, logs, world_size, variables) as ranks:
            codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise UserError(f"the steps failed: {describe_exit(ranks) or last_error(logs, {})}")
        lines = logs.log.read_text(encoding="utf-8").splitlines()
    result: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("{")))
    return result


def node_counts(text: str) -> list[int]:
    """Return the numbers in ``1,2,4``; ``1,2,4,...,512`` continues by the same factor.

    Raises
    ------
    UserError
        If the text is neither, or the numbers do not increase.
    """
    plain = text.replace(" ", "").replace("\N{HORIZONTAL ELLIPSIS}", "...")
    first, dots, last = plain.partition(",...,")
    try:
        counts = [int(item) for item in first.split(",")]
        if dots:
            factor = counts[-1] // counts[-2]
            while factor > 1 and counts[-1] * factor < int(last):
                counts.append(counts[-1] * factor)
            counts.append(int(last))
    except (IndexError, ValueError, ZeroDivisionError):
        counts = [0]
    if counts[0] < 1 or sorted(set(counts)) != counts:
        raise UserError(f"--scale {text}: give numbers of nodes such as 1,2,4,8 or 1,2,4,...,512")
    return counts


def _print_scale(
    config: Config,
    node: Machine,
    network: float,
    loader_rate: float,
    nodes: list[int],
    classes: tuple[str, ...],
) -> None:
    """Print the estimated step time on several numbers of nodes.

    Parameters
    ----------
    network : float
        Bytes per second that a node sends to the others.
    loader_rate : float
        Clips per second of a loader worker.
    """
    from dfer_dist.planning.scaling import scale

    rows = scale(config, node, network, loader_rate, nodes, classes)
    table = _table(
        f"{config.model.backbone}, {config.data.num_frames} frames, "
        f"ZeRO-{config.train.zero_stage}, {node.ranks} GPUs a node, {rows[0].clips} clips a GPU",
        "seconds of a step; loading overlaps with computing and sending; "
        "efficiency: share of the speed of as many independent GPUs",
        _SCALE_HEADS,
    )
    for row in rows:
        table.add_row(
            str(row.nodes),
            str(row.ranks),
            str(row.ranks * row.clips),
            *(f"{x:.4f}" for x in (row.compute, row.network, row.data, row.seconds)),
            f"{row.clips_per_second:.0f}",
            f"{100 * row.efficiency:.1f} %",
            row.limit,
        )
    print_table(table)
    print_line(
        f"arithmetic: {node.flops / 1e12:g} TFLOP/s a GPU, "
        f"{node.bandwidth / 1e9:g} GB/s a GPU within a node, "
        f"{network / 1e9:g} GB/s from a node to the others, {node.latency * 1e6:g} µs a hop, "
        f"{config.data.workers} loader workers of {loader_rate:g} clips/s a GPU; "
        "file system and stragglers not counted. no step was run.",
    )


def _print_measured_scale(config: Config, worlds: list[int], classes: tuple[str, ...]) -> None:
    """Print measured steps of several numbers of ranks on this machine next to the estimate.

    The estimate is made from one rank's step and the all-reduces of two ranks.
    """
    from dfer_dist.planning.estimate import Machine, plan_step

    clips, stage = config.train.global_batch, config.train.zero_stage
    steps = {}
    for world in sorted({1, *worlds}):
        training = replace(config.train, global_batch=world * clips)
        steps[world] = take_steps(replace(config, train=training), world)
    linked = next((world for world in steps if world > 1), 1)
    link = steps[linked] if linked > 1 else {"bandwidth": 1.0, "latency": 0.0}
    machine = Machine("cpu", 1, 0.0, 0.0, link["bandwidth"], link["latency"])
    planned = plan_step(config, classes, machine)
    table = _table(
        f"{config.model.backbone}, {config.data.num_frames} frames, ZeRO-{stage}, "
        f"{clips} clips a rank, ranks on {len(os.sched_getaffinity(0))} cores of this machine",
        "seconds of a step, megabytes that a rank sends in it; formula: one rank's step once for "
        "each rank that shares the cores, and the network",
        _MEASURED_HEADS,
    )
    for world, step in steps.items():
        estimate = replace(planned, machine=replace(machine, ranks=world))
        compute, network = world * steps[1]["seconds"], estimate.network_seconds
        total, measured = compute + network, step["seconds"]
        sent, counted = estimate.sent, step["sent"] / world
        seconds = (f"{x:.3f}" for x in (compute, network, total, measured))
        megabytes = (f"{x / 1e6:.2f}" for x in (sent, counted))
        # one rank sends nothing
        off = _difference(sent, counted) if world > 1 else ""
        table.add_row(str(world), *seconds, _difference(total, measured), *megabytes, off)
    print_table(table)
    print_line(
        f"an all-reduce between {linked} ranks: {link['bandwidth'] / 1e9:.2f} GB/s, "
        f"{1e6 * link['latency']:.0f} µs a hop. counted: bytes over the loopback interface, "
        "with its headers and other traffic.",
    )


def _table(title: str, caption: str, heads: Sequence[str]) -> Table:
    columns = number_columns(*heads)
    return Table(*columns, title=title, caption=caption, box=None, padding=(0, 1, 0, 0))


def _difference(formula: float, measured: float) -> str:
    return f"{100 * (formula / measured - 1):+.1f} %"
