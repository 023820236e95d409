"""The memory of real training steps on this machine, to hold a plan against: random weights, made-up clips, the real engine.

``python -m dfer_dist.footprint --config FILE`` (what ``dfer plan --measure`` starts) takes two steps on one rank, the second
with moments, and prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dfer_dist.config import Config, Supervision
from dfer_dist.configfile import read_config
from dfer_dist.engine import build_engine
from dfer_dist.model import build_model, param_groups, settle_image_size
from dfer_dist.model.reading import CONTEXT
from dfer_dist.objective import Objective
from dfer_dist.planner import data_size, plan_here
from dfer_dist.ranks import Ranks, leave, peak_memory, start

STEPS = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes in use at the peak, above what the imports take: ``measured`` (the model's construction included) and
    ``planned``; ``seconds`` of the last step; what the step was made of."""

    measured: float
    planned: float
    seconds: float
    image_size: int
    micro_batch: int
    accumulation: int


def measure(config: Config, classes: tuple[str, ...]) -> Footprint:
    """Take :data:`STEPS` optimizer steps in this process, which must not have done anything with torch before.

    Parameters
    ----------
    classes : tuple of str
        In label order.
    """
    ranks = start(config.train.device)
    import deepspeed  # noqa: F401  (so that it is not counted)

    before = in_use(ranks)
    size = settle_image_size(config)
    model = build_model(replace(config.model, pretrained="none"), classes, config.data.num_frames, size)
    engine = build_engine(model, param_groups(model), config, ranks, STEPS)
    objective = Objective(config, [1] * len(classes), ranks.device)
    shape = (engine.micro_batch, config.data.num_frames, 3, size, size)
    seconds = 0.0
    for step in range(STEPS):
        begin = time.perf_counter()
        engine.set_learning_rates(step)
        for _ in range(engine.accumulation):
            frames = torch.randint(0, 256, shape, dtype=torch.uint8)
            labels, valid = torch.randint(len(classes), shape[:1]), torch.ones(shape[0], dtype=torch.bool)
            tokens = None
            if config.train.objective is not Supervision.labels:
                tokens = torch.randint(1, 1000, (engine.micro_batch, CONTEXT), device=ranks.device)
            outputs = engine.deepspeed(frames.to(ranks.device), by_side=objective.by_side, tokens=tokens)
            loss = objective(outputs, labels, valid, None if tokens is None else valid).mean()
            engine.micro_step(loss)
        loss.item()
        seconds = time.perf_counter() - begin
    measured = peak_memory(ranks.device) - before
    planned = plan_here(config, classes, ranks.device.type)
    return Footprint(measured, planned, seconds, size, engine.micro_batch, engine.accumulation)


def in_use(ranks: Ranks) -> float:
    if ranks.device.type == "cuda":
        return float(torch.cuda.memory_allocated())
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="resolved settings of a run")
    config = read_config(parser.parse_args().config)
    print(json.dumps(asdict(measure(config, data_size(config).classes))))
    leave(0)


if __name__ == "__main__":
    main()
