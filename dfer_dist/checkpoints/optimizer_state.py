"""Float32 master weights, moments and average of a DeepSpeed engine, gathered and restored.

They are gathered as full tensors and restored on any number of ranks under any ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import deepspeed
import torch
from deepspeed import utils
from torch import Tensor, nn

from dfer_dist.checkpoints.ema import EMA, master_weights
from dfer_dist.checkpoints.portable import Checkpoint, read
from dfer_dist.config.schema import Config, Optimizer
from dfer_dist.distributed.process_group import Ranks

if TYPE_CHECKING:
    from dfer_dist.training.engine import Engine


class EngineTensors(NamedTuple):
    """What a checkpoint stores of an engine, in main memory; empty on ranks other than 0.

    Attributes
    ----------
    weights : dict of str to float32 Tensor
        Master weights by name.
    moments : dict of str to float32 Tensor
        Moments by ``MOMENT:NAME``.
    ema : dict of str to float32 Tensor
        The moving average of the master weights by name; empty without ``train.ema``.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    ema: dict[str, Tensor]


def gather(engine: Engine, config: Config, steps: int, ranks: Ranks) -> EngineTensors:
    """Return copies of all master weights and their states. Collective.

    Parameters
    ----------
    steps : int
        Optimizer steps taken. Before the first one torch has made no moments.
    """
    weights = _gather(engine, ranks, utils.safe_get_full_fp32_param)
    moments: dict[str, Tensor] = {}
    if steps:
        _link_moments(engine)
        for key in config.optim.moments:
            get = partial(utils.safe_get_full_optimizer_state, optim_state_key=key)
            own = _gather(engine, ranks, get)
            moments |= {f"{key}:{name}": value for name, value in own.items()}
    ema = _gather(engine, ranks, _get_average) if config.train.ema else {}
    return EngineTensors(weights, moments, ema)


def _get_average(p: nn.Parameter) -> Tensor:
    return utils.safe_get_full_optimizer_state(p, EMA)


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
    """Set master weights, states and step count to those of a checkpoint. Collective.

    The engine's model must hold the checkpoint's weights already. DeepSpeed made the master
    weights from weights rounded to bf16, so they are set again. Moments are made as zeros first,
    because SGD has none before its first step.
    """
    make_states(engine, config)
    info = checkpoint.info
    for state in engine.deepspeed.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"].fill_(float(info.step) - info.skipped_steps)
    # No moments were saved before the first step.
    keys = config.optim.moments if checkpoint.optimizer else ()
    for name, p in engine.trained.items():
        _set(p, checkpoint.model[name], None, ranks)
        for key in keys:
            _set(p, checkpoint.optimizer[f"{key}:{name}"], key, ranks)
        if config.train.ema:
            # A run may turn the average on when it is resumed.
            _set(p, (checkpoint.ema or checkpoint.model)[name], EMA, ranks)


def select_weights(engine: Engine, best: Path | None) -> None:
    """Let forward passes use the weights that are tested. Collective.

    Parameters
    ----------
    best : Path, optional
        The checkpoint that is tested; by default the moving average of the present weights or,
        without one, these.
    """
    if best:
        weights = read(best, weights_only=True).model
        _replace_weights(engine, lambda name, _: weights[name])
    elif engine.ema:
        _replace_weights(engine, lambda _, p: _get_average(p))


@contextmanager
def averaged_weights(engine: Engine) -> Iterator[None]:
    """Let forward passes inside the block use the moving average, if there is one. Collective.

    Afterwards the weights are cast from the master weights, as DeepSpeed casts them, so they are
    equal to the bit. An exception ends the training, so nothing is done then.
    """
    select_weights(engine, None)
    yield
    if engine.ema:
        _replace_weights(engine, lambda _, p: utils.safe_get_full_fp32_param(p))


def _replace_weights(engine: Engine, value: Callable[[str, nn.Parameter], Tensor]) -> None:
    """Replace the weights that forward passes use, but not the master weights and states."""
    for name, p in engine.trained.items():
        weight = value(name, p)
        with (
            deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=hasattr(p, "ds_id")),
            torch.no_grad(),
        ):
            p.copy_(weight)


def make_states(engine: Engine, config: Config) -> None:
    """Make the states of all master weights: moments of zero and, with ``train.ema``, an average.

    The average starts at the master weights.
    """
    zero = engine.deepspeed.optimizer
    for p in master_weights(zero):
        state = zero.optimizer.state[p]
        for key in config.optim.moments:
            state[key] = torch.zeros_like(p)
        if config.optim.name is Optimizer.adamw:
            state["step"] = torch.zeros(
                (), dtype=torch.float32, device=p.device if p.is_cuda else "cpu"
            )
        if config.train.ema:
            state[EMA] = p.detach().clone()
    _link_moments(engine)


def _link_moments(engine: Engine) -> None:
    """Link DeepSpeed's views to the moments, which torch makes at the first step.

    Stages 1 and 2 have such views; ZeRO-3 has none.
    """
    zero = engine.deepspeed.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set(p: nn.Parameter, value: Tensor, state: str | None, ranks: Ranks) -> None:
    """Set a parameter's float32 master weight, or one of its states, from a full tensor."""
    set_weight, set_state = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
    if hasattr(p, "ds_id"):
        # ZeRO-3: DeepSpeed's setter of full tensors fails on sizes that the world size does not
        # divide, so pad and cut here.
        set_weight = utils.safe_set_local_fp32_param
        set_state = utils.safe_set_local_optimizer_state
        part = p.ds_tensor.numel()  # type: ignore[attr-defined]
        flat = torch.zeros(part * ranks.world_size)
        flat[: value.numel()] = value.flatten()
        value = flat[ranks.rank * part : (ranks.rank + 1) * part]
    value = value.to(ranks.device)
    if state:
        set_state(p, value, state)
    else:
        set_weight(p, value)
