"""Convert checkpoints of VideoMAE's kind, MAE-DFER's and S4D's among them, to video towers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer_dist.checkpoints.portable import save_tensors
from dfer_dist.inference.untrusted import arguments, is_state, read_untrusted
from dfer_dist.models.towers import videomae
from dfer_dist.models.towers.video_vit import RegionViT, VideoSizes, VideoViT
from dfer_dist.models.towers.video_weights import rename
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path, write_text

# Where programs keep the weights.
_KEYS = ("model", "module", "state_dict")
# Heads by width in the authors' code, which the tensors do not show; others have a width of 64.
_HEADS = {1280: 16, 1408: 16}
_HEAD_WIDTH = 64
# As in all their scripts, for files without a command line.
_NUM_FRAMES = 16
_REGION_SIZE = (2, 5, 10)
# What MAE-DFER calls the tokens that it averages.
_POOLED = {"region": "regions", "org": "patches", "all": "all"}


@dataclasses.dataclass(frozen=True)
class ConvertedTower:
    """A video tower that was converted.

    Attributes
    ----------
    sizes : VideoSizes
    backbone, pretrained : str
        Settings ``model.backbone`` and ``model.pretrained`` that load it.
    """

    sizes: VideoSizes
    backbone: str
    pretrained: str

    @property
    def summary(self) -> str:
        """The sizes in one line."""
        s = self.sizes
        regions = ""
        if s.region_size is not None:
            regions = f", regions of {' x '.join(map(str, s.region_size))} tubelets"
        return (
            f"{s.num_hidden_layers} blocks of width {s.hidden_size}, {s.num_attention_heads} heads"
            f"{regions}; {s.num_frames} frames of {s.image_size} pixels"
        )


def convert_video(path: Path, out: Path, image_size: int | None = None) -> ConvertedTower:
    """Convert a checkpoint into a folder with ``config.json`` and ``model.safetensors``.

    The tower is kept; a decoder or classifier is left out.

    Parameters
    ----------
    path : Path
        A file of ``torch.save``, read without running any code that it names.
    out : Path
        The folder to make; it must not exist.
    image_size : int, optional
        Side of the frames that the weights were trained on, for files that do not say it.

    Raises
    ------
    UserError
        If ``out`` exists, the file holds no such tower, or its sizes are not known.
    """
    if out.exists():
        raise UserError(f"{out} exists: give a new folder")
    loaded = read_untrusted(path, "a checkpoint of VideoMAE's kind")
    try:
        state = {name: own.float() for name, own in rename(_weights(loaded)).items()}
        sizes = _sizes(state, arguments(loaded), image_size)
        _check(state, sizes)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    out.mkdir(parents=True)
    config = {"model_type": "videomae", **dataclasses.asdict(sizes)}
    with atomic_path(out / videomae.WEIGHTS[0]) as temporary:
        save_tensors(state, temporary)
    write_text(out / videomae.CONFIG, json.dumps(config, indent=1) + "\n")
    for name, own in videomae.SIZES.items():
        if own == sizes:
            weights = str(out / videomae.WEIGHTS[0])
            return ConvertedTower(sizes, videomae.PREFIX + name, weights)
    return ConvertedTower(sizes, f"{videomae.PREFIX}{out}", videomae.MAIN)


def _weights(loaded: Any) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint."""
    for found in _candidates(loaded):
        if is_state(found):
            return found
    raise UserError(
        f"no checkpoint of VideoMAE's kind: it has no tensors under {', '.join(_KEYS)}, or at top"
    )


def _candidates(loaded: Any) -> Iterator[Any]:
    if isinstance(loaded, dict):
        yield from (loaded[key] for key in _KEYS if key in loaded)
        yield loaded


def _sizes(state: Mapping[str, Tensor], args: dict[str, Any], given: int | None) -> VideoSizes:
    """Read the sizes of a tower from its tensors and from the command line in the file."""
    patches = state.get("patch_embed.weight")
    if patches is None or patches.ndim != 5:
        raise UserError("no checkpoint of VideoMAE's kind: it has no embedding of tubelets")
    hidden = state.get("blocks.0.mlp.fc1.weight")
    if hidden is None:
        raise UserError("no checkpoint of VideoMAE's kind: it has no block")
    width, _, tubelet, patch, _ = patches.shape
    image_size = _number(args, "input_size") or given
    if image_size is None:
        raise UserError(
            "it does not say the size of its frames: give --image-size, which is 160 for MAE-DFER "
            "and S4D, and 224 for VideoMAE"
        )
    has_regions = "region_tokens" in state
    # Its tensors are stored for each, so that nothing else shows it.
    if any(value is True for key, value in args.items() if key.startswith("lg_attn_param_sharing")):
        raise UserError("its attentions share parameters, which ours do not")
    return VideoSizes(
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_attention_heads=_HEADS.get(width, width // _HEAD_WIDTH) or 1,
        intermediate_size=len(hidden),
        image_size=image_size,
        patch_size=patch,
        num_frames=_number(args, "num_frames") or _NUM_FRAMES,
        tubelet_size=tubelet,
        qkv_bias=any(name.endswith("attn.query.bias") for name in state),
        layer_norm_eps=1e-6,
        fc_norm_eps=1e-6,
        region_size=_region_size(args) if has_regions else None,
        pooled_tokens=_POOLED.get(args.get("lg_classify_token_type", ""), "regions"),
    )


def _number(args: dict[str, Any], key: str) -> int | None:
    value = args.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _region_size(args: dict[str, Any]) -> tuple[int, int, int]:
    value = args.get("lg_region_size")
    if isinstance(value, (list, tuple)) and len(value) == 3:
        t, h, w = value
        return t, h, w
    return _REGION_SIZE


def _check(state: Mapping[str, Tensor], sizes: VideoSizes) -> None:
    """Check that the tensors are exactly those of a tower of these sizes."""
    try:
        videomae.check_sizes(sizes)
        with torch.device("meta"):
            wanted = _tower(sizes).state_dict()
    except (ValueError, TypeError) as e:
        raise UserError(f"its sizes are not known: {e}") from e
    videomae.check_state(state, wanted)


def _tower(sizes: VideoSizes) -> VideoViT:
    if sizes.region_size is not None:
        return RegionViT(sizes)
    return VideoViT(sizes, sizes.num_frames, sizes.image_size)
