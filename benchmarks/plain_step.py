"""A plain training step, which ``dfer bench step`` compares with.

One process, float32, unchanged PyTorch and open_clip.

The model is DFER-CLIP's, with the text tower reading all of its 77 tokens for every class at every
step, as in the released training script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainModel(nn.Module):
    """Frames float32 [B, T, 3, S, S] in 0..1 -> logits [B, C]."""

    def __init__(
        self, sizes: dict[str, Any], texts: Sequence[str], frames: int, context: int
    ) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**sizes)
        width = self.clip.visual.output_dim
        layer = nn.TransformerEncoderLayer(
            width, 8, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.temporal = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, frames + 1, width))
        embedding = self.clip.token_embedding.embedding_dim
        self.context = nn.Parameter(0.02 * torch.randn(len(texts), context, embedding))
        prompts = [" ".join(["X"] * context) + " " + text for text in texts]
        self.register_buffer("tokens", open_clip.tokenize(prompts))
        self.clip.requires_grad_(False)
        self.clip.visual.requires_grad_(True)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits of frames."""
        features = self.clip.visual(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        x = torch.cat([self.cls.expand(len(frames), -1, -1), features], 1) + self.pos
        video = F.normalize(self.temporal(x)[:, 0], dim=-1)
        return video @ F.normalize(self._texts(), dim=-1).t() / 0.01

    def _texts(self) -> Tensor:
        clip = self.clip
        x = clip.token_embedding(self.tokens)
        x = torch.cat([x[:, :1], self.context, x[:, 1 + self.context.shape[1] :]], 1)
        x = x + clip.positional_embedding
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
        return x[torch.arange(len(x)), self.tokens.argmax(-1)] @ clip.text_projection


class PlainStep:
    """A model with SGD: its training step and its test batch."""

    def __init__(
        self,
        sizes: dict[str, Any],
        texts: Sequence[str],
        frames: int,
        context: int,
        device: torch.device,
    ) -> None:
        self.model = PlainModel(sizes, texts, frames, context).to(device)
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9
        )

    def train(self, frames: Tensor, labels: Tensor) -> float:
        """Take one optimizer step and return its loss."""
        loss = F.cross_entropy(self.model(frames), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def test(self, frames: Tensor) -> list[int]:
        """Return the predicted class of each clip."""
        return self.model(frames).argmax(1).tolist()

    def save(self, path: Path) -> None:
        """Save weights and optimizer."""
        torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, path
        )


# A first step of a small model, for `dfer bench startup`.
if __name__ == "__main__":
    small = {"width": 64, "layers": 2, "heads": 2, "context_length": 77, "vocab_size": 49408}
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    step = PlainStep(
        {"embed_dim": 64, "vision_cfg": vision, "text_cfg": small},
        ["a face"] * 7,
        8,
        8,
        torch.device("cpu"),
    )
    print(step.train(torch.rand(4, 8, 3, 64, 64), torch.arange(4)))
