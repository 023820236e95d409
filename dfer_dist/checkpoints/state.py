"""What ``state.json`` of a checkpoint says about the training that wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dfer_dist.utils.records import Record, stored_as


@dataclass(frozen=True)
class CheckpointInfo(Record):
    """The part of ``state.json`` that does not concern the training loop.

    Attributes
    ----------
    step : int
        Steps done, skipped ones included.
    skipped_steps : int
        Steps whose loss or gradient was not finite or overflowed; the optimizer did not count them.
    metrics_bytes : int
        Size of ``metrics.jsonl`` when the checkpoint was made.
    frozen_sha256 : str
        :func:`~dfer_dist.checkpoints.portable.frozen_checksum` of the model.
    pretrained_sha256 : str, optional
        sha256 of the backbone's weights file.
    fold, epoch, dataset, classes, config_hash, index_hash, objective
        What was trained on; None where a converted checkpoint does not know it.
    modalities : dict, optional
        How the clips' parsing maps and landmarks were made.
    texts_sha256 : str, optional
        Hash of the descriptions that were learned from.
    set_hashes : dict of str to str
        Of the data of each of several sets, by name; ``index_hash`` is of all.
    """

    remedy: ClassVar[str] = "the checkpoint is damaged"

    step: int
    skipped_steps: int = 0
    metrics_bytes: int = 0
    frozen_sha256: str = ""
    pretrained_sha256: str | None = None
    fold: int | None = None
    epoch: int | None = None
    dataset: str | None = None
    classes: list[str] | None = None
    config_hash: str | None = None
    index_hash: str | None = None
    objective: str | None = None
    modalities: dict[str, Any] | None = field(default=None, metadata=stored_as("levels"))
    texts_sha256: str | None = None
    set_hashes: dict[str, str] = field(default_factory=dict)
