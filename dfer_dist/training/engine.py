"""From the typed config to a DeepSpeed engine: parameter groups, schedule, precision, ZeRO."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfer_dist.config.schema import Config, OptimConfig, Optimizer, Precision, Schedule, split_batch
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.training import bf16_gradients as gradients
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.log import demote_dependencies, prints_at_debug

Groups = Mapping[str, Sequence[tuple[str, nn.Parameter]]]


@dataclass
class Engine:
    """A DeepSpeed engine with what the loop needs around it.

    ``groups`` keeps the trained parameters by group and name; ``base_lr`` their peak learning rates; ``accumulation`` the
    micro batches in a step; ``reduces`` whether the gradients are averaged over ranks here, which ZeRO-1 in bf16 leaves to :mod:`~dfer_dist.training.bf16_gradients`.
    """

    deepspeed: Any
    groups: Groups
    base_lr: dict[str, float]
    optim: OptimConfig
    steps_per_epoch: int
    total_steps: int
    micro_batch: int
    accumulation: int
    reduces: bool
    bad_steps: int = 0

    @property
    def model(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {name: p for group in self.groups.values() for name, p in group}

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Give each group its learning rate for step ``step`` and return them by group name."""
        factor = lr_factor(self.optim, step, self.steps_per_epoch, self.total_steps)
        rates = {name: lr * factor for name, lr in self.base_lr.items()}
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        return rates

    def micro_step(self, loss: Tensor) -> None:
        """Backward pass of one micro batch, and the optimizer's step after the last one of a global batch.

        A loss that is not finite makes the whole gradient so: DeepSpeed, which then skips the step, looks at gradients only.
        """
        self.deepspeed.backward(loss * torch.where(loss.isfinite(), 1.0, torch.nan))
        if self.reduces and self.deepspeed.is_gradient_accumulation_boundary():
            gradients.complete(self.deepspeed.optimizer)
            gradients.average(self.deepspeed.optimizer.get_grads_for_reduction()[0])
        self.deepspeed.step()

    def step_was_skipped(self) -> bool:
        """Whether the last step met non-finite gradients, in which case DeepSpeed left all weights alone without a word."""
        skipped = bool(self.deepspeed.optimizer.overflow)
        self.bad_steps = self.bad_steps + 1 if skipped else 0
        return skipped

    def gradient_norm(self) -> float:
        """2-norm of the last step's gradient over all trained parameters; infinite for a skipped step."""
        return float(self.deepspeed.get_global_grad_norm())


def lr_factor(optim: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """What peak learning rates are multiplied with at step ``step``: a pure function, so resuming needs no state."""
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule is Schedule.cosine:
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
    epoch = step // steps_per_epoch
    return optim.gamma ** sum(epoch >= m for m in optim.milestones)


def build_engine(
    model: nn.Module, groups: Groups, config: Config, ranks: Ranks, steps_per_epoch: int
) -> Engine:
    """Wrap a model whose frozen parameters are frozen already.

    Parameters
    ----------
    model : nn.Module
        Float32 weights; DeepSpeed casts them as ``train.precision`` says and keeps float32 masters.
    groups : mapping
        Trained parameters by group (``temporal``, ``image``, ``prompt``, ``lora``, ``adapters``), each with its name.
    steps_per_epoch : int
        For the schedule.

    Raises
    ------
    UserError
        If ranks x micro batch does not divide the global batch.
    """
    micro, accumulation = split_batch(config, ranks.world)
    os.environ.setdefault(
        "TORCHDYNAMO_DISABLE", "1"
    )  # DeepSpeed prepares Muon for torch.compile, which takes a second to import
    import deepspeed  # seconds to import, and it reads DS_ACCELERATOR when imported
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    optim = config.optim
    peaks = {
        "temporal": optim.lr_temporal,
        "image": optim.lr_image,
        "prompt": optim.lr_prompt,
        "lora": optim.lr_lora,
    }
    peaks |= {"adapters": optim.lr_adapters}
    base_lr = {name: peaks[name] for name in groups}
    param_groups = [
        {"params": [p for _, p in g], "lr": base_lr[name], "name": name}
        for name, g in groups.items()
    ]
    demote_dependencies()
    with _nothing_to_collect(), prints_at_debug():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_optimizer(param_groups, optim),
            config=_deepspeed_config(config, micro, accumulation, ranks),
            dist_init_required=False,
        )
    reduces = isinstance(engine.optimizer, BF16_Optimizer)
    if (
        reduces
    ):  # DeepSpeed would copy all gradients four times to send them in one piece, even to nobody
        engine.enable_backward_allreduce = False
        gradients.overwrite(engine.optimizer)
    total = steps_per_epoch * config.train.epochs
    return Engine(
        engine, groups, base_lr, optim, steps_per_epoch, total, micro, accumulation, reduces
    )


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Have the collector pass over what there is: DeepSpeed collects eight times while it starts, a third of a second each."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """torch's own optimizers, each step one pass over the weights: DeepSpeed's compile on the compute node at first use."""
    if optim.name is Optimizer.adamw:
        return torch.optim.AdamW(groups, weight_decay=optim.weight_decay, fused=True)
    return torch.optim.SGD(
        groups, lr=0.0, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )


def _deepspeed_config(
    config: Config, micro: int, accumulation: int, ranks: Ranks
) -> dict[str, Any]:
    offload = config.train.offload_optimizer
    return {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "bf16": {"enabled": config.train.precision is Precision.bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": config.train.zero_stage,
            "overlap_comm": ranks.device.type == "cuda",
            "reduce_bucket_size": gradients.BUCKET,
            **(
                {"offload_optimizer": {"device": "cpu", "pin_memory": ranks.device.type == "cuda"}}
                if offload
                else {}
            ),
        },
        "zero_force_ds_cpu_optimizer": False,  # torch's own there too: DeepSpeed's compiles on the compute node
        "zero_allow_untested_optimizer": True,  # torch's SGD is not on DeepSpeed's list; it is element-wise, which is all ZeRO needs
        "gradient_clipping": config.optim.clip_norm,  # left out, DeepSpeed 0.19 clips at 1.0 without a word
        "steps_per_print": 10**9,
    }


def extensions_dir() -> Path:
    """Where DeepSpeed's compiled extension is kept: inside this environment, so that no other ninja invalidates it."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")


def build_extension() -> None:
    """Compile the small extension that DeepSpeed's CPU backend loads (about 30 s once; needs g++ and Python's headers).

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
            f"DeepSpeed's extension does not compile ({type(e).__name__}): install g++ and python3-dev (make system)"
        ) from e


if __name__ == "__main__":
    build_extension()
