"""What a prediction rests on: the weight of each frame, and the regions within it.

Both say what the model reads, not why it is right. They change with the random seed of a training,
and heat maps of networks with random weights can look convincing too (Adebayo et al., "Sanity
Checks for Saliency Maps", NeurIPS 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from dfer_dist.config.schema import TemporalPool
from dfer_dist.data.folds.clips import clips_with_keys
from dfer_dist.distributed.process_group import Ranks, choose_device
from dfer_dist.evaluation.eval_clips import find_eval_clips
from dfer_dist.evaluation.evaluate import build_test_loader, load_model, open_checkpoint
from dfer_dist.models.build import inference_dtype
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.temporal import TemporalBlock, TemporalTransformer
from dfer_dist.models.towers.image import tower_parts
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class Explanation:
    """What the prediction of a clip of T frames rests on.

    Attributes
    ----------
    predicted : int
        The class that is explained, by default the one with the highest logit.
    weights : float32 array [T]
        Share of each frame in the clip's feature; their sum is 1.
    heat : float32 array [T, G, G]
        Importance of each patch of each frame, 0 to 1 over the clip.
    """

    predicted: int
    weights: np.ndarray
    heat: np.ndarray


class ExplainedClip(NamedTuple):
    """Frames that the model read, uint8 [T, S, S, 3], and what its prediction rests on."""

    frames: np.ndarray
    explanation: Explanation


def explain_clip(
    model: DFERCLIP,
    frames: Tensor,
    text_features: Tensor | None = None,
    label: int | None = None,
) -> Explanation:
    """Explain a class of a clip.

    Frames weigh what the class token of the temporal transformer attends to them: attention
    rollout over its layers and heads (Abnar & Zuidema, "Quantifying Attention Flow in
    Transformers", ACL 2020), the mean of the frames' tokens with ``temporal_pool=mean``, and all
    the same without a transformer.

    The heat of a patch is the sum over channels of activation times gradient of the class's logit,
    negative values cut off (HiResCAM: Draelos & Carin, arXiv 2011.08891), after the first norm of
    the image tower's last block. Before the norm it would be about 0: the norm undoes what makes a
    token larger.

    Parameters
    ----------
    model : DFERCLIP
        In evaluation mode. Its weights get no gradient, and from now on it does not recompute
        activations.
    frames : uint8 Tensor [M T, 3, S, S]
        The frames of the clip, then T images of each of ``model.modalities``.
    text_features : Tensor, optional
        As for :meth:`DFERCLIP.forward`.
    label : int, optional
        The class; by default the most probable one.

    Raises
    ------
    UserError
        If the backbone is a video tower, which mixes the frames.
    """
    if model.is_video:
        raise UserError("a video tower mixes the frames of a clip: none can be explained alone")
    model.image.set_grad_checkpointing(False)
    if isinstance(model.temporal, TemporalTransformer):
        model.temporal.recompute = False
    with torch.enable_grad(), _frozen(model), _record_tokens(model) as tokens:
        logits = model(frames[None], text_features)[0]
        predicted = int(logits.argmax())
        if label is not None:
            predicted = label
        logits[predicted].backward()
    count = len(frames) // model.num_inputs
    weights = _frame_weights(model.temporal, tokens.temporal, count)
    return Explanation(predicted, weights, _heat(tokens.image, count))


def explain_test_clips(path: Path, classes: Mapping[str, str]) -> dict[str, ExplainedClip]:
    """Explain predictions of test clips of a checkpoint: of each clip the first view.

    Parameters
    ----------
    path : Path
        A checkpoint's folder. The clips are of its own fold.
    classes : mapping of str to str
        The class to explain by key of the clip.

    Raises
    ------
    UserError
        If the checkpoint, its pretrained weights or its data are missing, a clip is damaged, or as
        :func:`explain_clip`.
    """
    saved, config, index = open_checkpoint(path, [])
    # a few clips are read before workers would have started
    config.data.workers = 0
    chosen = find_eval_clips(saved, config, index)
    index, labels = chosen.index, chosen.index.classes
    clips = clips_with_keys(index, chosen.part.test, classes)
    device = choose_device(config.train.device)
    model = load_model(saved, config, labels)
    model = model.to(device, inference_dtype(config.train.precision, device))
    with torch.no_grad():
        text = model.text_features()
    found: dict[str, ExplainedClip] = {}
    for batch in build_test_loader(config, index, clips, Ranks(0, 1, 0, device)):
        if batch.lost:
            raise UserError(f"{batch.lost[0]}: copy the shard again")
        views = batch.pixels(device).unflatten(1, (batch.views, -1))[:, 0]
        for key, view in zip(batch.keys, views, strict=True):
            if key and key not in found:
                label = labels.index(classes[key])
                explanation = explain_clip(model, view, text, label)
                frames = view[: len(explanation.weights)].permute(0, 2, 3, 1).cpu().numpy()
                found[key] = ExplainedClip(frames, explanation)
    return found


def _heat(tokens: Tensor | None, count: int) -> np.ndarray:
    """Return activation times gradient of patches as 0..1: [N, L, D] -> float32 [count, G, G]."""
    assert tokens is not None and tokens.grad is not None, "the last block was called"
    heat = (tokens * tokens.grad).detach()[:count].float().sum(-1).relu()
    side = math.isqrt(heat.shape[1])
    # Class and register tokens come before the patches.
    heat = heat[:, heat.shape[1] - side**2 :].unflatten(1, (side, side))
    heat /= heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
    return heat.cpu().numpy()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight get a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


@dataclass
class _Tokens:
    """Tokens in the last block of the image tower, and before each temporal block."""

    image: Tensor | None
    temporal: list[Tensor]


@contextmanager
def _record_tokens(model: DFERCLIP) -> Iterator[_Tokens]:
    tokens = _Tokens(None, [])

    def keep_image(_: nn.Module, args: object, output: Tensor) -> Tensor:
        tokens.image = output.detach().requires_grad_()
        return tokens.image

    def keep_temporal(_: nn.Module, args: tuple[Any, ...]) -> None:
        tokens.temporal.append(args[0].detach())

    last: Any = tower_parts(model.image).blocks[-1]
    norm = last.ln_1 if hasattr(last, "ln_1") else last.norm1
    hooks = [norm.register_forward_hook(keep_image)]
    if isinstance(model.temporal, TemporalTransformer):
        hooks += [block.register_forward_pre_hook(keep_temporal) for block in model.temporal.blocks]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _frame_weights(temporal: nn.Module, inputs: list[Tensor], count: int) -> np.ndarray:
    """Return attention rollout from the clip's feature to the frames, float32 [T].

    ``inputs`` are the tokens [M, 1 + T, D] before each block; the first row of M is of the frames.
    """
    if not isinstance(temporal, TemporalTransformer):
        return np.full(count, 1 / count, np.float32)
    rollout = torch.eye(1 + count, device=inputs[0].device)
    for block, tokens in zip(temporal.blocks, inputs, strict=True):
        assert isinstance(block, TemporalBlock)
        own = (_attention(block, tokens[:1]) + torch.eye(1 + count, device=tokens.device)) / 2
        rollout = own @ rollout
    is_mean = temporal.pool is TemporalPool.mean
    read = rollout[1:].mean(0) if is_mean else rollout[0]
    return (read[1:] / read[1:].sum()).cpu().numpy()


def _attention(block: TemporalBlock, tokens: Tensor) -> Tensor:
    """Return the attention of a block, the mean over its heads: [1, N, D] -> float32 [N, N]."""
    qkv = block.qkv(block.norm1(tokens))
    q, k, _ = rearrange(qkv[0], "n (three h d) -> three h n d", three=3, h=block.heads).float()
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(0)
