"""DFER-CLIP, with the parts of FineCLIPER as options.

DFER-CLIP: Zhao & Patras, "Prompting Visual-Language Models for Dynamic Facial Expression
Recognition", BMVC 2023. FineCLIPER: Chen et al., ACM MM 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfer_dist.config.schema import Head, HeadInit, ModelConfig, Output, TemporalKind
from dfer_dist.models.adapters import select_adapter
from dfer_dist.models.head import classify, linear_head
from dfer_dist.models.prompt import PromptLearner
from dfer_dist.models.temporal import Fusion, MeanOverTime, TemporalTransformer
from dfer_dist.models.towers.drop_path import add_drop_path
from dfer_dist.models.towers.text import HubTextTower, TextTower
from dfer_dist.models.towers.tower import Backbone
from dfer_dist.models.tuning import choose_trained


class ModelOutputs(NamedTuple):
    """Logits of each polarity, and features that are compared with descriptions.

    A named tuple, because DeepSpeed looks for tensors in tuples and not in dataclasses.

    Attributes
    ----------
    positive, negative : float32 [B, C], optional
        Logits of the texts that say what a class is, and of those that say what it is not; these
        are negated, so in both the true class should have the highest.
    video, description : float32 [B, D], optional
        Normalized features of the clips and of their descriptions.
    """

    positive: Tensor | None = None
    negative: Tensor | None = None
    video: Tensor | None = None
    description: Tensor | None = None


class DFERCLIP(nn.Module):
    """CLIP's image tower on each frame, a transformer over time, and the cosine with class texts.

    ``cfg`` chooses what is trained (:mod:`dfer_dist.models.tuning`). With negative texts, and with
    adapters in both towers, it is FineCLIPER on frames and labels. With ``cfg.modalities``, parsing
    maps and landmarks pass through the same image tower with adapters of their own, and through the
    same transformer over time; the features of all modalities are averaged
    (:class:`~dfer_dist.models.temporal.Fusion`).

    Parameters
    ----------
    cfg : ModelConfig
    backbone : Backbone
        The towers; the model takes them over and may change them.
    texts : mapping of polarity to a sequence of C, each a sequence of str
        One or more sentences for each class: what it is (``positive``), and optionally what it is
        not (``negative``). With ``model.head=linear`` their number alone counts, unless
        ``model.head_init=text``.
    num_frames : int
        Frames T of a clip.
    """

    text: TextTower | HubTextTower | None
    prompt: PromptLearner | None

    def __init__(
        self,
        cfg: ModelConfig,
        backbone: Backbone,
        texts: Mapping[str, Sequence[Sequence[str]]],
        num_frames: int,
    ) -> None:
        super().__init__()
        image, self.text = backbone.image, backbone.text
        self.image, self.is_video = image, backbone.info.is_video
        self.temporal: nn.Module = MeanOverTime()
        if self.is_video:
            self.temporal = nn.Identity()
        elif cfg.temporal is TemporalKind.transformer:
            self.temporal = TemporalTransformer(image.output_dim, num_frames, cfg)
        # the frames and each modality
        self.num_inputs = 1 + len(cfg.modalities)
        self.fusion = Fusion(self.num_inputs, cfg.video_weight) if cfg.modalities else None
        self.polarities = tuple(texts)
        self.prompt = None
        if self.text and backbone.tokenizer:
            sentences = [own for of_polarity in texts.values() for own in of_polarity]
            self.prompt = PromptLearner(
                sentences, self.text.token_embedding, backbone.tokenizer, cfg
            )
        self.temperature, self.logit_bias = backbone.temperature, backbone.logit_bias
        if cfg.temperature is not None:
            self.temperature, self.logit_bias = cfg.temperature, 0.0
        self.centers_logits = cfg.output is Output.sigmoid
        self.negative_weight = cfg.negative_weight
        self.pixels = (backbone.info.mean, backbone.info.std) if cfg.normalize else None
        self.description_adapter = "description" if cfg.description_ratio else "positive"
        self.pretrained_sha256 = backbone.sha256
        # After the parts above, so that their random initialization does not depend on it.
        self.head = self._linear_head(cfg, len(texts["positive"]))
        counts = {polarity: sum(map(len, own)) for polarity, own in texts.items()}
        choose_trained(cfg, image, self.text, num_frames, counts)
        self.drop_path = None
        if cfg.drop_path:
            self.drop_path = add_drop_path(image, cfg.drop_path, self.num_inputs)
        image.set_grad_checkpointing(cfg.checkpoint_image)
        self.register_load_state_dict_post_hook(_embed_prompts)

    def _linear_head(self, cfg: ModelConfig, classes: int) -> nn.Linear | None:
        """Return the linear head, if the model has one; it takes the place of the text tower."""
        if cfg.head is not Head.linear:
            return None
        head = linear_head(self.image.output_dim, classes, cfg.head_init)
        if cfg.head_init is HeadInit.text:
            with torch.no_grad():
                features = self.text_features()
                assert features is not None, "build_model loads the text tower"
                if self.centers_logits:
                    features = features - features.mean(0)
                head.weight.copy_(features / self.temperature / features.shape[1] ** 0.5)
        self.text = self.prompt = None
        return head

    def forward(self, frames: Tensor, text_features: Tensor | None = None) -> Tensor:
        """Return the logits of clips, those of both polarities merged.

        Parameters
        ----------
        frames : [B, M T, 3, H, W]
            uint8 in 0..255, or floating point in 0..1: the T frames of each clip, then T images of
            each modality of ``model.modalities``.
        text_features : float32 [P C, D], optional
            From :meth:`text_features`, if the prompts do not change between calls.

        Returns
        -------
        float32 [B, C]
            Cosine / temperature; with ``model.output=sigmoid`` less its mean over classes, which is
            mostly the distance of images from all texts. A softmax does not depend on it.
        """
        return self.merge_polarities(self.outputs(frames, text_features))

    def outputs(
        self,
        frames: Tensor,
        text_features: Tensor | None = None,
        tokens: Tensor | None = None,
        with_logits: bool = True,
    ) -> ModelOutputs:
        """Return the tensors that a loss reads.

        Parameters
        ----------
        frames, text_features
            As for :meth:`forward`.
        tokens : int64 [B, L], optional
            A description of each clip, from :class:`~dfer_dist.models.tokenizer.CaptionTokenizer`;
            adds ``video`` and ``description``.
        with_logits : bool
            False for a loss on descriptions alone: class texts are not encoded.
        """
        video = self.video_features(frames)
        outputs = ModelOutputs()
        if tokens is not None:
            outputs = ModelOutputs(video=video, description=self.description_features(tokens))
        if not with_logits:
            return outputs
        logits = self.compare(video, text_features)
        return outputs._replace(positive=logits.positive, negative=logits.negative)

    def compare(self, video: Tensor, text_features: Tensor | None = None) -> ModelOutputs:
        """Return the logits of clips whose features are known.

        Parameters
        ----------
        video : float32 [B, D]
            From :meth:`video_features`.
        text_features
            As for :meth:`forward`.
        """
        if self.head is not None:
            return ModelOutputs(positive=classify(self.head, video))
        if text_features is None:
            text_features = self.text_features()
        assert text_features is not None, "a model without a linear head has a text tower"
        logits = video @ text_features.t() / self.temperature + self.logit_bias
        if self.centers_logits:
            own = logits.unflatten(1, (len(self.polarities), -1))
            logits = (own - own.mean(-1, keepdim=True)).flatten(1)
        by_polarity = dict(
            zip(self.polarities, logits.chunk(len(self.polarities), dim=1), strict=True)
        )
        if "negative" in by_polarity:
            by_polarity["negative"] = -by_polarity["negative"]
        return ModelOutputs(**by_polarity)

    def merge_polarities(self, outputs: ModelOutputs) -> Tensor:
        """Return the mean of the logits of both polarities, float32 [B, C].

        The negative ones weigh ``model.negative_weight``. Without them these are the positive ones.
        """
        assert outputs.positive is not None
        if outputs.negative is None:
            return outputs.positive
        weighted = outputs.positive + self.negative_weight * outputs.negative
        return weighted / (1 + self.negative_weight)

    def video_features(self, frames: Tensor) -> Tensor:
        """Return normalized features, which are compared with those of texts.

        [B, M T, 3, H, W] -> float32 [B, D]
        """
        if frames.shape[1] % self.num_inputs:
            raise ValueError(
                f"{frames.shape[1]} images of a clip are not a multiple of its "
                f"{self.num_inputs} inputs: the frames and each of model.modalities"
            )
        by_modality = frames.unflatten(1, (self.num_inputs, -1)).transpose(0, 1).flatten(0, 1)
        pixels = self._preprocess(by_modality.flatten(0, 1))
        if self.is_video:
            features = self.image(pixels.unflatten(0, by_modality.shape[:2]))
        else:
            features = self.image(pixels).unflatten(0, by_modality.shape[:2])
        clips = self.temporal(features)
        clips = F.normalize(clips.float(), dim=-1)
        if self.fusion is None:
            return clips
        return self.fusion(clips.unflatten(0, (self.num_inputs, -1)))

    def text_features(self) -> Tensor | None:
        """Return normalized features of the class texts, float32 [P C, D], polarity by polarity.

        None for a linear head.

        Features of a class with several sentences are normalized, averaged and normalized again:
        CLIP's prompt ensembling (Radford et al., ICML 2021, section 3.1.4).
        """
        if self.text is None or self.prompt is None:
            return None
        features = F.normalize(self.text(self.prompt(), self.prompt.eot).float(), dim=-1)
        if len(features) == len(self.prompt.counts):
            return features
        means = [own.mean(0) for own in features.split(self.prompt.counts)]
        return F.normalize(torch.stack(means), dim=-1)

    def description_features(self, tokens: Tensor) -> Tensor:
        """Return normalized features of descriptions: int64 [B, L] -> float32 [B, D]."""
        assert self.text is not None, "config.checks refuses descriptions without a text tower"
        eot = self.text.find_eot(tokens)
        with select_adapter(self.text, self.description_adapter):
            features = self.text(self.text.token_embedding(tokens), eot)
        return F.normalize(features.float(), dim=-1)

    def _preprocess(self, frames: Tensor) -> Tensor:
        """Scale and normalize pixels in float32, then cast to the type of the image tower.

        [N, 3, H, W] -> [N, 3, H, W]
        """
        # A copy, which is large: the arithmetic is in place.
        x = frames.to(torch.float32, copy=True)
        if not frames.is_floating_point():
            x /= 255
        if self.pixels:
            # A blocking copy would make the host wait for the GPU.
            mean, std = (
                torch.tensor(values).view(3, 1, 1).to(x.device, non_blocking=True)
                for values in self.pixels
            )
            x -= mean
            x /= std
        return x.to(next(self.image.parameters()).dtype)


def _embed_prompts(model: DFERCLIP, _: Any) -> None:
    """Embed the prompts again after loading weights, which may change the token embedding."""
    if model.text is not None and model.prompt is not None:
        model.prompt.embed(model.text.token_embedding)


class OutputsModule(nn.Module):
    """The module for ``deepspeed.initialize``: its forward pass is ``DFERCLIP.outputs``.

    DeepSpeed gathers weights of ZeRO-3 and prepares the backward pass in the forward pass of the
    module that it wraps, so a loss cannot call another method of the model.
    """

    def __init__(self, model: DFERCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        frames: Tensor,
        text_features: Tensor | None = None,
        tokens: Tensor | None = None,
        with_logits: bool = True,
    ) -> ModelOutputs:
        """Return :meth:`DFERCLIP.outputs` of the same arguments."""
        return self.model.outputs(frames, text_features, tokens, with_logits)
