"""Learned context tokens around the class texts (CoOp: Zhou et al., IJCV 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from dfer_dist.config.schema import ModelConfig, TokenPosition
from dfer_dist.models.tokenizer import TextTokenizer
from dfer_dist.utils.errors import UserError


def tokenize(
    texts: Sequence[str], context_tokens: int, tokenizer: TextTokenizer
) -> tuple[Tensor, list[int]]:
    """Tokenize texts, with placeholders for the context.

    Returns
    -------
    tokens : int64 [C, L]
        The start, ``context_tokens`` placeholders, the text, the end, padding. L is the length of
        the longest, or the context length if the tower sees the padding.
    lengths : list of int
        Tokens of each text alone.

    Raises
    ------
    UserError
        If a text and the context do not fit into the context length.
    """
    limit = tokenizer.max_tokens - context_tokens
    encoded = [tokenizer.encode(text) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) > limit:
            raise UserError(
                f"the text of a class has {len(ids)} tokens, the text tower reads at most {limit}: "
                f"shorten '{text[:40]}…'"
            )
    placeholders = [tokenizer.pad] * context_tokens
    rows = [[*tokenizer.start, *placeholders, *ids, *tokenizer.end] for ids in encoded]
    return tokenizer.stack(rows), [len(ids) for ids in encoded]


class PromptLearner(nn.Module):
    """Embedded prompts: SOS, class text and EOT, which are fixed, and the trained ``context``.

    Prompts are only as long as the longest of them where the text tower is causal: EOT does not see
    what follows it. For towers that see the padding they have the context length.

    Parameters
    ----------
    texts : sequence of C, each a sequence of str
        One or more sentences of each class, S in all. Nothing is appended to them.
    embedding : nn.Embedding
        The text tower's token embedding; it is not kept.
    tokenizer : TextTokenizer
        That of the text tower.
    cfg : ModelConfig
        Has the number of context tokens, their place, and whether they are class-specific.

    Attributes
    ----------
    context : Parameter, [C, n, D] if class-specific, else [n, D]; None without context tokens
        Initialized from N(0, 0.02). The sentences of a class share it.
    counts : list of C int
        Sentences of each class.
    eot : int64 [S]
        Position of EOT in each prompt.
    """

    context: nn.Parameter | None
    tokens: Tensor
    eot: Tensor
    order: Tensor
    prefix: Tensor
    suffix: Tensor

    def __init__(
        self,
        texts: Sequence[Sequence[str]],
        embedding: nn.Embedding,
        tokenizer: TextTokenizer,
        cfg: ModelConfig,
    ) -> None:
        super().__init__()
        self.counts = [len(own) for own in texts]
        tokens, lengths = tokenize(list(chain(*texts)), cfg.context_tokens, tokenizer)
        shape = [cfg.context_tokens, embedding.embedding_dim]
        if cfg.class_specific:
            shape.insert(0, len(texts))
        start = 0.02 * torch.randn(shape)
        self.context = nn.Parameter(start) if cfg.context_tokens else None
        self.position, self.context_tokens = cfg.token_position, cfg.context_tokens
        # Computed from the texts and the token embedding, so checkpoints do not need them.
        self.register_buffer("tokens", tokens, persistent=False)
        self.start = len(tokenizer.start)
        around = self.start + len(tokenizer.end) + cfg.context_tokens
        eot = torch.tensor([around + length - 1 for length in lengths])
        self.register_buffer("eot", eot, persistent=False)
        order = _order(cfg, self.start, lengths, tokens.shape[1])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("prefix", torch.empty(0), persistent=False)
        self.register_buffer("suffix", torch.empty(0), persistent=False)
        self.embed(embedding)

    @torch.no_grad()
    def embed(self, embedding: nn.Embedding) -> None:
        """Embed the fixed tokens again, after the token embedding has changed."""
        rows = embedding(self.tokens)
        self.prefix = rows[:, : self.start]
        self.suffix = rows[:, self.start + self.context_tokens :]

    def forward(self) -> Tensor:
        """Return embedded prompts [S, L, D], class by class."""
        if self.context is None:
            return torch.cat([self.prefix, self.suffix], dim=1)
        context: Tensor = self.context
        if context.dim() == 3:
            context = torch.cat(
                [c.expand(n, -1, -1) for c, n in zip(context.split(1), self.counts, strict=True)]
            )
        context = context.expand(len(self.prefix), -1, -1)
        # ZeRO-3 does not cast buffers.
        prefix, suffix = self.prefix.to(context.dtype), self.suffix.to(context.dtype)
        prompts = torch.cat([prefix, context, suffix], dim=1)
        if self.position is TokenPosition.end:
            return prompts
        return prompts.gather(1, self.order[..., None].expand(-1, -1, prompts.shape[-1]))


def _order(cfg: ModelConfig, start: int, lengths: Sequence[int], longest: int) -> Tensor:
    """Return for each prompt the order of its tokens, as indices into the layout 'end'.

    As in CoOp, 'front' puts the class text before the context, 'middle' between its halves (the
    first rounded down). The first ``start`` tokens stay where they are.

    Returns
    -------
    int64 [C, L]
    """
    before = {
        TokenPosition.end: cfg.context_tokens,
        TokenPosition.middle: cfg.context_tokens // 2,
        TokenPosition.front: 0,
    }[cfg.token_position]
    context, rows = range(start, start + cfg.context_tokens), []
    for length in lengths:
        rest = range(start + cfg.context_tokens, longest)
        kept = [*range(start), *context[:before]]
        rows.append([*kept, *rest[:length], *context[before:], *rest[length:]])
    return torch.tensor(rows)
