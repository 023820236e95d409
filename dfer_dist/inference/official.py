"""The checkpoint format of DFER-CLIP's authors: reading, names of tensors, sizes and sentences.

Files are read without running any code that they name. Two things about them are easily missed.
Each tensor of CLIP has two names, one below ``clip_model_`` and one of the tower that uses it; both
are one tensor, trained or frozen. And the class text is stored as embedded tokens in the order of
token position 'end', whatever the position is, so the tensors do not show the position.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from dfer_dist.config.schema import ModelConfig
from dfer_dist.inference.untrusted import is_state, read_untrusted
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.tokenizer import simple_tokenizer
from dfer_dist.utils.errors import UserError

_BLOCKS = "temporal_net.temporal_transformer.layers"
# Names of our tensors and of theirs; of several that fit the first one counts.
_NAMES = (
    ("prompt.context", "prompt_learner.ctx"),
    ("text.token_embedding.weight", "clip_model_.token_embedding.weight"),
    ("text.*", "text_encoder.*"),
    ("image.*", "image_encoder.*"),
    ("temporal.cls", "temporal_net.cls_token"),
    ("temporal.pos", "temporal_net.pos_embedding"),
    ("temporal.blocks.*.norm1.*", f"{_BLOCKS}.*.0.fn.norm.*"),
    ("temporal.blocks.*.qkv.*", f"{_BLOCKS}.*.0.fn.fn.to_qkv.*"),
    ("temporal.blocks.*.out.*", f"{_BLOCKS}.*.0.fn.fn.to_out.0.*"),
    ("temporal.blocks.*.norm2.*", f"{_BLOCKS}.*.1.fn.norm.*"),
    ("temporal.blocks.*.mlp.0.*", f"{_BLOCKS}.*.1.fn.fn.net.0.*"),
    ("temporal.blocks.*.mlp.2.*", f"{_BLOCKS}.*.1.fn.fn.net.3.*"),
)
# Their second names of the tensors of a tower.
_SECOND = {"image_encoder.": "clip_model_.visual.", "text_encoder.": "clip_model_."}
# Of every attention in the authors' code and in all of OpenAI's ViTs; the tensors do not show it.
HEAD_WIDTH = 64


def read_official(path: Path) -> dict[str, Tensor]:
    """Read the ``state_dict`` of the authors' checkpoint; names have no leading ``module.``.

    Raises
    ------
    UserError
        If it is no such checkpoint; and as :func:`~.untrusted.read_untrusted`.
    """
    loaded = read_untrusted(path, "a checkpoint of DFER-CLIP")
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not is_state(state):
        raise UserError(f"{path} is not a checkpoint of DFER-CLIP: it has no state_dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the authors' tensors to the names of :class:`~dfer_dist.models.dferclip.DFERCLIP`.

    Second names of the same tensors are left out, and so are CLIP's logit scale, which DFER-CLIP
    does not use, and the embedded class text, which the model computes from its sentences.
    """
    to_ours = [(theirs, ours) for ours, theirs in _NAMES]
    renamed = {_rename(name, to_ours): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in renamed.items() if name}


def _rename(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    """Return the new name by the first row (old, new) that fits, or None."""
    for old, new in rows:
        match = re.fullmatch(re.escape(old).replace(r"\*", "(.+)"), name)
        if match:
            return new.replace("*", "{}").format(*match.groups())
    return None


def to_theirs(model: DFERCLIP, logit_scale: Tensor) -> dict[str, Tensor]:
    """Return all tensors of the authors' file for a model, by their names without ``module.``.

    Tensors are shared, not copied.

    Parameters
    ----------
    logit_scale : float32 scalar
        CLIP's. DFER-CLIP does not read it, but the authors' strict loading needs it.

    Raises
    ------
    UserError
        For a parameter that their model does not have.
    """
    weights = dict(model.named_parameters())
    prompt, embedding = model.prompt, weights["text.token_embedding.weight"]
    assert prompt is not None and model.text is not None, "convert refuses other heads"
    tokens = F.pad(prompt.tokens, (0, model.text.context_length - prompt.tokens.shape[1]))
    rows = embedding[tokens]
    theirs = {
        "prompt_learner.ctx": weights["prompt.context"],
        "prompt_learner.token_prefix": rows[:, :1],
        "prompt_learner.token_suffix": rows[:, 1 + prompt.context_tokens :],
    }
    clip = {"clip_model_.logit_scale": logit_scale}
    for name, tensor in weights.items():
        renamed = _rename(name, _NAMES)
        if renamed is None:
            raise UserError(f"the authors' DFER-CLIP has no place for the weights {name}")
        theirs[renamed] = tensor
        for first, second in _SECOND.items():
            if renamed.startswith(first):
                clip[second + renamed.removeprefix(first)] = tensor
    return {name: tensor.detach() for name, tensor in (theirs | clip).items()}


def read_sizes(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], ModelConfig, int]:
    """Read the sizes of a model from its tensors.

    Numbers of heads are widths / 64, as everywhere in the authors' code. Backbone, class text and
    token position of the settings keep their defaults.

    Returns
    -------
    dict
        CLIP's sizes in open_clip's format.
    ModelConfig
    int
        Frames of a clip.

    Raises
    ------
    UserError
        If a tensor is missing or has unexpected dimensions.
    """
    clip = _clip_sizes(state)
    context = _get(state, "prompt_learner.ctx", 2, 3)
    heads_width = _get(state, f"{_BLOCKS}.0.0.fn.fn.to_out.0.weight", 2).shape[1]
    settings = ModelConfig(
        pretrained="none",
        context_tokens=context.shape[-2],
        class_specific=context.ndim == 3,
        temporal_layers=_layers(state, _BLOCKS),
        temporal_heads=heads_width // HEAD_WIDTH,
        temporal_head_dim=HEAD_WIDTH,
        temporal_mlp=len(_get(state, f"{_BLOCKS}.0.1.fn.fn.net.0.weight", 2)),
    )
    return clip, settings, _get(state, "temporal_net.pos_embedding", 3).shape[1] - 1


def _clip_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return CLIP's sizes in open_clip's format."""
    patches = _get(state, "image_encoder.conv1.weight", 4)
    grid = math.isqrt(len(_get(state, "image_encoder.positional_embedding", 2)) - 1)
    embedding = _get(state, "clip_model_.token_embedding.weight", 2)
    if min(len(patches), embedding.shape[1]) < HEAD_WIDTH:
        raise UserError(
            f"not a checkpoint of DFER-CLIP: a tower is narrower than one head of {HEAD_WIDTH}"
        )
    return {
        "embed_dim": _get(state, "image_encoder.proj", 2).shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patches.shape[2],
            "patch_size": patches.shape[2],
            "width": len(patches),
            "layers": _layers(state, "image_encoder.transformer.resblocks"),
        },
        "text_cfg": {
            "context_length": len(_get(state, "text_encoder.positional_embedding", 2)),
            "vocab_size": len(embedding),
            "width": embedding.shape[1],
            "heads": embedding.shape[1] // HEAD_WIDTH,
            "layers": _layers(state, "text_encoder.transformer.resblocks"),
        },
    }


def read_sentences(state: Mapping[str, Tensor]) -> list[str]:
    """Return the text of each class, in label order, from its embedded tokens.

    Letters are lower case, as CLIP's tokenizer makes them. There is no space before a punctuation
    mark.

    Raises
    ------
    UserError
        If a row is the embedding of no token or of several, or the tokens come from no text.
    """
    tokenizer = simple_tokenizer()
    vocabulary = _get(state, "clip_model_.token_embedding.weight", 2)
    if len(vocabulary) != tokenizer.vocab_size:
        raise UserError(
            f"the token embedding has {len(vocabulary)} rows, CLIP's vocabulary has "
            f"{tokenizer.vocab_size} tokens"
        )
    known: dict[bytes, list[int]] = {}
    for token, row in enumerate(vocabulary.numpy()):
        known.setdefault(row.tobytes(), []).append(token)
    return [
        _sentence(k, rows, known, tokenizer)
        for k, rows in enumerate(_get(state, "prompt_learner.token_suffix", 3))
    ]


def _sentence(
    label: int, rows: Tensor, known: Mapping[bytes, list[int]], tokenizer: SimpleTokenizer
) -> str:
    tokens: list[int] = []
    for position, row in enumerate(rows.numpy()):
        found = known.get(row.tobytes(), [])
        if len(found) != 1:
            what = "several tokens" if found else "no token"
            raise UserError(
                f"class {label}: row {position} of prompt_learner.token_suffix is the embedding "
                f"of {what}"
            )
        if found[0] == tokenizer.eot_token_id:
            break
        tokens += found
    else:
        raise UserError(f"class {label}: prompt_learner.token_suffix has no end of text")
    raw = " ".join(tokenizer.decode(tokens).split())
    for text in (re.sub(r" (?=[.,;:!?'])", "", raw), raw):
        if tokenizer.encode(text) == tokens:
            return text
    raise UserError(
        f"class {label}: the tokens of prompt_learner.token_suffix come from no text: '{raw[:60]}'"
    )


def _get(state: Mapping[str, Tensor], name: str, *dimensions: int) -> Tensor:
    found = state.get(name)
    if found is None or found.ndim not in dimensions or not found.numel():
        allowed = " or ".join(map(str, dimensions))
        raise UserError(
            f"not a checkpoint of DFER-CLIP: it has no {name} of {allowed} dimensions, "
            "or an empty one"
        )
    return found


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    names = (name.removeprefix(f"{prefix}.") for name in state if name.startswith(f"{prefix}."))
    return len({name.partition(".")[0] for name in names})
