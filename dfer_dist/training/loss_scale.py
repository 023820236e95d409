"""Dynamic loss scale of training in float16.

Small gradients are zero in float16, so the loss is multiplied by a scale and the float32 gradients
are divided by it: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2. Where
gradients overflow, the step is skipped and the scale is halved; after a thousand steps without
overflow it is doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from torch import Tensor


@dataclass(frozen=True)
class LossScaleState:
    """The state of a :class:`LossScale` in a checkpoint.

    Attributes
    ----------
    scale : float
        Of the next step.
    steps : int
        Steps taken or skipped.
    last_overflow : int
        The last one with an overflow, counted from 0; -1 before the first.
    hysteresis : int
        The scale is halved at the overflow that finds 1 here; others lower this number by 1.
    """

    scale: float
    steps: int
    last_overflow: int
    hysteresis: int


class LossScale(DynamicLossScaler):
    """DeepSpeed's loss scaler, with what training needs in addition.

    DeepSpeed 0.19 divides the gradients of a step by the scale *after* its update: at the step
    after which the scale doubles, ZeRO 1 to 3 would take half of the gradient. Here a larger scale
    takes effect with the next loss. DeepSpeed also ends the process at an overflow of the smallest
    scale; here :attr:`overflowed_at_minimum` tells the training loop.

    Parameters
    ----------
    scaler : DynamicLossScaler
        The scaler to begin from, as DeepSpeed made it.
    """

    cur_scale: float

    def __init__(self, scaler: DynamicLossScaler) -> None:
        self.__dict__.update(scaler.__dict__)
        self.raise_error_at_min_scale = False
        self.next_scale = scaler.cur_scale
        self.overflowed_at_minimum = False

    def update_scale(self, overflow: bool) -> None:
        """Update the scale after the gradients of a step are known."""
        used = self.cur_scale
        self.overflowed_at_minimum = overflow and used <= self.min_scale
        super().update_scale(overflow)
        self.next_scale, self.cur_scale = self.cur_scale, used

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale; called at the start of each backward pass."""
        self.cur_scale = self.next_scale
        return super().scale_loss(loss)

    def state_dict(self) -> LossScaleState:
        """Return what a checkpoint stores."""
        return LossScaleState(
            scale=float(self.next_scale),
            steps=self.cur_iter,
            last_overflow=self.last_overflow_iter,
            hysteresis=self.cur_hysteresis,
        )

    def load_state_dict(self, state: LossScaleState) -> None:
        """Set the state to what :meth:`state_dict` returned."""
        self.cur_scale = self.next_scale = state.scale
        self.cur_iter, self.last_overflow_iter = state.steps, state.last_overflow
        self.cur_hysteresis = state.hysteresis


def replace_scaler(optimizer: Any) -> LossScale:
    """Give a ZeRO optimizer of DeepSpeed for float16 a :class:`LossScale`, and return it."""
    optimizer.loss_scaler = LossScale(optimizer.loss_scaler)
    return optimizer.loss_scaler
