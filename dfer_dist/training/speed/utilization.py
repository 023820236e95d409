"""Operations a second while training, and their share of the device's peak.

The share is the model FLOPs utilization of Chowdhery et al., "PaLM", 2022, appendix B: the
operations of the model itself, without those that are repeated to save memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

import torch

from dfer_dist.config.schema import Config, split_batch
from dfer_dist.distributed.process_group import Ranks, device_name
from dfer_dist.models.build import model_dtype
from dfer_dist.models.flops import model_flops
from dfer_dist.utils.hardware import peak_flops

_SIDE = 512  # of the matrices whose product is timed on a processor
_MAX_SECONDS = 0.05  # for all of these products but the first two


class Utilization:
    """The operations a second of one rank in training.

    Operations are counted, and a processor's peak is measured, when they are first asked for, after
    the first step. This takes 0.1 s for the demo and 0.7 s for ViT-H/14.

    Parameters
    ----------
    config : Config
    classes : sequence of str
        In label order.
    ranks : Ranks
    """

    def __init__(self, config: Config, classes: Sequence[str], ranks: Ranks) -> None:
        self.config, self.classes, self.ranks = config, classes, ranks

    @cached_property
    def flops_per_clip(self) -> float:
        """Operations on a training clip, forward and backward."""
        micro_batch, _ = split_batch(self.config, self.ranks.world_size)
        return model_flops(self.config, self.classes, micro_batch, train=True) / micro_batch

    @cached_property
    def peak(self) -> float | None:
        """Operations a second that the rank's device could do.

        Of a GPU they are published; None for one that is not in the table. Of a processor they are
        measured (:func:`measure_peak`).
        """
        device, precision = self.ranks.device, self.config.train.precision
        if device.type == "cuda":
            return peak_flops(device_name(device), precision.name)
        return measure_peak(model_dtype(precision))

    def metrics(self, clips_per_second: float) -> dict[str, float]:
        """Return ``tflops`` of a rank, in 10^12 a second, and ``mfu`` where the peak is known.

        Parameters
        ----------
        clips_per_second : float
            Of all ranks.
        """
        flops = self.flops_per_clip * clips_per_second / self.ranks.world_size
        metrics = {"tflops": flops / 1e12}
        if self.peak:
            metrics["mfu"] = flops / self.peak
        return metrics

    def text(self, clips_per_second: float) -> str:
        """Return the metrics for a line of the log, such as ``1.2 TFLOP/s, MFU 34%``."""
        metrics = self.metrics(clips_per_second)
        text = f"{metrics['tflops']:.3g} TFLOP/s"
        if "mfu" in metrics:
            text += f", MFU {metrics['mfu']:.0%}"
        return text


def measure_peak(dtype: torch.dtype) -> float:
    """Return the operations a second of the fastest matrix product on this process's threads.

    Other ranks may compute meanwhile, so it is not exact.
    """
    left, right = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    seconds: list[float] = []
    begin: float | None = None
    # The first product prepares the kernel.
    while begin is None or time.perf_counter() - begin < _MAX_SECONDS or len(seconds) < 2:
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
        begin = begin or time.perf_counter()
    return float(2 * _SIDE**3 / min(seconds))
