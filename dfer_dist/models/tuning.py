"""Choose which parameters are trained, and in which group; the others are frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dfer_dist.config.schema import ImageTuning, ModelConfig, TextTuning
from dfer_dist.models.adapters import adapt_image, adapt_text, adapter_names
from dfer_dist.models.lora import add_lora, lora_names
from dfer_dist.models.towers.image import tower_parts
from dfer_dist.models.towers.text import HubTextTower, TextTower
from dfer_dist.utils.errors import UserError


def choose_trained(
    cfg: ModelConfig,
    image: nn.Module,
    text: TextTower | HubTextTower | None,
    frames: int,
    sentences: Mapping[str, int],
) -> None:
    """Freeze, unfreeze and adapt the towers in place, by ``cfg.image`` and ``cfg.text_tower``.

    ``last`` is partial fine-tuning (He et al., CVPR 2022, section 4.3): the last blocks, the norm
    after them and the projection.

    Parameters
    ----------
    frames : int
        T of a clip.
    sentences : mapping of polarity to int
        Sentences that the text tower reads.

    Raises
    ------
    UserError
        If the image tower has fewer blocks than are to be trained, or LoRA or adapters cannot be
        added to a tower.
    """
    _tune_image(cfg, image, frames)
    if text is None:
        return
    text.requires_grad_(False)
    if cfg.text_tower is TextTuning.frozen:
        return
    if isinstance(text, HubTextTower):
        raise UserError(
            f"model.text_tower={cfg.text_tower.name}: the text tower of {cfg.backbone} comes from "
            "the Hugging Face Hub, and only those of open_clip can be trained: set frozen"
        )
    if cfg.text_tower is TextTuning.lora:
        add_lora(text.transformer.resblocks, cfg.lora_rank, cfg.lora_alpha)
    else:
        adapt_text(text.transformer, cfg, sentences)


def _tune_image(cfg: ModelConfig, image: nn.Module, frames: int) -> None:
    image.requires_grad_(cfg.image is ImageTuning.all)
    parts = tower_parts(image)
    if cfg.image is ImageTuning.last:
        blocks = parts.blocks
        if cfg.image_blocks > len(blocks):
            raise UserError(
                f"model.image_blocks={cfg.image_blocks}: {cfg.backbone} has {len(blocks)} blocks"
            )
        for part in (*blocks[-cfg.image_blocks :], *parts.tail):
            part.requires_grad_(True)
    elif cfg.image is ImageTuning.norms:
        for module in image.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
    elif cfg.image is ImageTuning.lora:
        add_lora(parts.blocks, cfg.lora_rank, cfg.lora_alpha)
    elif cfg.image is ImageTuning.adapters:
        adapt_image(parts, cfg, frames)


def param_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the trained parameters by group, as pairs of name and parameter.

    Each group has a learning rate of its own. The groups are ``temporal``, ``image``, ``prompt``,
    ``head``, ``lora`` (of both towers) and ``adapters`` (of both towers, and the weights of
    modalities), in this order, without empty ones.
    """
    added = dict.fromkeys(lora_names(model), "lora")
    added |= dict.fromkeys(adapter_names(model), "adapters")
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {
        part: [] for part in ("temporal", "image", "prompt", "head", "lora", "adapters")
    }
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[added.get(name) or name.partition(".")[0]].append((name, p))
    return {group: own for group, own in groups.items() if own}


def trained_line(model: nn.Module) -> str:
    """Return how many parameters are trained, by group.

    Such as "trained: 13.42 of 163.04 million parameters (adapters 13.42)".
    """
    groups = {
        group: sum(p.numel() for _, p in own) / 1e6 for group, own in param_groups(model).items()
    }
    total = sum(p.numel() for p in model.parameters()) / 1e6
    each = ", ".join(f"{group} {count:.2f}" for group, count in groups.items())
    return f"trained: {sum(groups.values()):.2f} of {total:.2f} million parameters ({each})"
