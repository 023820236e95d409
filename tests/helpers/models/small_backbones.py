"""Backbones of every family, small enough to run in a test, and a local cache of the Hub."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dfer_dist.models.towers import hub

# One model of each form that towers have in open_clip.
FAMILIES = (
    "ViT-B-32-quickgelu",
    "ViT-M-16-alt",
    "ViT-L-14-CLIPA",
    "ViT-H-14-worldwide",
    "coca_ViT-B-32",
    "coca_base",
    "coca_roberta-ViT-B-32",
    "EVA01-g-14",
    "EVA02-B-16",
    "EVA02-E-14",
    "MobileCLIP-B",
    "MobileCLIP2-L-14",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "ViT-SO400M-16-SigLIP-i18n-256",
    "PE-Core-B-16",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "roberta-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
    "nllb-clip-base-siglip",
    "xlm-roberta-base-ViT-B-32",
)
_VOCABULARY = [
    "[PAD]",
    "[BOS]",
    "[EOS]",
    "[UNK]",
    "a",
    "face",
    "at",
    "rest",
    "wide",
    "open",
    "mouth",
]
# As in the settings of these models on the Hub, with other sizes.
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 16,
    "pad_token_id": 0,
    "max_position_embeddings": 80,
    "type_vocab_size": 1,
}
_M2M = {
    "model_type": "m2m_100",
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 16,
    "pad_token_id": 0,
    "max_position_embeddings": 80,
    "is_encoder_decoder": True,
}
_MT5 = {
    "model_type": "mt5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 16,
    "pad_token_id": 0,
    "is_encoder_decoder": True,
}
HUB_CONFIGS: dict[str, dict[str, Any]] = {
    "roberta-base": _BERT | {"model_type": "roberta"},
    "xlm-roberta-base": _BERT | {"model_type": "xlm-roberta"},
    "xlm-roberta-large": _BERT | {"model_type": "xlm-roberta"},
    "google/mt5-base": _MT5,
    "google/mt5-xl": _MT5,
    "facebook/nllb-200-distilled-600M": _M2M,
    "facebook/nllb-200-distilled-1.3B": _M2M,
}


def fill_hub_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write tokenizer and settings of all models of open_clip into a cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    names: set[str] = set()
    for model in open_clip.list_models():
        names |= hub.repositories(open_clip.get_model_config(model)["text_cfg"])
    for name in names:
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        folder = repository / "snapshots" / "abc"
        write_tokenizer(folder)
        if name in HUB_CONFIGS:
            (folder / "config.json").write_text(json.dumps(HUB_CONFIGS[name]))


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of a few entries, in the files of the library transformers."""
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(_VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    names = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "sep_token": "[EOS]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of open_clip with narrow towers of two blocks."""
    config = copy.deepcopy(config)
    config["embed_dim"] = 64
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" not in vision:
        vision |= {
            "layers": 2,
            "width": 64,
            "head_width": 32,
            "image_size": 2 * vision["patch_size"],
        }
    if vision.get("attentional_pool"):
        vision |= {"attn_pooler_queries": 4, "attn_pooler_heads": 2}
    if "hf_model_name" not in text:
        text |= {"layers": 2, "width": 64, "heads": 2}
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = len(_VOCABULARY)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    return config


def write_standalone(name: str, folder: Path) -> str:
    """Write a shrunken model of open_clip for other processes, with its tokenizer next to it.

    An image tower of timm is replaced by a small one of timm's own, with attention pooling.
    """
    config = shrink(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        config["embed_dim"] = 96
        vision |= {"timm_model_name": "test_vit3", "image_size": 160}
    for key, own in (("hf_tokenizer_name", "tokenizer"), ("hf_model_name", "settings")):
        if key in text:
            write_tokenizer(folder / own)
            if key == "hf_model_name":
                (folder / own / "config.json").write_text(json.dumps(HUB_CONFIGS[text[key]]))
            text[key] = own
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def write_small(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a shrunken model of open_clip as a file for ``model.backbone`` and return its path.

    Until the end of the test, timm makes narrow towers of two blocks.
    """
    make = partial(timm.models.create_model, embed_dim=64, depth=2, num_heads=2)
    # Its stem of convolutions has a width of its own.
    if name.startswith("MobileCLIP-"):
        make = partial(timm.models.create_model, depth=2)
    monkeypatch.setattr("timm.create_model", make)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(shrink(open_clip.get_model_config(name))))
    return str(path)


SMALL_VIDEO: dict[str, Any] = {
    "model_type": "videomae",
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "tubelet_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}


def write_small_video(folder: Path, **settings: Any) -> str:
    """Write the sizes of a small video tower and return its name for ``model.backbone``.

    With ``region_size=(1, 2, 4)`` it has 4 regions of 8 tubelets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SMALL_VIDEO, **settings}))
    return f"videomae:{folder}"
