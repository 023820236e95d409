"""Estimate step time and efficiency by number of nodes: ``dfer plan --scale``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dfer_dist.config.schema import Config
from dfer_dist.planning.estimate import Machine, plan_step


@dataclass(frozen=True)
class ScaledStep:
    """A step on ``nodes`` nodes.

    ``compute``, ``network`` and ``data`` are seconds; loading overlaps with the other two.
    ``clips`` are those of one rank.
    """

    nodes: int
    ranks: int
    compute: float
    network: float
    data: float
    clips: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return max(self.compute + self.network, self.data)

    @property
    def clips_per_second(self) -> float:
        """Clips a second of all ranks."""
        return self.ranks * self.clips / self.seconds

    @property
    def efficiency(self) -> float:
        """Share of the speed of as many independent ranks."""
        return max(self.compute, self.data) / self.seconds

    @property
    def limit(self) -> str:
        """The largest part of the step: ``data``, ``compute`` or ``network``."""
        if self.data >= self.compute + self.network:
            return "data"
        if self.compute >= self.network:
            return "compute"
        return "network"


def scale(
    config: Config,
    node: Machine,
    network: float,
    loader_rate: float,
    nodes: Sequence[int],
    classes: Sequence[str],
) -> list[ScaledStep]:
    """Return a row for each number of nodes.

    Each rank keeps the clips that it has on one node, so the global batch grows with them.

    Parameters
    ----------
    node : Machine
        One node with all of its ranks.
    network : float
        Bytes a second that a node sends to others.
    loader_rate : float
        Clips a second that one loader worker loads.

    Raises
    ------
    UserError
        If the ranks of one node cannot share the global batch.
    """
    step = plan_step(config, classes, node)
    clips = step.micro * step.accumulation
    data = clips / (max(1, config.data.workers) * loader_rate)
    rows = []
    for n in nodes:
        cluster = replace(node, ranks=n * node.ranks)
        if n > 1:
            cluster = replace(cluster, bandwidth=min(node.bandwidth, network))
        sending = replace(step, machine=cluster).network_seconds
        rows.append(ScaledStep(n, cluster.ranks, step.compute_seconds, sending, data, clips))
    return rows
