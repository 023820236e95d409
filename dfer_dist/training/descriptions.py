"""Descriptions of the clips that a fold is trained on, as tokens of a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from dfer_dist.config.schema import Config
from dfer_dist.data.captions.store import descriptions
from dfer_dist.data.folds.clips import clips_of_set, fold_numbers
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.loading.sampler import ClipSet, clip_keys
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import JointIndex, own_fold
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
    texts, name = dict[str, str](), config.data.descriptions
    if isinstance(index, JointIndex):
        for number, start in enumerate(index.starts):
            own, own_folds = index.one_set(number), None if number else folds
            keys = clip_keys(own, clips_of_set(index, clips, number))
            own_number = own_fold(own.name, fold_numbers(own, own_folds), fold)
            found = descriptions(own, keys, own_number, folds=own_folds, source=name)
            texts |= {index.clip_name(start, key): text for key, text in found.items()}
    else:
        texts = descriptions(index, clip_keys(index, clips), fold, folds=folds, source=name)
    if not texts:
        raise UserError(
            f"none of the {len(clips)} clips that fold {fold} is trained on has a description: "
            "dfer describe makes some"
        )
    return ClipDescriptions(texts, len(clips), load_tokenizer(config.model.backbone))
