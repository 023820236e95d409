"""The two towers of CLIP, from open_clip. Only :func:`fetch_weights` uses the network."""

from __future__ import annotations

import copy
import difflib
import json
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.model import resize_pos_embed
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dfer_dist.models.attention import use_explicit_attention
from dfer_dist.models.cpu_kernels import use_cpu_kernels
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file

# A CLIP small enough to train on one core, for tests and the demo. open_clip has no weights of it.
TINY: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
# Weights that come with this package, by backbone and tag, made by `dfer pretrain-demo`.
SHIPPED = {("tiny", "demo"): Path(__file__).parents[1] / "demo" / "tiny_demo.safetensors"}
# Entries of a TorchScript archive that are no weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


class TextTower(nn.Module):
    """CLIP's text transformer, fed with embedded prompts.

    Parameters
    ----------
    clip : open_clip.CLIP
        Its text modules are shared, not copied.
    """

    attn_mask: Tensor

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)

    def forward(self, prompts: Tensor, eot: Tensor) -> Tensor:
        """Return the features of embedded prompts.

        Parameters
        ----------
        prompts : [C, L, D]
            L is at most the context length. Attention is causal: tokens after EOT change nothing.
        eot : int64 [C]
            Position of the end-of-text token, whose feature is returned.

        Returns
        -------
        [C, E], not normalized
        """
        length = prompts.shape[1]
        # ZeRO-3 does not cast buffers, from which fixed prompts come.
        prompts = prompts.to(self.positional_embedding.dtype)
        x = prompts + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        # The norm acts on each token alone, so it is enough to normalize EOT.
        x = x[torch.arange(len(x), device=x.device), eot]
        return self.ln_final(x) @ self.text_projection


def load_backbone(
    name: str, pretrained: str, image_size: int
) -> tuple[VisionTransformer, TextTower, str | None]:
    """Return the image tower, the text tower, and the sha256 of the weights file.

    Parameters
    ----------
    name : str
        ``tiny``, a model of open_clip with a ViT image tower and a text tower like OpenAI's, or a
        ``.json`` file that describes such a model in the format of open_clip.
    pretrained : str
        A tag of open_clip whose file is in the local cache, ``demo`` for ``tiny``, a weights file,
        or ``none``: random weights from torch's global seed, and no sha256.
    image_size : int
        Side of the frames, pixels; pretrained position embeddings are resized to it.

    Raises
    ------
    UserError
        Unknown name or tag, weights not in the cache, or weights of another model.
    """
    config, path = clip_config(name), find_weights(name, pretrained)
    clip = build_clip(config, image_size)
    if path is not None:
        _load_file(clip, path, config.get("quick_gelu", False))
    use_explicit_attention(clip.visual.transformer, clip.transformer)
    use_cpu_kernels(clip.visual, clip.transformer)
    return clip.visual, TextTower(clip), sha256_file(path) if path else None


def clip_config(name: str) -> dict[str, Any]:
    """Return a copy of the sizes of a model, in open_clip's format.

    Parameters
    ----------
    name : str
        As for :func:`load_backbone`.

    Raises
    ------
    UserError
        Unknown name, a file that cannot be read, or a model that is not built as OpenAI's CLIP is.
    """
    if name == "tiny":
        return copy.deepcopy(TINY)
    if name.endswith(".json"):
        config = _read_sizes(Path(name))
    else:
        config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        near = difflib.get_close_matches(name, ["tiny", *open_clip.list_models()], n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"no backbone '{name}'{hint}")
    has_plain_vit = isinstance(config["vision_cfg"].get("layers"), int)
    fault = ""
    if not set(config["text_cfg"]) <= {"context_length", "vocab_size", "width", "heads", "layers"}:
        fault = "has another text tower or tokenizer than OpenAI's CLIP"
    if set(config) - {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"} or not has_plain_vit:
        fault = "has no plain ViT image tower"
    if fault:
        raise UserError(f"backbone '{name}' {fault}: choose one such as ViT-B-32-quickgelu")
    return config


def _read_sizes(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"backbone {path} cannot be read: {_one_line(e)}") from e
    if missing:
        raise UserError(
            f"backbone {path} does not describe a model of open_clip: "
            f"it has no {sorted(missing)[0]}"
        )
    return config


def build_clip(config: dict[str, Any], image_size: int) -> open_clip.CLIP:
    """Return a randomly initialized CLIP for frames of ``image_size`` pixels."""
    patch = config["vision_cfg"]["patch_size"]
    if image_size % patch:
        down = max(patch, image_size // patch * patch)
        raise UserError(
            f"data.image_size={image_size} is not a multiple of the backbone's patch of {patch} "
            f"pixels: set {down}"
        )
    config = copy.deepcopy(config)
    config["vision_cfg"]["image_size"] = image_size
    return open_clip.CLIP(**config)


def fetch_weights(name: str, tag: str) -> Path:
    """Download weights of a backbone into the cache that :func:`load_backbone` reads.

    Weights that came with this package are not downloaded.

    Raises
    ------
    UserError
        Unknown name or tag, a QuickGELU mismatch, or no connection.
    """
    if (name, tag) in SHIPPED:
        return SHIPPED[name, tag]
    published = _published(name, clip_config(name), tag)
    if published is None:
        raise UserError(_no_such_weights(name, tag))
    try:
        return Path(open_clip.download_pretrained(published))
    # huggingface_hub, urllib and the operating system raise many kinds.
    except Exception as e:
        raise UserError(f"{name} {tag} cannot be downloaded: {_one_line(e)}") from e


def find_weights(name: str, pretrained: str) -> Path | None:
    """Return the weights file of a backbone on this machine; None for random weights.

    Parameters
    ----------
    name, pretrained : str
        As for :func:`load_backbone`.

    Raises
    ------
    UserError
        Unknown name or tag, weights that are not on this machine or need another activation.
    """
    if pretrained == "none":
        return None
    if (name, pretrained) in SHIPPED:
        return SHIPPED[name, pretrained]
    published = _published(name, clip_config(name), pretrained)
    if published is None:
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise UserError(_no_such_weights(name, pretrained))
        return path
    cached = _cached(published)
    if cached is None:
        raise UserError(
            f"the weights '{pretrained}' of {name} are not on this machine: run "
            f"`dfer fetch-weights {name} {pretrained}` on a machine with network access"
        )
    return cached


def _published(name: str, config: dict[str, Any], tag: str) -> dict[str, Any] | None:
    """Return open_clip's entry for the weights, or None; refuse another activation."""
    model = name.replace("/", "-")
    found = open_clip.get_pretrained_cfg(model, tag)
    if found and bool(found.get("quick_gelu")) != bool(config.get("quick_gelu")):
        raise UserError(
            f"the weights '{tag}' were trained with QuickGELU, {name} has GELU: "
            f"set model.backbone={model}-quickgelu"
        )
    plain = model.removesuffix("-quickgelu")
    if not found and plain != model and open_clip.get_pretrained_cfg(plain, tag):
        raise UserError(
            f"the weights '{tag}' were trained with GELU, {name} has QuickGELU: "
            f"set model.backbone={plain}"
        )
    return found or None


def _no_such_weights(name: str, pretrained: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    tags += [tag for own, tag in SHIPPED if own == name]
    known = f"one of {', '.join(tags)}, " if tags else ""
    return (
        f"'{pretrained}' is neither published weights of {name} nor a file: "
        f"set model.pretrained to {known}a weights file or none"
    )


def _cached(published: dict[str, Any]) -> Path | None:
    """Return the file in Hugging Face's cache, where each ViT of open_clip has one, or None."""
    repo, _, filename = published["hf_hub"].rpartition("/")
    for candidate in [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
        path = try_to_load_from_cache(repo, candidate)
        if isinstance(path, str):
            return Path(path)
    return None


def _load_file(clip: open_clip.CLIP, path: Path, quick_gelu: bool) -> None:
    # Only OpenAI's own files are TorchScript archives.
    is_archive = _is_torchscript(path)
    if is_archive and not quick_gelu:
        raise UserError(
            f"{path} was trained with QuickGELU: use the backbone's name with -quickgelu"
        )
    try:
        if not is_archive:
            open_clip.load_checkpoint(clip, str(path))
            return
        archive = torch.jit.load(str(path), map_location="cpu")
        state = {k: v.float() for k, v in archive.state_dict().items() if k not in _NOT_WEIGHTS}
        resize_pos_embed(state, clip)
        clip.load_state_dict(state)
    # torch, pickle, safetensors and open_clip raise many kinds.
    except Exception as e:
        raise UserError(f"{path} does not hold weights of this backbone: {_one_line(e)}") from e


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
