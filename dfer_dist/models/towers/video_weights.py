"""Names of the tensors of a video transformer in the files of other programs.

=======================  =======================================================================
layout                   names
=======================  =======================================================================
transformers             ``videomae.encoder.layer.0.attention.attention.query.weight``, or
                         ``….q_bias`` before its version 5
VideoMAE, fine-tuned     ``blocks.0.attn.qkv.weight``, ``blocks.0.attn.q_bias``
VideoMAE, S4D,           ``encoder.blocks.0.attn.qkv.weight``, with a decoder
pre-trained
MAE-DFER                 ``blocks.0.first_attn.kv.weight``, ``lg_region_tokens``; pre-trained
                         with ``encoder.``
=======================  =======================================================================

Each may begin with ``module.``, ``backbone.`` or ``model.``. Published code: github.com/MCG-NJU/
VideoMAE, sunlicai/MAE-DFER and MSA-LMC/S4D.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from dfer_dist.utils.errors import UserError

_WRAPPERS = re.compile(r"^(?:(?:module|backbone|model|videomae)\.)+")
_ENCODER = re.compile(r"^encoder\.(?!layer\.)")
# Decoders, classifiers, and the norm of single tokens, which the mean replaces.
_NOT_READ = re.compile(
    r"^(?:decoder\.|encoder_to_decoder\.|mask_token$|head\.|classifier\.|norm\.|layernorm\.)"
)
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # transformers
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed."),
        (r"^encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attn."),
        (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
        (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
        (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
        (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
        (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
        # the authors' code
        (r"^patch_embed\.proj\.", "patch_embed."),
        (r"^lg_region_tokens$", "region_tokens"),
        (r"\.first_attn_norm0\.", ".local_norm."),
        (r"\.second_attn_norm0\.", ".global_norm."),
        (r"\.third_attn_norm0\.", ".patch_norm."),
        (r"\.third_attn_norm1\.", ".region_norm."),
        (r"\.first_attn\.", ".local_attn."),
        (r"\.second_attn\.", ".global_attn."),
        (r"\.third_attn\.", ".exchange_attn."),
        (r"attn\.q\.weight$", "attn.query.weight"),
        (r"attn\.q_bias$", "attn.query.bias"),
        (r"attn\.v_bias$", "attn.value.bias"),
    )
)
# Layers that hold several of ours, one below the other.
_PACKED = {"attn.qkv.weight": ("query", "key", "value"), "attn.kv.weight": ("key", "value")}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a video transformer by our names, from any layout above.

    Our own names stay. Tensors that a tower does not have, such as a classifier's, are left out;
    names that are not known stay, so that loading refuses them.

    Raises
    ------
    UserError
        If the blocks hold a mixture of experts, as S4D's fine-tuned models do.
    """
    renamed: dict[str, Tensor] = {}
    for given, tensor in state.items():
        name = _ENCODER.sub("", _WRAPPERS.sub("", given))
        if _NOT_READ.match(name):
            continue
        if ".moe_layer." in name:
            raise UserError(
                f"{name}: a mixture of experts, which S4D adds in fine-tuning and routes at "
                "random; give the pre-trained checkpoint"
            )
        for pattern, replacement in _RULES:
            name = pattern.sub(replacement, name)
        packed = next((end for end in _PACKED if name.endswith(end)), None)
        if packed is None:
            renamed[name] = tensor
            continue
        parts = _PACKED[packed]
        start = name.removesuffix(packed)
        for part, own in zip(parts, tensor.chunk(len(parts)), strict=True):
            renamed[f"{start}attn.{part}.weight"] = own.contiguous()
    return renamed
