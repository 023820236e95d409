"""Text towers and tokenizers of the Hugging Face Hub, which the library transformers runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip.hf_model
import open_clip.model
from huggingface_hub import snapshot_download
from open_clip.tokenizer import HFTokenizer

from dfer_dist.models.tokenizer import CONTEXT, TextTokenizer
from dfer_dist.utils.errors import UserError

# Everything but weights.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken")


def import_transformers() -> ModuleType:
    """Import the library transformers.

    A rank forbids its import (:mod:`dfer_dist.train`), since open_clip tries it at once and most
    backbones do without. This allows it.

    Raises
    ------
    UserError
        If it is not installed.
    """
    if sys.modules.get("transformers", True) is None:
        del sys.modules["transformers"]
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as e:
        raise UserError(
            "this backbone needs the library transformers: pip install 'dfer_dist[hub]'"
        ) from e
    if open_clip.hf_model.transformers is None:
        importlib.reload(open_clip.hf_model)
        open_clip.model.HFTextEncoder = open_clip.hf_model.HFTextEncoder
    return transformers


def find_folder(name: str, backbone: str = "BACKBONE") -> Path:
    """Return the folder with the configuration or tokenizer of a model of the Hub.

    Parameters
    ----------
    name : str
        A repository in the local cache, such as ``roberta-base``, or a folder.
    backbone : str
        Whose text tower needs it, for the error.

    Raises
    ------
    UserError
        If it is not on this machine.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(name, local_files_only=True, allow_patterns=list(_SMALL_FILES))
        )
    # huggingface_hub raises many kinds.
    except Exception as e:
        raise UserError(
            f"'{name}' of the Hugging Face Hub, which the text tower needs, is not on this "
            f"machine: run `dfer fetch-weights {backbone} none` on a machine with network access"
        ) from e


def small_files(folder: Path) -> list[Path]:
    """Return the files of a model of the Hub without its weights, by name."""
    found = (file for pattern in _SMALL_FILES for file in folder.glob(pattern))
    return sorted(file for file in set(found) if file.is_file())


def fetch_folder(name: str) -> Path:
    """Download what :func:`find_folder` finds, and return it."""
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=list(_SMALL_FILES)))


def repositories(text_cfg: dict[str, Any]) -> set[str]:
    """Return the repositories that a text tower needs besides its weights."""
    return {text_cfg[key] for key in ("hf_model_name", "hf_tokenizer_name") if text_cfg.get(key)}


def hub_tokenizer(text_cfg: dict[str, Any], fills_context: bool) -> TextTokenizer:
    """Return how a text tower with a tokenizer of the Hub reads a text.

    Parameters
    ----------
    text_cfg : dict
        Of the backbone, in open_clip's format.
    fills_context : bool
        Whether the tower sees the padding.

    Raises
    ------
    UserError
        If the tokenizer is not on this machine, or transformers is not installed.
    """
    import_transformers()
    folder = find_folder(text_cfg["hf_tokenizer_name"])
    length = text_cfg.get("context_length", CONTEXT)
    options = text_cfg.get("tokenizer_kwargs") or {}
    own = HFTokenizer(str(folder), context_length=length, **options)

    def encode(text: str, special: bool = False) -> list[int]:
        ids = own.tokenizer(own.clean_fn(text), add_special_tokens=special).input_ids
        if own.strip_sep_token:
            return [0 if i == own.tokenizer.sep_token_id else i for i in ids]
        return list(ids)

    start, end = _around(encode("a"), encode("a", special=True))
    return TextTokenizer(encode, start, end, own.tokenizer.pad_token_id, length, fills_context)


def _around(plain: list[int], whole: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens before and after a text."""
    first = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return tuple(whole[:first]), tuple(whole[first + len(plain) :])
