"""Count the operations of a model's passes on the ``meta`` device, without data or weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dfer_dist.config.schema import Config, Supervision
from dfer_dist.models.build import build_untrained, resolve_image_size
from dfer_dist.models.dferclip import DFERCLIP

META = torch.device("meta")


def build_meta_model(config: Config, classes: Sequence[str]) -> DFERCLIP:
    """Return the model of ``config`` on the ``meta`` device, without pretrained weights.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.models.build.build_untrained`.
    """
    with META:
        return build_untrained(config, classes)


def empty_frames(model: DFERCLIP, config: Config, clips: int) -> Tensor:
    """Return the input of ``clips`` clips on the ``meta`` device."""
    size = resolve_image_size(config)
    shape = (clips, model.num_inputs * config.data.num_frames, 3, size, size)
    return torch.empty(shape, dtype=torch.uint8, device=META)


def model_flops(config: Config, classes: Sequence[str], clips: int, train: bool) -> int:
    """Return the operations of one micro batch of ``clips`` clips.

    In training they are of the forward and the backward pass, otherwise of a test batch without
    the class texts. A multiplication and an addition are two. Attention counts as its products, two
    forward and four backward, whatever kernel computes it; recomputation in a kernel or by
    activation checkpointing does not count. In training on descriptions each clip has one of full
    length.

    Raises
    ------
    UserError
        As :func:`build_meta_model`.
    """
    kept = replace(config.model, checkpoint_image=False, checkpoint_temporal=False)
    # The initialization must not take random numbers of the caller's.
    with torch.random.fork_rng(devices=[]):
        model = build_meta_model(replace(config, model=kept), classes)
        frames = empty_frames(model, config, clips)
        if not train:
            # The counter takes a parameter that a module is called with for one with a gradient.
            model.requires_grad_(False)
        with torch.set_grad_enabled(train):
            text = None if train else model.eval().text_features()
            with FlopCounterMode(display=False) as counter:
                if train:
                    _train(model, config, frames)
                else:
                    model.outputs(frames, text)
    return counter.get_total_flops()


def _train(model: DFERCLIP, config: Config, frames: Tensor) -> None:
    """Run both passes of a micro batch."""
    objective, tokens = config.train.objective, None
    if objective is not Supervision.labels:
        assert model.text is not None, "config.checks refuses descriptions without a text tower"
        length = model.text.context_length
        tokens = torch.empty((len(frames), length), dtype=torch.int64, device=META)
    with_logits = objective is not Supervision.descriptions
    outputs = model.outputs(frames, tokens=tokens, with_logits=with_logits)
    torch.stack([own.sum() for own in outputs if own is not None]).sum().backward()
