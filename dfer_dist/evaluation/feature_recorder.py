"""Record the features of clips while their logits are computed, without a second forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import Config, TemporalKind, TemporalPool
from dfer_dist.data.loading.batch import Batch
from dfer_dist.data.shards.index import Index
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.evaluation.features import ClipFeatures, FeatureInfo, Floats
from dfer_dist.evaluation.predictions import Predictions
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.utils.files import read_json


class FeatureRecorder:
    """Records the features of clips while :func:`.predict` computes their logits.

    It gives ``predict`` its function, :meth:`forward`, and hands on its batches, :meth:`watch`.
    """

    def __init__(self, model: DFERCLIP) -> None:
        self.model = model
        self.text_features: Tensor | None = None
        self._views: list[Tensor] = []
        self._rows: defaultdict[str, list[Floats]] = defaultdict(list)

    def forward(self, frames: Tensor, text_features: Tensor | None) -> Tensor:
        """Return what the model returns, float32 [b, C], and keep the features."""
        video = self.model.video_features(frames)
        self._views.append(video.cpu())
        self.text_features = text_features
        return self.model.merge_polarities(self.model.compare(video, text_features))

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; once the next one is asked for, the last one is predicted."""
        for batch in batches:
            yield batch
            views = torch.stack(self._views, 1).numpy()
            self._views.clear()
            for key, valid, rows in zip(batch.keys, batch.valid.tolist(), views, strict=True):
                if valid:
                    self._rows[key].extend(rows)

    def gather(self, ranks: Ranks) -> None:
        """Gather the shares of all ranks on rank 0. Collective."""
        for share in ranks.gather_objects(self._rows) or []:
            self._rows |= share

    def features(self, info: FeatureInfo, table: Predictions) -> ClipFeatures:
        """Return the features of the clips of ``table``, which :func:`.collect` has checked."""
        values = np.stack([np.mean(self._rows[key], axis=0) for key in table.keys])
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        return ClipFeatures(info, table.keys, table.labels, values)

    def class_texts(self) -> dict[str, list[list[float]]]:
        """Return the features of the class texts by polarity; empty for a linear head."""
        if self.text_features is None:
            return {}
        parts = self.text_features.float().cpu().chunk(len(self.model.polarities))
        return {p: own.tolist() for p, own in zip(self.model.polarities, parts, strict=True)}


def describe_features(
    saved: Checkpoint, config: Config, recorder: FeatureRecorder, index: Index, fold: int | None
) -> FeatureInfo:
    """Return what the features of a test are of."""
    hashes, test = read_json(saved.path / checkpoint.COMPLETE)["sha256"], config.eval
    return FeatureInfo(
        model=f"{config.model.backbone} ({config.model.pretrained})",
        layer=_layer(config, recorder.model),
        normalization="unit length (L2)",
        views=test.views * test.crops * (1 + test.mirror),
        checkpoint=saved.path.name,
        checkpoint_sha256=hashes.get(checkpoint.AVERAGE, hashes[checkpoint.MODEL]),
        dataset=index.name,
        index_hash=index.hash,
        fold=fold,
        classes=list(index.classes),
        texts=recorder.class_texts(),
    )


def _layer(config: Config, model: DFERCLIP) -> str:
    name = "mean over frames of the image tower's features"
    if model.is_video:
        name = "feature of the video tower"
    elif config.model.temporal is TemporalKind.transformer:
        read = {TemporalPool.cls: "class token", TemporalPool.mean: "mean of the frames' tokens"}
        name = f"{read[config.model.temporal_pool]} after the temporal transformer"
    if config.model.modalities:
        name += f", fused with those of {', '.join(config.model.modalities)}"
    return name
