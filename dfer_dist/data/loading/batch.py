"""A batch of clips on its way from a loader worker to the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfer_dist.data.loading import augmentation, buffers

_SENT_AS_ARRAYS = ("labels", "valid", "augment_params")


@dataclass
class Batch:
    """Clips for one forward pass, with V views of T frames each and L further modalities.

    Attributes
    ----------
    frames : uint8 [b, V T (1 + L), S, S, 3]
        All frames as they were decoded (V is 1 in training), then as many pictures of each
        modality, which are augmented already.
    labels : int64 [b]
    valid : bool [b]
        False for padding and for clips lost to damage, whose frames are zero.
    keys : list of str
        Of each clip; empty for padding.
    lost : list of str
        Which clips were lost, and why.
    augment_params : float32 [b, 7]
        What :meth:`pixels` does to each clip; see :class:`AugmentParams`.
    views, modalities : int
        V and L.
    buffer : tuple of int, optional
        Pool and index of the shared-memory buffer that holds ``frames``.
    """

    frames: Tensor
    labels: Tensor
    valid: Tensor
    keys: list[str]
    lost: list[str]
    augment_params: Tensor
    views: int = 1
    modalities: int = 0
    buffer: tuple[int, int] | None = field(default=None, repr=False)

    def pixels(self, device: torch.device) -> Tensor:
        """Return the model's input, augmented, uint8 [b, V (1 + L) T, 3, S, S] on ``device``.

        In each view the frames come first, then the pictures of each modality.
        """
        frames = self.frames.to(device, non_blocking=True)
        size = frames.shape[2]
        if not self.modalities:
            return augmentation.apply(frames, self.augment_params, size)
        count = frames.shape[1] // (1 + self.modalities)
        augmented = augmentation.apply(frames[:, :count], self.augment_params, size)
        pictures = frames[:, count:].permute(0, 1, 4, 2, 3)
        by_modality = torch.cat([augmented, pictures], 1).unflatten(
            1, (1 + self.modalities, self.views, -1)
        )
        return by_modality.transpose(1, 2).flatten(1, 3)

    def pin_memory(self) -> Batch:
        """Move the tensors to page-locked memory; called by torch's DataLoader."""
        self.frames = self.frames.pin_memory()
        self.labels = self.labels.pin_memory()
        self.valid = self.valid.pin_memory()
        self.buffer = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker sends: small arrays by value, a buffer by its index.

        A file descriptor for each tensor, as torch would send, takes longer.
        """
        state = dict(vars(self))
        for name in _SENT_AS_ARRAYS:
            state[name] = state[name].numpy()
        if self.buffer is not None:
            state["frames"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in _SENT_AS_ARRAYS:
            state[name] = torch.from_numpy(state[name])
        if state["buffer"] is not None:
            state["frames"] = buffers.export(*state["buffer"])
        vars(self).update(state)
