"""Descriptions of clips as CLIP's text tower reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

CONTEXT = 77  # the most tokens that the text tower of OpenAI's CLIP reads, SOS and EOT among them
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class CaptionTokenizer:
    """Makes tokens of texts. One that is too long ends with the last sentence that is whole; of a first sentence that is too long, the beginning is read.

    Parameters
    ----------
    length : int
        The most tokens of a text, SOS and EOT among them.
    """

    def __init__(self, length: int = CONTEXT) -> None:
        self.length = length
        self._tokenizer = SimpleTokenizer()
        self._known: dict[str, list[int]] = {}  # a text comes again each epoch

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """SOS, the text, EOT, zeros: int64 [N, L], L the length of the longest. Of an empty text SOS and EOT."""
        rows = [self._row(text) for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def _row(self, text: str) -> list[int]:
        if text not in self._known:
            tokenizer = self._tokenizer
            self._known[text] = [tokenizer.sot_token_id, *self._cut(text), tokenizer.eot_token_id]
        return self._known[text]

    def _cut(self, text: str) -> list[int]:
        room, kept = self.length - 2, list[int]()
        for sentence in filter(None, _SENTENCE.split(text)):
            tokens = self._tokenizer.encode(sentence)
            if len(kept) + len(tokens) > room:
                return kept or tokens[:room]
            kept += tokens
        return kept
