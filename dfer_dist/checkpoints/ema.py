"""An exponential moving average of the float32 master weights (Polyak averaging).

After each step a = decay a + (1 - decay) w, from a = w at the start and without a warm-up of the
decay, as timm's ``ModelEmaV3`` does by default. The average is one more state of the inner
optimizer next to its moments, so DeepSpeed shards and offloads it as it does these:

- torch's optimizers look up their own states by name. AdamW makes them if a weight has no state at
  all, so :func:`~dfer_dist.checkpoints.optimizer_state.make_states` makes all of them together.
- ZeRO-1 and 2 link each parameter to every state with the shape of the flat master weights.
- ZeRO-3 hands its master weights to the inner optimizer one group at a time, and leaves the states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Key of the average among the states of the inner optimizer.
EMA = "ema"


def master_weights(zero: Any) -> list[Tensor]:
    """Return this rank's part of the flat float32 master weights of a ZeRO optimizer."""
    own = [p for group in zero.optimizer.param_groups for p in group["params"]]
    # ZeRO-3 gives its master weights to the inner optimizer for the length of a step only.
    return list(getattr(zero, "fp32_partitioned_groups_flat", own))


@torch.no_grad()
def update(zero: Any, decay: float) -> None:
    """Move the average towards the master weights, after a step that was not skipped."""
    weights = master_weights(zero)
    averages = [zero.optimizer.state[p][EMA] for p in weights]
    torch._foreach_lerp_(averages, weights, 1 - decay)
