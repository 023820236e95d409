"""Float32 masters and moments of a DeepSpeed engine: taken out whole, and put back on any number of ranks and any ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import Config, Optimizer
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.training.engine import Engine

_MOMENTS = {Optimizer.sgd: ("momentum_buffer",), Optimizer.adamw: ("exp_avg", "exp_avg_sq")}


def gather(
    engine: Engine, config: Config, steps: int, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of all masters by name and all moments by ``MOMENT:NAME``, float32 in main memory; empty but on rank 0. Collective.

    Parameters
    ----------
    steps : int
        Optimizer steps taken; before the first one torch has made no moments.
    """
    weights = _gather(engine, ranks, safe_get_full_fp32_param)
    moments: dict[str, Tensor] = {}
    if steps:
        _link_moments(engine)
        for key in _MOMENTS[config.optim.name]:
            own = _gather(
                engine, ranks, partial(safe_get_full_optimizer_state, optim_state_key=key)
            )
            moments |= {f"{key}:{name}": value for name, value in own.items()}
    return weights, moments


def _gather(
    engine: Engine, ranks: Ranks, get: Callable[[nn.Parameter], Tensor]
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, p in engine.trained.items():
        value = get(p)
        if ranks.is_main:
            out[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return out


def restore(engine: Engine, checkpoint: Checkpoint, config: Config, ranks: Ranks) -> None:
    """Bring an engine to the state of a checkpoint whose weights its model was built with. Collective.

    DeepSpeed made the masters from weights rounded to bf16, so they are set again; moments are made as zeros first, since
    SGD has none before its first step.
    """
    _make_moments(engine, config.optim.name)
    step = float(checkpoint.state["step"])
    for state in engine.deepspeed.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step - checkpoint.state["skipped_steps"])
    for name, p in engine.trained.items():
        _set(p, checkpoint.model[name], None, ranks)
        for key in (
            _MOMENTS[config.optim.name] if checkpoint.optimizer else ()
        ):  # none were saved before the first step
            _set(p, checkpoint.optimizer[f"{key}:{name}"], key, ranks)


def replace_weights(engine: Engine, checkpoint: Checkpoint) -> None:
    """Exchange the weights that forward passes use, leaving masters and moments alone: for evaluating BEST after training."""
    import deepspeed

    for name, p in engine.trained.items():
        with (
            deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=hasattr(p, "ds_id")),
            torch.no_grad(),
        ):
            p.copy_(checkpoint.model[name])


def _make_moments(engine: Engine, name: Optimizer) -> None:
    zero = engine.deepspeed.optimizer
    master_weights = [p for group in zero.optimizer.param_groups for p in group["params"]]
    # ZeRO-3 lends its masters to the inner optimizer for the length of a step only
    for p in getattr(zero, "fp32_partitioned_groups_flat", master_weights):
        state = zero.optimizer.state[p]
        for key in _MOMENTS[name]:
            state[key] = torch.zeros_like(p)
        if name is Optimizer.adamw:
            state["step"] = torch.zeros(
                (), dtype=torch.float32, device=p.device if p.is_cuda else "cpu"
            )
    _link_moments(engine)


def _link_moments(engine: Engine) -> None:
    """Let stages 1 and 2 find their views of the moments, which torch makes at the first step (ZeRO-3 keeps no views)."""
    zero = engine.deepspeed.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set(p: nn.Parameter, value: Tensor, moment: str | None, ranks: Ranks) -> None:
    """Set a parameter's float32 master, or one of its moments, from a full tensor."""
    if not hasattr(p, "ds_id"):
        value = value.to(p.device)
        safe_set_full_optimizer_state(p, value, moment) if moment else safe_set_full_fp32_param(
            p, value
        )
        return
    # ZeRO-3: DeepSpeed's setter of full tensors fails on sizes that the world size does not divide, so pad and cut here
    part = p.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = torch.zeros(part * ranks.world_size)
    flat[: value.numel()] = value.flatten()
    own = flat[ranks.rank * part : (ranks.rank + 1) * part].to(ranks.device)
    safe_set_local_optimizer_state(p, own, moment) if moment else safe_set_local_fp32_param(p, own)
