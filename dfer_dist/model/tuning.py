"""What is trained of CLIP's towers, and in which group; everything else is frozen before an optimizer sees it."""

from __future__ import annotations

from open_clip.transformer import VisionTransformer
from torch import nn

from dfer_dist import UserError
from dfer_dist.config import ImageTuning, ModelConfig, TextTuning
from dfer_dist.model.backbone import TextTower
from dfer_dist.model.lora import add_lora, lora_names


def choose_trained(cfg: ModelConfig, image: VisionTransformer, text: TextTower) -> None:
    """Freeze, thaw and adapt the towers in place as ``cfg.image`` and ``cfg.text_tower`` say.

    ``last`` is partial fine-tuning (He et al., CVPR 2022, section 4.3): the last blocks, the norm after them and the projection.

    Raises
    ------
    UserError
        If the image tower has fewer blocks than are to be trained, or LoRA cannot be added to a tower.
    """
    image.requires_grad_(cfg.image is ImageTuning.all)
    if cfg.image is ImageTuning.last:
        blocks = image.transformer.resblocks
        if cfg.image_blocks > len(blocks):
            raise UserError(f"model.image_blocks={cfg.image_blocks}: {cfg.backbone} has {len(blocks)} blocks")
        for part in (*blocks[-cfg.image_blocks :], image.ln_post, image.proj):
            part.requires_grad_(True)
    elif cfg.image is ImageTuning.norms:
        for module in image.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
    elif cfg.image is ImageTuning.lora:
        add_lora(image.transformer, cfg.lora_rank, cfg.lora_alpha)
    text.requires_grad_(False)
    if cfg.text_tower is TextTuning.lora:
        add_lora(text.transformer, cfg.lora_rank, cfg.lora_alpha)


def param_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trained parameters as (name in the model, parameter), by group; each group has a learning rate of its own.

    The groups are ``temporal``, ``image``, ``prompt`` and ``lora`` (the factors of both towers), in this order, without those
    that have nothing to train.
    """
    trained, lora = [(name, p) for name, p in model.named_parameters() if p.requires_grad], lora_names(model)
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"temporal": [], "image": [], "prompt": [], "lora": []}
    for name, p in trained:
        groups["lora" if name in lora else name.partition(".")[0]].append((name, p))
    return {group: own for group, own in groups.items() if own}
