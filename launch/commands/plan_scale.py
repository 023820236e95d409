"""``dfer plan --scale``: step time and efficiency by nodes, estimated or measured here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dfer_dist.utils.errors import UserError
from launch.console import print_line
from launch.measured_steps import take_steps

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from dfer_dist.planning.estimate import Machine

_ELLIPSIS = "..."
_SCALE_HEADS = ["nodes", "GPUs", "batch", "compute", "network", "data", "step", "clips/s"]
_SCALE_HEADS += ["efficiency", "limit"]
_MEASURED_HEADS = ["ranks", "compute", "network", "formula", "measured", ""]
_MEASURED_HEADS += ["formula MB", "counted MB", ""]


def node_counts(text: str) -> list[int]:
    """Return the numbers in ``1,2,4``; ``1,2,4,...,512`` continues by the same factor.

    Raises
    ------
    UserError
        If the text is neither, or the numbers do not increase.
    """
    items = text.replace("\N{HORIZONTAL ELLIPSIS}", _ELLIPSIS).split(",")
    counts: list[int] = []
    for i, item in enumerate(map(str.strip, items)):
        is_second_last = i == len(items) - 2 and items[-1].strip().isdecimal()
        if item == _ELLIPSIS and len(counts) > 1 and is_second_last:
            counts += _continued(counts[-2], counts[-1], int(items[-1]))
        elif re.fullmatch(r"[1-9]\d*", item):
            counts.append(int(item))
        else:
            raise _no_node_counts(text)
    if sorted(set(counts)) != counts:
        raise _no_node_counts(text)
    return counts


def _no_node_counts(text: str) -> UserError:
    return UserError(f"--scale {text}: give numbers of nodes such as 1,2,4,8 or 1,2,4,...,512")


def _continued(previous: int, last: int, end: int) -> list[int]:
    """Return the numbers between ``last`` and ``end`` by the factor of ``last`` to ``previous``."""
    factor, counts = last // previous, list[int]()
    while factor > 1 and last * factor < end:
        last *= factor
        counts.append(last)
    return counts


def print_scale(
    console: Console,
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
    console.print(table)
    print_line(
        console,
        f"arithmetic: {node.flops / 1e12:g} TFLOP/s a GPU, "
        f"{node.bandwidth / 1e9:g} GB/s a GPU within a node, "
        f"{network / 1e9:g} GB/s from a node to the others, {node.latency * 1e6:g} µs a hop, "
        f"{config.data.workers} loader workers of {loader_rate:g} clips/s a GPU; "
        "file system and stragglers not counted. no step was run.",
    )


def print_measured_scale(
    console: Console, config: Config, worlds: list[int], classes: tuple[str, ...]
) -> None:
    """Print measured steps of several numbers of ranks on this machine next to the estimate.

    The estimate is made from one rank's step and the all-reduces of two ranks.
    """
    from dfer_dist.planning.estimate import Machine, network_seconds, sent_bytes, training_itemsize
    from dfer_dist.planning.step_costs import count_step

    clips, stage = config.train.global_batch, config.train.zero_stage
    steps = _steps_by_world_size(config, worlds)
    traced = count_step(config, classes, False)
    gradient_bytes = training_itemsize(config)
    accumulation = steps[1]["accumulation"]
    linked = next((world for world in steps if world > 1), 1)
    link = steps[linked] if linked > 1 else {"bandwidth": 1.0, "latency": 0.0}
    table = _table(
        f"{config.model.backbone}, {config.data.num_frames} frames, ZeRO-{stage}, "
        f"{clips} clips a rank, ranks on {len(os.sched_getaffinity(0))} cores of this machine",
        "seconds of a step, megabytes that a rank sends in it; formula: one rank's step once for "
        "each rank that shares the cores, and the network",
        _MEASURED_HEADS,
    )
    for world, step in steps.items():
        machine = Machine("cpu", world, 0.0, 0.0, link["bandwidth"], link["latency"])
        compute = world * steps[1]["seconds"]
        network = network_seconds(traced, gradient_bytes, stage, machine, accumulation)
        total, measured = compute + network, step["seconds"]
        sent = sent_bytes(traced, gradient_bytes, stage, world, accumulation)
        counted = step["sent"] / world
        seconds = (f"{x:.3f}" for x in (compute, network, total, measured))
        megabytes = (f"{x / 1e6:.2f}" for x in (sent, counted))
        # one rank sends nothing
        off = _difference(sent, counted) if world > 1 else ""
        table.add_row(str(world), *seconds, _difference(total, measured), *megabytes, off)
    console.print(table)
    print_line(
        console,
        f"an all-reduce between {linked} ranks: {link['bandwidth'] / 1e9:.2f} GB/s, "
        f"{1e6 * link['latency']:.0f} µs a hop. counted: bytes over the loopback interface, "
        "with its headers and other traffic.",
    )


def _steps_by_world_size(config: Config, worlds: list[int]) -> dict[int, dict[str, Any]]:
    """Take steps with the same number of clips per rank on 1 rank and on each number of ranks."""
    clips = config.train.global_batch
    return {
        world: take_steps(
            replace(config, train=replace(config.train, global_batch=world * clips)), world
        )
        for world in sorted({1, *worlds})
    }


def _table(title: str, caption: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption, box=None, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _difference(formula: float, measured: float) -> str:
    return f"{100 * (formula / measured - 1):+.1f} %"
