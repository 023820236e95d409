"""Count the memory and operations of one training step on the ``meta`` device.

The real model runs without data. A dispatch mode observes every operation of the forward and the
backward pass, so temporary tensors are counted as well as those kept for the backward pass. All
sizes grow linearly with the micro batch, so two runs determine all.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dfer_dist.config.schema import Config, Supervision
from dfer_dist.models import attention
from dfer_dist.models.build import model_dtype
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.flops import META, build_meta_model, empty_frames
from dfer_dist.models.tuning import param_groups
from dfer_dist.training.losses import Objective

# Micro batches that are counted; one clip alone takes other code paths in places.
_BATCHES = (2, 3)


@dataclass(frozen=True)
class Linear:
    """A size that grows linearly with the micro batch: ``fixed + clip * micro``.

    Both are numbers, or arrays of one length.
    """

    fixed: Any
    clip: Any

    def __call__(self, micro: int) -> Any:
        """Return the size for a micro batch."""
        return self.fixed + self.clip * micro

    @classmethod
    def through(cls, values: Sequence[Any]) -> Linear:
        """Return the line through the values at :data:`_BATCHES`."""
        clip = (values[1] - values[0]) / (_BATCHES[1] - _BATCHES[0])
        return cls(values[0] - clip * _BATCHES[0], clip)


@dataclass(frozen=True)
class StepCosts:
    """One micro batch, forward and backward.

    Attributes
    ----------
    groups : dict of group to int
        Trained parameters.
    frozen, unread : int
        Parameters that are not trained, and those among them that no forward pass reads (the token
        embedding, without descriptions).
    large : int
        Parameters' tensors that ZeRO-3 gathers: it leaves those of up to 100,000 numbers whole on
        every rank.
    flops : Linear
        Floating-point operations (a multiplication and an addition are two), recomputation
        included.
    live : Linear
        Bytes of activations and temporary tensors after each operation, an array over time, without
        weights and gradients.
    graded : ndarray
        Parameters that have a gradient after each operation.
    """

    groups: dict[str, int]
    frozen: int
    unread: int
    large: int
    flops: Linear
    live: Linear
    graded: np.ndarray

    @property
    def trained(self) -> int:
        """Trained parameters of all groups."""
        return sum(self.groups.values())


def count_step(config: Config, classes: Sequence[str], fused_attention: bool) -> StepCosts:
    """Count a step of the model of ``config``.

    Parameters
    ----------
    classes : sequence of str
        In label order.
    fused_attention : bool
        As on a GPU, where the attention of a whole layer is one kernel that keeps no scores; the
        CPU computes that of open_clip's towers in parts.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.models.flops.build_meta_model`.
    """
    model = build_meta_model(config, classes).to(model_dtype(config.train.precision))
    objective = Objective(config, [1] * len(classes), META, classes)
    flops, lives = [], []
    for micro in _BATCHES:
        with _fused_kernels(everywhere=fused_attention), _LiveBytes(model) as meter:
            _step(model, objective, config, micro)
        lives.append(np.array(meter.live, dtype=np.float64))
        # The counter knows plain attention only; a fused kernel computes the same products.
        with FlopCounterMode(display=False) as counter:
            _step(model, objective, config, micro)
        flops.append(counter.get_total_flops())
    groups = {name: sum(p.numel() for _, p in own) for name, own in param_groups(model).items()}
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    unread, large = 0, sum(p.numel() > 100_000 for p in model.parameters())
    # Without descriptions, the token embedding is not read.
    if model.text is not None and config.train.objective is Supervision.labels:
        unread = model.text.token_embedding.weight.numel()
        large -= 1
    return StepCosts(
        groups=groups,
        frozen=frozen,
        unread=unread,
        large=large,
        flops=Linear.through(flops),
        live=Linear.through(lives),
        graded=np.array(meter.graded),
    )


def _step(model: DFERCLIP, objective: Objective, config: Config, micro: int) -> None:
    """Run a micro batch. In training on descriptions each clip has one of full length.

    Features of other ranks, a few kilobytes, are left out.
    """
    frames = empty_frames(model, config, micro)
    labels = torch.empty(micro, dtype=torch.int64, device=META)
    valid = torch.empty(micro, dtype=torch.bool, device=META)
    tokens = has_text = None
    if config.train.objective is not Supervision.labels:
        assert model.text is not None, "config.checks refuses descriptions without a text tower"
        length = model.text.context_length
        tokens, has_text = torch.empty((micro, length), dtype=torch.int64, device=META), valid
    outputs = model.outputs(frames, tokens=tokens, with_logits=objective.uses_labels)
    objective(outputs, labels, valid, has_text).mean().backward()
    model.zero_grad(set_to_none=True)


class _LiveBytes(TorchDispatchMode):
    """Bytes of live tensors after each operation, without parameters, buffers and gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live: list[int] = []
        self.graded: list[int] = []
        self._now, self._done = 0, 0
        self._keep = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        self._known = {id(storage) for storage in self._keep}
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._take_gradient)

    def _take_gradient(self, p: Tensor) -> None:
        self._done += p.numel()
        p.grad = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self._note()
        return out

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        # The last gradient comes after the last operation.
        self._note()

    def _note(self) -> None:
        self.live.append(self._now)
        self.graded.append(self._done)

    def _count(self, storage: torch.UntypedStorage) -> None:
        # torch gives a storage one Python object for as long as it lives.
        if id(storage) not in self._known:
            self._known.add(id(storage))
            self._now += storage.nbytes()
            weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


class _FusedAttention(torch.autograd.Function):
    """A fused attention kernel in its sizes alone.

    It keeps its inputs, its output, and a float32 for each query and head.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(
            q, k, v, out, torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def _fused_kernels(everywhere: bool) -> Iterator[None]:
    """Count a call of torch's fused attention as a kernel, which on ``meta`` it is not.

    Towers of timm and transformers call it on all devices, and those of open_clip ``everywhere``,
    as on a GPU.
    """
    plain = F.scaled_dot_product_attention
    own = attention.attend, attention.uses_fused_kernel

    def fused(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = args[0] if args else kwargs.get("attn_mask")
        # No kernel has a gradient for a mask.
        if mask is not None and mask.requires_grad:
            return plain(q, k, v, *args, **kwargs)
        return _FusedAttention.apply(q, k, v)

    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    if everywhere:
        attention.attend = lambda q, k, v, mask=None: _FusedAttention.apply(q, k, v)
        attention.uses_fused_kernel = lambda *qkv: True
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
        attention.attend, attention.uses_fused_kernel = own
