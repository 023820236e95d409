"""Tokenize class texts and descriptions of clips for CLIP's text tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

# Tokens that the text tower of OpenAI's CLIP can read, SOS and EOT included.
CONTEXT = 77
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@cache
def clip_tokenizer() -> SimpleTokenizer:
    """Return the tokenizer of OpenAI's CLIP; making one takes a tenth of a second."""
    return SimpleTokenizer()


class CaptionTokenizer:
    """Tokenize texts, cutting long ones after a whole sentence.

    If the first sentence is too long, its beginning is kept.

    Parameters
    ----------
    length : int
        Maximum number of tokens of a text, SOS and EOT included.
    """

    def __init__(self, length: int = CONTEXT) -> None:
        self.length = length
        self._tokenizer = clip_tokenizer()
        # Each text comes again in every epoch.
        self._cache: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return SOS, the text, EOT and zeros of each text.

        An empty text becomes SOS and EOT.

        Returns
        -------
        int64 [N, L]
            L is the length of the longest.
        """
        rows = [self._row(text) for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def _row(self, text: str) -> list[int]:
        if text not in self._cache:
            tokenizer = self._tokenizer
            self._cache[text] = [tokenizer.sot_token_id, *self._cut(text), tokenizer.eot_token_id]
        return self._cache[text]

    def _cut(self, text: str) -> list[int]:
        limit, kept = self.length - 2, list[int]()
        for sentence in filter(None, _SENTENCE.split(text)):
            tokens = self._tokenizer.encode(sentence)
            if len(kept) + len(tokens) > limit:
                return kept or tokens[:limit]
            kept += tokens
        return kept
