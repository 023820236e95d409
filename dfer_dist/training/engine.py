"""The DeepSpeed engine: parameter groups, learning rates, precision and ZeRO."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dfer_dist.checkpoints import ema
from dfer_dist.config.schema import Config, OptimConfig, Optimizer, Precision, Schedule, split_batch
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.runs.provenance import resolved_python_command
from dfer_dist.training import bf16_gradients
from dfer_dist.training.parameter_groups import Groups, base_rates, optimizer_groups
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import extensions_dir
from dfer_dist.utils.log import demote_dependencies, prints_at_debug
from dfer_dist.utils.records import from_json, to_json

if TYPE_CHECKING:
    from dfer_dist.training.loss_scale import LossScale


class StepOutcome(Enum):
    """What became of an optimizer step."""

    TAKEN = "taken"
    # Skipped because the loss scale was too large for the gradients; the next one is smaller.
    OVERFLOW = "overflow"
    # Skipped because of a loss or gradients that are not finite.
    BAD = "bad"


@dataclass
class Engine:
    """A DeepSpeed engine with what the training loop needs around it.

    Attributes
    ----------
    deepspeed : deepspeed.DeepSpeedEngine
    trained : dict of str to nn.Parameter
        Trained parameters by name.
    base_lr : dict of str to float
        Peak learning rate of each group.
    accumulation : int
        Micro batches in a step.
    averager : GradientAverager or None
        Averages gradients over ranks; None where DeepSpeed does.
    loss_scale : LossScale or None
        Of training in float16.
    ema : float
        Decay of the moving average of the weights; 0 without one.
    bad_steps : int
        Bad steps in a row, up to the last one.
    """

    deepspeed: Any
    trained: dict[str, nn.Parameter]
    base_lr: dict[str, float]
    optim: OptimConfig
    steps_per_epoch: int
    total_steps: int
    micro_batch: int
    accumulation: int
    averager: bf16_gradients.GradientAverager | None
    loss_scale: LossScale | None = None
    ema: float = 0.0
    bad_steps: int = 0

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set the learning rate of each group for step ``step``.

        Returns
        -------
        dict of str to float
            By name of :attr:`base_lr`; with ``optim.layer_decay`` of the layers after all blocks.
        """
        lowest = lowest_rate(self.optim, step, self.steps_per_epoch)
        factor = lr_factor(self.optim, step, self.steps_per_epoch, self.total_steps)
        rates = {name: lowest + (lr - lowest) * factor for name, lr in self.base_lr.items()}
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rates[group["name"]] * group["lr_scale"]
        return rates

    def micro_step(self, loss: Tensor) -> None:
        """Run the backward pass of one micro batch, and step after the last one of a batch.

        A loss that is not finite makes the whole gradient so, since DeepSpeed looks at gradients
        only to decide whether to skip a step.
        """
        with record_function("backward"):
            self.deepspeed.backward(loss * torch.where(loss.isfinite(), 1.0, torch.nan))
        optimizer = self.deepspeed.optimizer
        is_last = self.deepspeed.is_gradient_accumulation_boundary()
        if self.averager and is_last:
            self.averager.finish()
        with record_function("optimizer step"):
            self.deepspeed.step()
        if self.ema and is_last and not optimizer.overflow:
            ema.update(optimizer, self.ema)

    def judge_step(self, loss: float) -> StepOutcome:
        """Return what became of the last step; call it once a step.

        DeepSpeed skips a step whose gradients are not finite.

        Parameters
        ----------
        loss : float
            Any sum of the step's losses over all ranks.
        """
        scale = self.loss_scale
        can_fall = scale is not None and not scale.overflowed_at_minimum
        if not self.deepspeed.optimizer.overflow:
            self.bad_steps = 0
            return StepOutcome.TAKEN
        if can_fall and math.isfinite(loss):
            self.bad_steps = 0
            return StepOutcome.OVERFLOW
        self.bad_steps += 1
        return StepOutcome.BAD

    def metrics(self) -> dict[str, float]:
        """Return the 2-norm of the last step's gradient, infinite if skipped, and its loss scale.

        There is a loss scale in float16 only.
        """
        metrics = {"grad_norm": float(self.deepspeed.get_global_grad_norm())}
        if self.loss_scale:
            metrics["loss_scale"] = float(self.loss_scale.cur_scale)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return what ``state.json`` of a checkpoint holds, as JSON types."""
        state: dict[str, Any] = {"base_lr": self.base_lr}
        if self.loss_scale:
            state["loss_scale"] = to_json(self.loss_scale.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the loss scale from ``state.json``, where both have one."""
        if self.loss_scale and state.get("loss_scale"):
            from dfer_dist.training.loss_scale import LossScaleState

            self.loss_scale.load_state_dict(from_json(LossScaleState, state["loss_scale"]))


def lowest_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate at which :func:`lr_factor` is 0, at step ``step``."""
    if optim.schedule is Schedule.cosine and step >= warmup_steps(optim, steps_per_epoch):
        return optim.min_lr
    return 0.0


def warmup_steps(optim: OptimConfig, steps_per_epoch: int) -> int:
    """Return the number of steps in which learning rates rise."""
    return round(optim.warmup_epochs * steps_per_epoch)


def lr_factor(optim: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Return the share of the way from the lowest to the peak learning rates at step ``step``.

    It is a pure function, so resuming needs no state of a scheduler.
    """
    warmup = warmup_steps(optim, steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule is Schedule.cosine:
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
    epoch = step // steps_per_epoch
    return optim.gamma ** sum(epoch >= m for m in optim.milestones)


def build_engine(
    model: nn.Module, groups: Groups, config: Config, ranks: Ranks, steps_per_epoch: int
) -> Engine:
    """Wrap a model in a DeepSpeed engine.

    Parameters
    ----------
    model : nn.Module
        In float32, with everything frozen that is not trained. DeepSpeed casts the weights to
        ``train.precision`` and keeps float32 master weights.
    groups : mapping
        Trained parameters by group (``temporal``, ``image``, ``prompt``, ``lora``, ``adapters``)
        and name.
    config : Config
    ranks : Ranks
    steps_per_epoch : int

    Raises
    ------
    UserError
        If ranks x micro batch does not divide the global batch.
    """
    micro_batch, accumulation = split_batch(config, ranks.world_size)
    # DeepSpeed prepares Muon for torch.compile, whose import takes a second.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import deepspeed

    demote_dependencies()
    with _frozen_garbage(), prints_at_debug():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_optimizer(optimizer_groups(model, groups, config.optim), config.optim),
            config=_deepspeed_config(config, micro_batch, accumulation, ranks),
            dist_init_required=False,
        )
    built = Engine(
        deepspeed=engine,
        trained=dict(chain(*groups.values())),
        base_lr=base_rates(groups, config.optim),
        optim=config.optim,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * config.train.epochs,
        micro_batch=micro_batch,
        accumulation=accumulation,
        averager=bf16_gradients.replace_hooks(engine),
        loss_scale=_loss_scale(engine, config.train.precision),
    )
    if config.train.ema:
        _start_average(built, config)
    return built


def _start_average(engine: Engine, config: Config) -> None:
    from dfer_dist.checkpoints.optimizer_state import make_states

    engine.ema = config.train.ema
    make_states(engine, config)


def _loss_scale(engine: Any, precision: Precision) -> LossScale | None:
    if precision is not Precision.fp16:
        return None
    from dfer_dist.training.loss_scale import replace_scaler

    return replace_scaler(engine.optimizer)


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Exempt existing objects from garbage collection inside the block.

    DeepSpeed collects garbage eight times while it starts, which takes a third of a second each.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _optimizer(param_groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return a fused optimizer of torch; DeepSpeed's own compile on the compute node."""
    if optim.name is Optimizer.adamw:
        beta1, beta2 = optim.betas
        return torch.optim.AdamW(param_groups, betas=(beta1, beta2), fused=True)
    return torch.optim.SGD(param_groups, momentum=optim.momentum, fused=True)


def _deepspeed_config(
    config: Config, micro_batch: int, accumulation: int, ranks: Ranks
) -> dict[str, Any]:
    on_gpu = ranks.device.type == "cuda"
    zero: dict[str, Any] = {
        "stage": config.train.zero_stage,
        "overlap_comm": on_gpu,
        "reduce_bucket_size": bf16_gradients.BUCKET,
    }
    if config.train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "bf16": {
            "enabled": config.train.precision is Precision.bf16,
            # Gradients are added to the float32 ones, and freed, during the backward pass.
            "immediate_grad_update": True,
        },
        # The loss scale is dynamic: 2^16 at first, halved at the second overflow, doubled after
        # 1,000 steps without one.
        "fp16": {"enabled": config.train.precision is Precision.fp16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        # Keep torch's optimizer with offloading too.
        "zero_force_ds_cpu_optimizer": False,
        # torch's SGD is not on DeepSpeed's list; it is elementwise, which is all ZeRO needs.
        "zero_allow_untested_optimizer": True,
        # Without a value DeepSpeed 0.19 silently clips at 1.0.
        "gradient_clipping": config.optim.clip_norm,
        "steps_per_print": 10**9,
    }


def build_extension() -> None:
    """Compile the small extension that DeepSpeed loads on the CPU.

    This takes about 30 s once and needs g++ and Python's headers.

    Raises
    ------
    UserError
        If the compiler fails, with the command that installs one.
    """
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_dir())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    try:
        ShareMemCommBuilder().load(verbose=False)
    except Exception as e:
        raise UserError(
            f"DeepSpeed's extension does not compile ({type(e).__name__}): "
            "install g++ and python3-dev (make system)"
        ) from e


if __name__ == "__main__":
    python, *options = resolved_python_command()
    # Ranks run by this name.
    if python != sys.executable:
        os.execv(python, [python, *options, "-m", "dfer_dist.training.engine"])
    build_extension()
