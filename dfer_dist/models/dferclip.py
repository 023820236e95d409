"""DFER-CLIP (Zhao & Patras, "Prompting Visual-Language Models for Dynamic Facial Expression Recognition", BMVC'23)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dfer_dist.config.schema import ModelConfig, TemporalKind
from dfer_dist.models.adapters import select_adapter
from dfer_dist.models.backbone import TextTower
from dfer_dist.models.fusion import Fusion
from dfer_dist.models.prompt import PromptLearner
from dfer_dist.models.temporal import MeanOverTime, TemporalTransformer
from dfer_dist.models.tuning import choose_trained


class DFERCLIP(nn.Module):
    """CLIP's image tower on each frame, a transformer over time, and the cosine with prompts read by CLIP's text tower.

    What of it is trained follows ``cfg``: :mod:`dfer_dist.models.tuning`. With a negative side of texts, and with adapters in both towers, it is
    the video and label level of FineCLIPER (Chen et al., ACM MM 2024); with ``cfg.modalities`` also its middle level: parsing maps and landmarks go through the
    same image tower, by adapters of their own, and the same transformer over time, and the features of all levels become one (:mod:`dfer_dist.models.fusion`).

    Parameters
    ----------
    cfg : ModelConfig
    image, text
        The towers; the model takes them over and may change them.
    texts : mapping of side to a sequence of C, each a str or a sequence of str
        What the text tower reads for each class: one or more sentences that say what it is (``positive``), and perhaps others that say what it
        is not (``negative``).
    num_frames : int
        Frames T in a clip.
    pretrained_sha256 : str or None
        Of the file that the towers' weights came from; None if they are random.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        image: VisionTransformer,
        text: TextTower,
        texts: Mapping[str, Sequence[str | Sequence[str]]],
        num_frames: int,
        pretrained_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.temporal: nn.Module = MeanOverTime()
        if cfg.temporal is TemporalKind.transformer:
            self.temporal = TemporalTransformer(
                image.output_dim,
                num_frames,
                cfg.temporal_layers,
                cfg.temporal_heads,
                cfg.temporal_head_dim,
                cfg.temporal_mlp,
                cfg.checkpoint_temporal,
            )
        self.modalities = 1 + len(cfg.modalities)
        self.fusion = Fusion(self.modalities, cfg.video_weight) if cfg.modalities else None
        self.sides = tuple(texts)
        self.prompt = PromptLearner(
            [own for side in texts.values() for own in side],
            text.token_embedding,
            cfg.context_tokens,
            cfg.class_specific,
            cfg.token_position,
            len(text.positional_embedding),
        )
        self.temperature, self.negative_weight = cfg.temperature, cfg.negative_weight
        self.normalize = cfg.normalize
        self.described_by = "description" if cfg.description_ratio else "positive"
        self.pretrained_sha256 = pretrained_sha256
        classes = len(self.prompt.counts) // len(texts)
        sentences = {
            side: sum(self.prompt.counts[i * classes :][:classes]) for i, side in enumerate(texts)
        }
        choose_trained(
            cfg, image, text, num_frames, sentences
        )  # after the parts above, so that their random start does not depend on it
        image.set_grad_checkpointing(cfg.checkpoint_image)
        self.register_load_state_dict_post_hook(_embed_prompts)

    def forward(
        self,
        frames: Tensor,
        text_features: Tensor | None = None,
        per_polarity: bool = False,
        tokens: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Logits of clips.

        Parameters
        ----------
        frames : [B, L T, 3, H, W]
            uint8 in 0..255, or floating point in 0..1: T frames of each clip, then T pictures of each level of ``model.modalities``.
        text_features : float32 [S C, D], optional
            What :meth:`text_features` returned, where the prompts do not change between calls.
        by_side : bool
            What a loss on labels needs: the logits of each side alone.
        tokens : int64 [B, L], optional
            What a loss on descriptions needs: one of each clip, as :class:`~dfer_dist.models.tokenizer.Reader` has it.

        Returns
        -------
        float32 [B, C], or a dict of side to float32 [B, C], with ``tokens`` also of ``video`` and ``description``, features of length 1, float32
        [B, D]; these alone without ``per_polarity``
            Cosine / temperature, negated for the negative side: in each, a clip's own class should be highest. Of two sides the mean, in which the
            negative one weighs ``model.negative_weight``.
        """
        video = self._video(frames)
        contrast = {} if tokens is None else {"video": video, "description": self.read(tokens)}
        if contrast and not per_polarity:
            return contrast
        if text_features is None:
            text_features = self.text_features()
        logits = (video @ text_features.t() / self.temperature).chunk(len(self.sides), dim=1)
        sides = {
            side: -own if side == "negative" else own
            for side, own in zip(self.sides, logits, strict=True)
        }
        if per_polarity:
            return sides | contrast
        if len(sides) == 1:
            return sides["positive"]
        return (sides["positive"] + self.negative_weight * sides["negative"]) / (
            1 + self.negative_weight
        )

    def _video(self, frames: Tensor) -> Tensor:
        """[B, L T, 3, H, W] -> float32 [B, D], normalised."""
        if frames.shape[1] % self.modalities:
            raise ValueError(
                f"{frames.shape[1]} pictures of a clip cannot be those of {self.modalities} levels"
            )
        by_level = frames.unflatten(1, (self.modalities, -1)).transpose(0, 1).flatten(0, 1)
        features = self.image(self._pixels(by_level.flatten(0, 1)))
        clips = F.normalize(
            self.temporal(features.unflatten(0, by_level.shape[:2])).float(), dim=-1
        )
        return (
            clips if self.fusion is None else self.fusion(clips.unflatten(0, (self.modalities, -1)))
        )

    def text_features(self) -> Tensor:
        """Normalised features of the classes, float32 [S C, D], one side after the other.

        Those of a class with several sentences are averaged, each normalised before, and the average is normalised again:
        CLIP's prompt ensembling (Radford et al., ICML 2021, section 3.1.4).
        """
        features = F.normalize(self.text(self.prompt(), self.prompt.eot).float(), dim=-1)
        if len(features) == len(self.prompt.counts):
            return features
        means = [own.mean(0) for own in features.split(self.prompt.counts)]
        return F.normalize(torch.stack(means), dim=-1)

    def read(self, tokens: Tensor) -> Tensor:
        """Normalised features of descriptions: tokens int64 [B, L] -> float32 [B, D]."""
        with select_adapter(self.text, self.described_by):
            features = self.text(
                self.text.token_embedding(tokens), tokens.argmax(dim=-1)
            )  # EOT has the highest id
        return F.normalize(features.float(), dim=-1)

    def _pixels(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W] as the image tower reads it; arithmetic in float32, then the type that the model was cast to."""
        x = frames.to(torch.float32, copy=True)  # large: worked on in place from here
        if not frames.is_floating_point():
            x /= 255
        if self.normalize:
            few = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
            mean, std = (
                v.to(x.device, non_blocking=True) for v in few
            )  # otherwise the host would wait for the GPU
            x -= mean
            x /= std
        return x.to(next(self.image.parameters()).dtype)


def _embed_prompts(model: DFERCLIP, _: Any) -> None:
    """After new weights: the token embedding may be among them."""
    model.prompt.embed(model.text.token_embedding)
