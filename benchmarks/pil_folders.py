"""Plain loading: folders of frame files, Pillow, one torchvision transform a frame.

``dfer bench loader`` compares with it.

The steps are those of DFER-CLIP's released data set class: list the folder, pick the frames, open
and convert each, draw one crop and one flip for all, turn each into a tensor and stack.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as F


class FrameFolders(Dataset[Tensor]):
    """Training clips, each float32 [T, 3, S, S] in 0..1, from folders of JPEG files."""

    def __init__(self, folders: Sequence[Path], num_frames: int, size: int) -> None:
        self.folders, self.num_frames, self.size = folders, num_frames, size

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.folders)

    def __getitem__(self, clip: int) -> Tensor:
        """Return the sampled, augmented frames of a clip."""
        files = sorted(self.folders[clip].glob("*.jpg"))
        segment = len(files) // self.num_frames
        chosen = (files + files[-1:] * self.num_frames)[: self.num_frames]
        if segment:
            chosen = [
                files[i * segment + random.randrange(segment)] for i in range(self.num_frames)
            ]
        images = [Image.open(file).convert("RGB") for file in chosen]
        box = RandomResizedCrop.get_params(images[0], (0.08, 1.0), (3 / 4, 4 / 3))
        images = [F.resized_crop(image, *box, [self.size, self.size]) for image in images]
        if random.random() < 0.5:
            images = [F.horizontal_flip(image) for image in images]
        return torch.stack(
            [F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True) for image in images]
        )
