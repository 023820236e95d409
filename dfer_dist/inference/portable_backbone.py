"""The backbone of an exported model as a file that needs nothing of the Hugging Face Hub.

::

    backbone.json      sizes of the towers in open_clip's format, with mean and deviation of the
                       pixels, and scale and bias of the logits; or those of a video tower
    tokenizer/         files of the text tower's tokenizer, if it is of the Hub
    text_config/       settings of the text tower, likewise
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from dfer_dist.config.checks import WITHOUT_TEXT
from dfer_dist.config.schema import ModelConfig
from dfer_dist.inference.exported import BACKBONE
from dfer_dist.models.backbone import describe_backbone
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.towers import hub, videomae
from dfer_dist.models.towers.open_clip_models import clip_config
from dfer_dist.models.towers.tower import BackboneInfo
from dfer_dist.utils.files import write_text

TOKENIZER = "tokenizer"
# Folders for what a text tower names in these fields.
_FOLDERS = {"hf_tokenizer_name": TOKENIZER, "hf_model_name": "text_config"}


def write_backbone(folder: Path, cfg: ModelConfig, model: DFERCLIP) -> str:
    """Write the backbone of a model into ``folder``, if its name alone does not describe it.

    Parameters
    ----------
    cfg : ModelConfig
        Of the model.
    model : DFERCLIP
        With its weights.

    Returns
    -------
    str
        ``model.backbone`` of the exported model: ``backbone.json``, or its name.

    Raises
    ------
    UserError
        If files of the Hub are not on this machine.
    """
    info = describe_backbone(cfg.backbone, cfg.pretrained)
    if info.is_video:
        sizes = videomae.sizes_file(cfg.backbone)
        if sizes is None:
            return cfg.backbone
        shutil.copyfile(sizes, folder / BACKBONE)
        return videomae.PREFIX + BACKBONE
    # Libraries outside of this package know these by name.
    if cfg.backbone.startswith(WITHOUT_TEXT):
        return cfg.backbone
    config = clip_config(cfg.backbone)
    if not cfg.backbone.endswith(".json") and not _needs_file(cfg, config, info, model):
        return cfg.backbone
    config["preprocess_cfg"] = {
        **config.get("preprocess_cfg", {}),
        "mean": list(info.mean),
        "std": list(info.std),
    }
    if model.text is None:
        config["text_cfg"] = {}
    elif cfg.temperature is None:
        config["init_logit_scale"] = -math.log(model.temperature)
        if config.get("init_logit_bias") is not None:
            config["init_logit_bias"] = model.logit_bias
    _copy_hub_files(folder, config["text_cfg"])
    write_text(folder / BACKBONE, json.dumps(config, indent=2) + "\n")
    return BACKBONE


def _needs_file(
    cfg: ModelConfig, config: dict[str, Any], info: BackboneInfo, model: DFERCLIP
) -> bool:
    """Return whether another machine needs more than the name of a model of open_clip."""
    openai = (tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD))
    if cfg.normalize and (info.mean, info.std) != openai:
        return True
    if model.text is None:
        return False
    return cfg.temperature is None or bool(hub.repositories(config["text_cfg"]))


def _copy_hub_files(folder: Path, text_cfg: dict[str, Any]) -> None:
    """Copy files of the Hub that a text tower needs; name them relative to ``folder``."""
    for key, name in _FOLDERS.items():
        if not text_cfg.get(key):
            continue
        (folder / name).mkdir()
        for file in hub.small_files(hub.find_folder(text_cfg[key])):
            shutil.copyfile(file, folder / name / file.name)
        text_cfg[key] = name
