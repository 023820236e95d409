from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.data.faces.enrich import EnrichRequest, enrich
from dfer_dist.data.faces.parsing_maps import SKIN, decode_maps
from dfer_dist.data.shards.sidecars import read_array, sidecar_tar_path
from dfer_dist.utils.errors import UserError
from tests.helpers.data.clips import pack_frames, read_members


class BrightnessParser(torch.nn.Module):
    """Label bright pixels as skin, at half the size."""

    def __init__(self, scores: bool) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x.mean(1)[:, ::2, ::2] > 0.5).long()
        if self.scores:
            return torch.nn.functional.one_hot(bright, 19).permute(0, 3, 1, 2).float()
        return bright


class WrongLabels(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0].long() + 19


class TooFewMaps(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0]


def save_script(module: torch.nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), str(file))
    return file


@pytest.mark.parametrize("scores", [True, False])
def test_parser_maps_are_stored_at_the_frames_size(scores: bool, tmp_path: Path) -> None:
    frames = [np.zeros((16, 24, 3), np.uint8) for _ in range(11)]
    for t, frame in enumerate(frames):
        frame[:, : 2 * t] = 255
    index = pack_frames(frames, tmp_path)
    parser = save_script(BrightnessParser(scores), tmp_path / "parser.pt")
    root = Path(str(index.root))
    (added,) = enrich(root, EnrichRequest(parser=parser), workers=1)
    assert added.made["by"] == "parser"
    assert (added.made["frames"], added.made["without_face"]) == (11, 1)
    own = read_members(index, "parsing")["portrait"]
    labels = decode_maps(own["maps.png"], read_array(own["starts.npy"]), range(11))
    for t in range(11):
        assert (labels[t, :, : 2 * t] == SKIN).all() and not labels[t, :, 2 * t :].any()
    save_script(BrightnessParser(not scores), parser)
    message = r"exists, made in another way \(parser\): remove \*\.parsing\.tar"
    with pytest.raises(UserError, match=message):
        enrich(root, EnrichRequest(parser=parser), workers=1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (WrongLabels(), "returns label 19: labels are 0 to 18"),
        (TooFewMaps(), r"returns torch.float32 \[3, 16, 24\]"),
        (None, "no TorchScript"),
    ],
)
def test_invalid_parser_is_rejected(
    module: torch.nn.Module | None, message: str, tmp_path: Path
) -> None:
    index = pack_frames([np.zeros((16, 24, 3), np.uint8)] * 2, tmp_path)
    parser = tmp_path / "parser.pt"
    if module is None:
        parser.write_bytes(b"no zip")
    else:
        save_script(module, parser)
    with pytest.raises(UserError, match=message):
        enrich(Path(str(index.root)), EnrichRequest(parser=parser), workers=1)
    assert not sidecar_tar_path(index.path(0), "parsing").exists()
