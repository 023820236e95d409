"""Tokenize class texts and descriptions of clips for a text tower."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

# Tokens that the text tower of OpenAI's CLIP can read, SOS and EOT included.
CONTEXT = 77
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TextTokenizer:
    """How a text tower reads a text.

    Attributes
    ----------
    encode : callable
        Returns the tokens of a text, without special ones.
    start, end : tuple of int
        Special tokens before and after a text.
    pad : int
        Token that fills the rest of a row.
    context_length : int
        Maximum number of tokens, special ones included.
    fills_context : bool
        Whether rows always have that many tokens: the tower sees the padding.
    """

    encode: Callable[[str], list[int]]
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int = 0
    context_length: int = CONTEXT
    fills_context: bool = False

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a text itself."""
        return self.context_length - len(self.start) - len(self.end)

    def stack(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return rows of tokens, padded to equal length, int64 [N, L]."""
        length = max(map(len, rows))
        if self.fills_context:
            length = self.context_length
        return torch.tensor([[*row] + [self.pad] * (length - len(row)) for row in rows])


@cache
def simple_tokenizer() -> SimpleTokenizer:
    """Return the tokenizer of OpenAI's CLIP; making one takes a tenth of a second."""
    return SimpleTokenizer()


def clip_tokenizer(context_length: int = CONTEXT, fills_context: bool = False) -> TextTokenizer:
    """Return how towers with the vocabulary of OpenAI's CLIP read a text."""
    simple = simple_tokenizer()
    start, end = (simple.sot_token_id,), (simple.eot_token_id,)
    return TextTokenizer(simple.encode, start, end, 0, context_length, fills_context)


class CaptionTokenizer:
    """Tokenize texts, cutting long ones after a whole sentence.

    If the first sentence is too long, its beginning is kept.

    Parameters
    ----------
    tokenizer : TextTokenizer, optional
        That of OpenAI's CLIP by default.
    """

    def __init__(self, tokenizer: TextTokenizer | None = None) -> None:
        self._tokenizer = tokenizer or clip_tokenizer()
        # Each text comes again in every epoch.
        self._cache: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return each text between its special tokens, and padding.

        An empty text becomes the special tokens alone.

        Returns
        -------
        int64 [N, L]
            L is the length of the longest, or the context length.
        """
        return self._tokenizer.stack([self._row(text) for text in texts])

    def _row(self, text: str) -> list[int]:
        if text not in self._cache:
            tokenizer = self._tokenizer
            self._cache[text] = [*tokenizer.start, *self._cut(text), *tokenizer.end]
        return self._cache[text]

    def _cut(self, text: str) -> list[int]:
        limit, kept = self._tokenizer.max_tokens, list[int]()
        for sentence in filter(None, _SENTENCE.split(text)):
            tokens = self._tokenizer.encode(sentence)
            if len(kept) + len(tokens) > limit:
                return kept or tokens[:limit]
            kept += tokens
        return kept
