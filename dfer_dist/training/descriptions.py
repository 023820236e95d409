"""Descriptions of the clips that a fold is trained on, as tokens of a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from dfer_dist.config.schema import Config
from dfer_dist.data.captions.store import clip_keys, descriptions
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index
from dfer_dist.models.backbone import load_tokenizer
from dfer_dist.models.tokenizer import CaptionTokenizer, TextTokenizer
from dfer_dist.utils.errors import UserError


class ClipDescriptions:
    """Descriptions of the training clips of a fold.

    Parameters
    ----------
    texts : dict of key to str
    num_clips : int
        Training clips of the fold, with or without a description.
    tokenizer : TextTokenizer
        That of the text tower.

    Attributes
    ----------
    sha256 : str
        Hash of the texts and their keys.
    """

    def __init__(self, texts: dict[str, str], num_clips: int, tokenizer: TextTokenizer) -> None:
        self.texts = texts
        self.num_clips = num_clips
        self.sha256 = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        self._tokenizer = CaptionTokenizer(tokenizer)

    def __str__(self) -> str:
        """Return how many clips have a description."""
        missing = self.num_clips - len(self.texts)
        text = f"descriptions: {len(self.texts)} of {self.num_clips} training clips have one"
        return f"{text}, {missing} have none" if missing else text

    def tokenize(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return tokens int64 [b, L] of clips and which of them have a description, bool [b]."""
        tokens = self._tokenizer([self.texts.get(key, "") for key in keys])
        return tokens, torch.tensor([key in self.texts for key in keys])


def read_descriptions(
    index: Index, clips: ClipSet, fold: int, config: Config, folds: FoldOverlay | None = None
) -> ClipDescriptions:
    """Return the English descriptions of ``clips``, on which fold ``fold`` is trained.

    Raises
    ------
    UserError
        If no clip has one, or ``data.descriptions`` does not select one of the set's sources.
    """
    keys = clip_keys(index, clips)
    texts = descriptions(index, keys, fold, folds=folds, source=config.data.descriptions)
    if not texts:
        raise UserError(
            f"none of the {len(keys)} clips that fold {fold} is trained on has a description: "
            "dfer describe makes some"
        )
    return ClipDescriptions(texts, len(keys), load_tokenizer(config.model.backbone))
