"""Float32 master weights and optimizer moments of a DeepSpeed engine, gathered and restored.

They are gathered as full tensors and restored on any number of ranks under any ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import deepspeed
import torch
from deepspeed import utils
from torch import Tensor, nn

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import Config, Optimizer
from dfer_dist.distributed.process_group import Ranks

if TYPE_CHECKING:
    from dfer_dist.training.engine import Engine

_MOMENTS = {Optimizer.sgd: ("momentum_buffer",), Optimizer.adamw: ("exp_avg", "exp_avg_sq")}


def gather(
    engine: Engine, config: Config, steps: int, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of all master weights and moments. Collective.

    Parameters
    ----------
    steps : int
        Optimizer steps taken. Before the first one torch has made no moments.

    Returns
    -------
    weights : dict of str to float32 Tensor
        Master weights by name, in main memory; empty on ranks other than 0.
    moments : dict of str to float32 Tensor
        Moments by ``MOMENT:NAME``, likewise.
    """
    weights = _gather(engine, ranks, utils.safe_get_full_fp32_param)
    moments: dict[str, Tensor] = {}
    if steps:
        _link_moments(engine)
        for key in _MOMENTS[config.optim.name]:
            get = partial(utils.safe_get_full_optimizer_state, optim_state_key=key)
            own = _gather(engine, ranks, get)
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
    """Set master weights, moments and step count to those of a checkpoint. Collective.

    The engine's model must hold the checkpoint's weights already. DeepSpeed made the master
    weights from weights rounded to bf16, so they are set again. Moments are made as zeros first,
    because SGD has none before its first step.
    """
    _make_moments(engine, config.optim.name)
    info = checkpoint.info
    for state in engine.deepspeed.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"].fill_(float(info.step) - info.skipped_steps)
    # No moments were saved before the first step.
    keys = _MOMENTS[config.optim.name] if checkpoint.optimizer else ()
    for name, p in engine.trained.items():
        _set(p, checkpoint.model[name], None, ranks)
        for key in keys:
            _set(p, checkpoint.optimizer[f"{key}:{name}"], key, ranks)


def replace_weights(engine: Engine, checkpoint: Checkpoint) -> None:
    """Replace the weights that forward passes use, but not the master weights and moments.

    Use it to evaluate another checkpoint after training.
    """
    for name, p in engine.trained.items():
        with (
            deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=hasattr(p, "ds_id")),
            torch.no_grad(),
        ):
            p.copy_(checkpoint.model[name])


def _make_moments(engine: Engine, name: Optimizer) -> None:
    zero = engine.deepspeed.optimizer
    master_weights = [p for group in zero.optimizer.param_groups for p in group["params"]]
    # ZeRO-3 gives its master weights to the inner optimizer for the length of a step only.
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
    """Link DeepSpeed's views to the moments, which torch makes at the first step.

    Stages 1 and 2 have such views; ZeRO-3 has none.
    """
    zero = engine.deepspeed.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set(p: nn.Parameter, value: Tensor, moment: str | None, ranks: Ranks) -> None:
    """Set a parameter's float32 master weight, or one of its moments, from a full tensor."""
    set_weight, set_moment = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
    if hasattr(p, "ds_id"):
        # ZeRO-3: DeepSpeed's setter of full tensors fails on sizes that the world size does not
        # divide, so pad and cut here.
        set_weight = utils.safe_set_local_fp32_param
        set_moment = utils.safe_set_local_optimizer_state
        part = p.ds_tensor.numel()  # type: ignore[attr-defined]
        flat = torch.zeros(part * ranks.world_size)
        flat[: value.numel()] = value.flatten()
        value = flat[ranks.rank * part : (ranks.rank + 1) * part]
    value = value.to(ranks.device)
    if moment:
        set_moment(p, value, moment)
    else:
        set_weight(p, value)
