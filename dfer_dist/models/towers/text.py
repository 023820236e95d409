"""Text towers, fed with embedded prompts: those of open_clip and those of the Hugging Face Hub."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from dfer_dist.models.attention import use_explicit_attention
from dfer_dist.models.cpu_kernels import use_fast_blocks


class TextTower(nn.Module):
    """A text transformer of open_clip, in all forms that its configurations have.

    It reads the token at ``eot`` (CLIP), the first or the last position (SigLIP, CLIPA), or a class
    token after the text (CoCa).

    Parameters
    ----------
    source : open_clip.CLIP or TextTransformer
        Its text modules are shared, not copied.
    """

    attn_mask: Tensor | None
    cls_emb: nn.Parameter | None

    def __init__(self, source: open_clip.CLIP | TextTransformer) -> None:
        super().__init__()
        self.token_embedding = source.token_embedding
        self.positional_embedding = source.positional_embedding
        self.transformer = source.transformer
        self.ln_final = source.ln_final
        self.text_projection = source.text_projection
        self.cls_emb = getattr(source, "cls_emb", None)
        self.register_buffer("attn_mask", source.attn_mask, persistent=False)
        is_clip = isinstance(source, open_clip.CLIP)
        self.pool_type = source.text_pool_type if is_clip else source.pool_type
        self.eos_id = source.text_eos_id if is_clip else source.eos_id

    @property
    def context_length(self) -> int:
        """Maximum number of tokens."""
        return len(self.positional_embedding) - (self.cls_emb is not None)

    def find_eot(self, tokens: Tensor) -> Tensor:
        """Return the position of the end-of-text token: int64 [N, L] -> int64 [N]."""
        if self.pool_type == "eos":
            return (tokens == self.eos_id).int().argmax(dim=-1)
        # EOT has the highest id.
        return tokens.argmax(dim=-1)

    def forward(self, prompts: Tensor, eot: Tensor) -> Tensor:
        """Return the features of embedded prompts.

        Parameters
        ----------
        prompts : [C, L, D]
            L is at most the context length. Where attention is causal, tokens after EOT change
            nothing; otherwise L is the context length.
        eot : int64 [C]
            Position of the end-of-text token.

        Returns
        -------
        [C, E], not normalized
        """
        # ZeRO-3 does not cast buffers, from which fixed prompts come.
        x = prompts.to(self.positional_embedding.dtype)
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], dim=1)
        length = x.shape[1]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        if mask is not None and self.cls_emb is not None:
            # As trained, CoCa's tokens see one position after EOT.
            is_padding = torch.arange(length, device=eot.device) > eot[:, None] + 1
            mask = mask.masked_fill(is_padding[:, None, None], -torch.inf)
        x = self.transformer(x + self.positional_embedding[:length], attn_mask=mask)
        # The norm acts on each token alone, so it is enough to normalize the one that is read.
        x = self.ln_final(x[torch.arange(len(x), device=x.device), self._read_at(eot, length)])
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection

    def _read_at(self, eot: Tensor, length: int) -> Tensor:
        if self.cls_emb is not None or self.pool_type == "last":
            return torch.full_like(eot, length - 1)
        return torch.zeros_like(eot) if self.pool_type == "first" else eot


def prepare_text(tower: TextTower) -> None:
    """Replace layers of a text tower so that LoRA, ZeRO-3 and the CPU can work with it, in place.

    Its features stay the same up to rounding.
    """
    use_explicit_attention(tower.transformer)
    use_fast_blocks(tower.transformer)


class HubTextTower(nn.Module):
    """A text transformer of the library transformers, as open_clip's ``HFTextEncoder`` uses it.

    Parameters
    ----------
    source : open_clip.hf_model.HFTextEncoder
        Its modules are shared, not copied.
    context_length : int
        Maximum number of tokens.
    """

    def __init__(self, source: Any, context_length: int) -> None:
        super().__init__()
        self.transformer, self.pooler, self.proj = source.transformer, source.pooler, source.proj
        self.pad_id, self.context_length = source.config.pad_token_id, context_length
        self.train(False)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.transformer.get_input_embeddings()

    def train(self, mode: bool = True) -> HubTextTower:
        """Stay in evaluation mode: the tower is frozen, and its dropout has no seed of ours."""
        return super().train(False)

    def find_eot(self, tokens: Tensor) -> Tensor:
        """Return the position of the last token of each text: int64 [N, L] -> int64 [N]."""
        return (tokens != self.pad_id).sum(dim=-1) - 1

    def forward(self, prompts: Tensor, eot: Tensor) -> Tensor:
        """Return the features of embedded prompts.

        Parameters
        ----------
        prompts : [C, L, D]
        eot : int64 [C]
            Position of the last token of each text; what follows is masked.

        Returns
        -------
        [C, E], not normalized
        """
        dtype, length = next(self.transformer.parameters()).dtype, prompts.shape[1]
        is_text = torch.arange(length, device=eot.device) <= eot[:, None]
        # For each pair of tokens: the library reads the values of a mask of tokens on the host.
        scores = torch.zeros(len(eot), 1, length, length, dtype=dtype, device=eot.device)
        scores = scores.masked_fill(~is_text[:, None, None], torch.finfo(dtype).min)
        out = self.transformer(inputs_embeds=prompts.to(dtype), attention_mask=scores)
        return self.proj(self.pooler(out, is_text.to(dtype)))
