"""Checkpoints of the authors' DFER-CLIP: read without running anything that the file names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer_dist import UserError

_RENAMED = {
    "prompt_learner.ctx": "prompt.context",
    "clip_model_.token_embedding.weight": "text.token_embedding.weight",
    "temporal_net.cls_token": "temporal.cls",
    "temporal_net.pos_embedding": "temporal.pos",
}
_TEMPORAL = re.compile(r"temporal_net\.temporal_transformer\.layers\.(\d+)\.([01]\.fn\..+)\.(weight|bias)")
_TEMPORAL_PARTS = {
    "0.fn.norm": "norm1",
    "0.fn.fn.to_qkv": "qkv",
    "0.fn.fn.to_out.0": "out",
    "1.fn.norm": "norm2",
    "1.fn.fn.net.0": "mlp.0",
    "1.fn.fn.net.3": "mlp.2",
}


class _Inert:
    """Stands for whatever class or function a file names beyond tensors: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_official(path: Path) -> dict[str, Tensor]:
    """The ``state_dict`` of a checkpoint in the authors' format, names without their leading ``module.``.

    torch's restricted unpickler reads the file; it refuses classes it does not know (each of the authors' files has one,
    their meter), so every such name is bound to a placeholder first. Nothing is imported or called by name.

    Raises
    ------
    UserError
        If it is no such checkpoint, or names something that even the restricted unpickler will not pass over.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in named]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged or hostile file can fail in any way: zip, pickle, sizes, types
        reason = " ".join(str(e).split())[:160] or type(e).__name__
        raise UserError(f"{path} cannot be read as a checkpoint of DFER-CLIP: {reason}") from e
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path} is not a checkpoint of DFER-CLIP: it has no state_dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names -> those of :class:`~dfer_dist.model.DFERCLIP`.

    Left out are second copies (the whole CLIP lies in the file beside its towers, as it was before training), CLIP's
    logit scale, which DFER-CLIP does not use, and the embedded class text, which the model makes from its sentences.
    """
    ours = {}
    for name, tensor in state.items():
        block = _TEMPORAL.fullmatch(name)
        if block and block[2] in _TEMPORAL_PARTS:
            ours[f"temporal.blocks.{block[1]}.{_TEMPORAL_PARTS[block[2]]}.{block[3]}"] = tensor
        elif name in _RENAMED:
            ours[_RENAMED[name]] = tensor
        elif name.startswith("image_encoder."):
            ours["image." + name.removeprefix("image_encoder.")] = tensor
        elif name.startswith("text_encoder."):
            ours["text." + name.removeprefix("text_encoder.")] = tensor
    return ours
