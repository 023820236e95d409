"""Ranks average random gradients that are larger than a bucket; rank 0 prints the error."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from dfer_dist.config.schema import Device
from dfer_dist.distributed.process_group import exit_process, init_distributed
from dfer_dist.training import bf16_gradients

if __name__ == "__main__":
    ranks = init_distributed(Device.cpu)
    bf16_gradients.BUCKET = 100
    of_each = [
        [torch.randn(n, generator=torch.Generator().manual_seed(10 * r + n)) for n in (250, 30)]
        for r in range(ranks.world_size)
    ]
    mine = [own.clone() for own in of_each[ranks.rank]]
    bf16_gradients.all_reduce_mean(mine)
    wanted = [torch.stack(own).mean(0) for own in zip(*of_each, strict=True)]
    off = max((a - b).abs().max().item() for a, b in zip(mine, wanted, strict=True))
    dist.barrier()
    if ranks.is_main:
        print(json.dumps({"off": off, "largest": max(w.abs().max().item() for w in wanted)}))
    exit_process(0)
