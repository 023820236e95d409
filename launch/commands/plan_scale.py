"""``dfer plan --scale``: step time and efficiency by nodes, on paper and, on this machine, beside real ranks."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dfer_dist.utils.errors import UserError
from launch.measured_steps import take_steps

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from dfer_dist.planning.planner import Machine


def node_counts(text: str) -> list[int]:
    """``1,2,4`` as it stands; ``1,2,4,...,512`` goes on by the same factor.

    Raises
    ------
    UserError
        If it is neither.
    """
    wrong = UserError(
        f"--scale {text} is no list of nodes: give it such as 1,2,4,8 or 1,2,4,...,512"
    )
    words = [word.strip() for word in text.replace("\N{HORIZONTAL ELLIPSIS}", "...").split(",")]
    counts: list[int] = []
    for i, word in enumerate(words):
        if word == "..." and len(counts) > 1 and i == len(words) - 2 and words[-1].isdecimal():
            factor, last = counts[-1] // counts[-2], int(words[-1])
            while factor > 1 and counts[-1] * factor < last:
                counts.append(counts[-1] * factor)
        elif re.fullmatch(r"[1-9]\d*", word):
            counts.append(int(word))
        else:
            raise wrong
    if sorted(set(counts)) != counts:
        raise wrong
    return counts


def print_scale(
    console: Console,
    config: Config,
    node: Machine,
    network: float,
    loaded: float,
    nodes: list[int],
    classes: tuple[str, ...],
) -> None:
    """Step time on paper."""
    from dfer_dist.planning.scale import scale

    rows = scale(config, node, network, loaded, nodes, classes)
    table = Table(
        title=f"{config.model.backbone}, {config.data.num_frames} frames, ZeRO-{config.train.zero_stage}, {node.ranks} GPUs a node, {rows[0].clips} clips a GPU",
        caption="seconds of a step; loading goes on beside computing and sending; efficiency: share of what as many GPUs would do alone",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for head in (
        "nodes",
        "GPUs",
        "batch",
        "compute",
        "network",
        "data",
        "step",
        "clips/s",
        "efficiency",
        "limit",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row.nodes), str(row.ranks), str(row.ranks * row.clips)]
        cells += [f"{x:.4f}" for x in (row.compute, row.network, row.data, row.seconds)]
        table.add_row(
            *cells, f"{row.clips_per_second:.0f}", f"{100 * row.efficiency:.1f} %", row.limit
        )
    console.print(table)
    console.print(
        f"arithmetic: {node.flops / 1e12:g} TFLOP/s a GPU, {node.bandwidth / 1e9:g} GB/s a GPU within a node, {network / 1e9:g} GB/s of a node to others, "
        f"{node.latency * 1e6:g} µs a hop, {config.data.workers} loader workers of {loaded:g} clips/s a GPU; file system and stragglers not counted. no step was run.",
        soft_wrap=True,
    )


def print_measured_scale(
    console: Console, config: Config, worlds: list[int], classes: tuple[str, ...]
) -> None:
    """Steps of so many ranks on this machine, beside what the formula says from one rank's step and two ranks' all-reduces."""
    from dfer_dist.config.schema import Precision
    from dfer_dist.planning.planner import Machine, network_seconds, sent_bytes
    from dfer_dist.planning.trace import trace

    clips, stage = config.train.global_batch, config.train.zero_stage
    seen = {
        w: take_steps(replace(config, train=replace(config.train, global_batch=w * clips)), w)
        for w in sorted({1, *worlds})
    }
    counted, half = (
        trace(config, classes, False),
        2 if config.train.precision is Precision.bf16 else 4,
    )
    accumulation = seen[1]["accumulation"]
    link = next((s for w, s in seen.items() if w > 1), {"bandwidth": 1.0, "latency": 0.0})
    table = Table(
        title=f"{config.model.backbone}, {config.data.num_frames} frames, ZeRO-{stage}, {clips} clips a rank, ranks on {len(os.sched_getaffinity(0))} cores of this machine",
        caption="seconds of a step, megabytes that a rank sends in it; formula: one rank's step once for each rank that shares the cores, and the network",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for head in (
        "ranks",
        "compute",
        "network",
        "formula",
        "measured",
        "",
        "formula MB",
        "counted MB",
        "",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for w, step in seen.items():
        here = Machine("cpu", w, 0.0, 0.0, link["bandwidth"], link["latency"])
        compute, network = (
            w * seen[1]["seconds"],
            network_seconds(counted, half, stage, here, accumulation),
        )
        sent, looped = sent_bytes(counted, half, stage, w, accumulation), step["sent"] / w
        cells = [f"{x:.3f}" for x in (compute, network, compute + network, step["seconds"])]
        table.add_row(
            str(w),
            *cells,
            _off(compute + network, step["seconds"]),
            f"{sent / 1e6:.2f}",
            f"{looped / 1e6:.2f}",
            _off(sent, looped) if w > 1 else "",
        )
    console.print(table)
    console.print(
        f"an all-reduce between {min((w for w in seen if w > 1), default=1)} ranks: {link['bandwidth'] / 1e9:.2f} GB/s, {1e6 * link['latency']:.0f} µs a hop. "
        "counted: bytes over the loopback interface, its headers and other traffic included.",
        soft_wrap=True,
    )


def _off(formula: float, measured: float) -> str:
    return f"{100 * (formula / measured - 1):+.1f} %"
