"""Clips held against their descriptions over the whole batch of all ranks, without labels.

The loss is InfoNCE in both directions, as CLIP's (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, section 2.3): of all descriptions of a step a clip is to find its own, and a description its clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dfer_dist.config.schema import Config
from dfer_dist.data.captions.store import clip_keys, descriptions
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index
from dfer_dist.models.backbone import clip_config
from dfer_dist.models.tokenizer import CONTEXT, CaptionTokenizer
from dfer_dist.utils.errors import UserError


class ClipTexts:
    """Descriptions of the clips that a fold is trained on.

    Parameters
    ----------
    texts : dict of key to str
    clips : int
        Clips that the fold is trained on, with or without a description.
    length : int
        The most tokens that the text tower reads.

    Attributes
    ----------
    sha256 : str
        Of the texts and their keys.
    """

    def __init__(self, texts: dict[str, str], clips: int, length: int) -> None:
        self.texts, self.clips = texts, clips
        self.sha256 = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        self._reader = CaptionTokenizer(length)

    def __str__(self) -> str:
        rest = self.clips - len(self.texts)
        return (
            f"descriptions: {len(self.texts)} of {self.clips} training clips have one"
            + f", {rest} are held against none" * bool(rest)
        )

    def of(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the text tower reads for clips: tokens int64 [b, L], and which of them have a description, bool [b]."""
        return self._reader([self.texts.get(key, "") for key in keys]), torch.tensor(
            [key in self.texts for key in keys]
        )


def read_clip_texts(index: Index, clips: ClipSet, fold: int, config: Config) -> ClipTexts:
    """Descriptions in English of the clips ``clips``, on which fold ``fold`` is trained.

    Raises
    ------
    UserError
        If none of them has one, or ``data.descriptions`` does not choose one of the sources that the set has.
    """
    keys = clip_keys(index, clips)
    texts = descriptions(index, keys, fold, source=config.data.descriptions)
    if not texts:
        raise UserError(
            f"none of the {len(keys)} clips that fold {fold} is trained on has a description: dfer describe makes some"
        )
    return ClipTexts(
        texts,
        len(keys),
        clip_config(config.model.backbone)["text_cfg"].get("context_length", CONTEXT),
    )


def contrast(video: Tensor, description: Tensor, described: Tensor, temperature: float) -> Tensor:
    """Loss of each clip of this rank, held against all clips and descriptions of the step. Collective, the backward pass as well.

    The mean over the clips of all ranks is the loss of the whole batch, and the mean of their gradients its gradient: they do not depend on
    the number of ranks. A clip without a description counts as zero and is nobody's wrong answer.

    Parameters
    ----------
    video, description : float32 [b, D]
        Of length 1; on each rank as many.
    described : bool [b]
        Which clips have a description.

    Returns
    -------
    float32 [b]
        The mean of two cross-entropies, nats.
    """
    size, width = video.shape
    every = _gather(torch.cat([video, description, described[:, None].to(video)], dim=1))
    videos, texts, there = every.split([width, width, 1], dim=1)
    own = torch.arange(size, device=video.device) + size * _rank()
    losses = torch.zeros_like(video[:, 0])
    for mine, all_others in ((video, texts), (description, videos)):
        logits = (mine @ all_others.t() / temperature).masked_fill(
            there.t() == 0, torch.finfo(torch.float32).min / 4
        )
        losses = losses + F.cross_entropy(logits, own, reduction="none") / 2
    return torch.where(described, losses, 0.0)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _gather(own: Tensor) -> Tensor:
    """The rows of all ranks, in their order: [b, D] -> [W b, D]; gradients of all ranks come back."""
    return _Gather.apply(own) if _world() > 1 else own


class _Gather(torch.autograd.Function):
    """All-gather. Every rank's loss depends on a row, so its gradient is the sum of what all of them say of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(_world())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(_world())[_rank()]
