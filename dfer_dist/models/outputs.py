"""What a training loss reads of a model, and the module that computes it inside DeepSpeed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from dfer_dist.models.dferclip import DFERCLIP


class ModelOutputs(NamedTuple):
    """Logits of each polarity, and features that are compared with descriptions.

    A named tuple, because DeepSpeed looks for tensors in tuples and not in dataclasses.

    Attributes
    ----------
    positive, negative : float32 [B, C], optional
        Logits of the texts that say what a class is, and of those that say what it is not; these
        are negated, so in both the true class should have the highest.
    video, description : float32 [B, D], optional
        Normalized features of the clips and of their descriptions.
    """

    positive: Tensor | None = None
    negative: Tensor | None = None
    video: Tensor | None = None
    description: Tensor | None = None


class OutputsModule(nn.Module):
    """The module for ``deepspeed.initialize``: its forward pass is ``DFERCLIP.outputs``.

    DeepSpeed gathers weights of ZeRO-3 and prepares the backward pass in the forward pass of the
    module that it wraps, so a loss cannot call another method of the model.
    """

    def __init__(self, model: DFERCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        frames: Tensor,
        text_features: Tensor | None = None,
        tokens: Tensor | None = None,
        with_logits: bool = True,
    ) -> ModelOutputs:
        """Return :meth:`~dfer_dist.models.dferclip.DFERCLIP.outputs` of the same arguments."""
        return self.model.outputs(frames, text_features, tokens, with_logits)
