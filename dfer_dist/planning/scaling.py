"""Step time and efficiency on more and more nodes, on paper: ``dfer plan --scale``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dfer_dist.config.schema import Config, Precision, split_batch
from dfer_dist.planning.estimate import Machine, network_seconds
from dfer_dist.planning.step_costs import count_step


@dataclass(frozen=True)
class ScaledStep:
    """A step on ``nodes`` nodes.

    Seconds of computing, sending, and loading, which goes on beside the other two; all of them
    together; clips a second of all ranks, and their share of what as many ranks would do that never
    waited for each other.
    """

    nodes: int
    ranks: int
    compute: float
    network: float
    data: float
    clips: int

    @property
    def seconds(self) -> float:
        return max(self.compute + self.network, self.data)

    @property
    def clips_per_second(self) -> float:
        return self.ranks * self.clips / self.seconds

    @property
    def efficiency(self) -> float:
        return max(self.compute, self.data) / self.seconds

    @property
    def limit(self) -> str:
        """What most of the step is spent on: ``data``, ``compute`` or ``network``."""
        if self.data >= self.compute + self.network:
            return "data"
        return "compute" if self.compute >= self.network else "network"


def scale(
    config: Config,
    node: Machine,
    network: float,
    loaded: float,
    nodes: Sequence[int],
    classes: Sequence[str],
) -> list[ScaledStep]:
    """A row for each number of nodes.

    Each rank keeps the clips that it has on one node, so the global batch grows with them.

    Parameters
    ----------
    node : Machine
        One node with all of its ranks.
    network : float
        Bytes a second that a node sends to others.
    loaded : float
        Clips a second that one loader worker loads.

    Raises
    ------
    UserError
        If the ranks of one node cannot share the global batch.
    """
    micro, accumulation = split_batch(config, node.ranks)
    counted = count_step(config, classes, fused_attention=node.device == "cuda")
    half = 2 if config.train.precision is Precision.bf16 else 4
    compute, clips = accumulation * counted.flops(micro) / node.flops, micro * accumulation
    data = clips / (max(1, config.data.workers) * loaded)
    rows = []
    for n in nodes:
        all_of_them = replace(
            node,
            ranks=n * node.ranks,
            bandwidth=node.bandwidth if n == 1 else min(node.bandwidth, network),
        )
        sending = network_seconds(counted, half, config.train.zero_stage, all_of_them, accumulation)
        rows.append(ScaledStep(n, all_of_them.ranks, compute, sending, data, clips))
    return rows
