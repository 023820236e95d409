"""Export a checkpoint as a folder that needs no pretrained file, no data set and no DeepSpeed.

::

    OUT/
      model.safetensors             all weights in float32, frozen ones too
      config.yaml                   settings; model.sentences and model.negative_sentences hold the
                                    texts of the classes
      backbone.json  tokenizer/     the backbone, if its name does not say all
      text_config/                  (:mod:`dfer_dist.inference.portable_backbone`)
      model.json                    classes, origin, the fold's result, sha256 of the files above
      README.md  LICENSE            the model card, and terms of the weights and of the code
      MLmodel  requirements.txt     the same folder as an MLflow model,
      *_example.json                with an example of its input and of a request
      code/dfer_dist/               this package, so that the folder loads where it is not installed

A repository of the Hugging Face Hub may have two files more: ``config.json`` and
``.gitattributes``. Nothing in it is pickled. :mod:`dfer_dist.inference.exported` loads it, after
checking the hashes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import dfer_dist
from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config, TrackingConfig
from dfer_dist.evaluation.evaluate import load_model
from dfer_dist.inference.exported import CARD, CONFIG, INFO, WEIGHTS, ModelInfo
from dfer_dist.inference.model_card import (
    LICENSE,
    OTHER,
    TASK,
    check_license,
    describe,
    license_text,
    model_card,
)
from dfer_dist.inference.portable_backbone import write_backbone
from dfer_dist.inference.pyfunc import write_mlflow
from dfer_dist.models.class_texts import output_classes
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import fsync, sha256_file, write_json, write_text

# The only setting that may be given: it says where a file is, not what the model is.
_PRETRAINED = "model.pretrained"


def export(
    path: Path, out: Path, overrides: list[str], license_id: str = OTHER, hub_layout: bool = False
) -> ModelInfo:
    """Write a checkpoint as a model on its own. The folder appears complete or not at all.

    Parameters
    ----------
    path : Path
        A checkpoint's folder, or LATEST or BEST next to it.
    out : Path
        The folder to make; it may exist if it is empty.
    overrides : list of str
        ``model.pretrained=FILE``, if that file has moved.
    license_id : str
        Of the weights, for the model card: an identifier of the Hugging Face Hub.
    hub_layout : bool
        Add what tools of the Hub look for.

    Returns
    -------
    ModelInfo
        The content of ``model.json``.

    Raises
    ------
    UserError
        If ``out`` is not empty, an override would make another model, ``license_id`` is no
        identifier, or the checkpoint cannot be loaded.
    """
    _check_arguments(out, overrides)
    check_license(license_id)
    saved = checkpoint.read(path, weights_only=True)
    config = read_config(saved.path / checkpoint.CONFIG, overrides)
    classes = output_classes(saved.state["classes"], config.model)
    model = load_model(saved, config, classes)
    weights = {name: w.detach().float().contiguous() for name, w in model.state_dict().items()}
    info = describe(saved, config, classes, sum(w.numel() for w in weights.values()))

    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        checkpoint.save_tensors(weights, folder / WEIGHTS)
        backbone = write_backbone(folder, config.model, model)
        info = _write_other_files(folder, config, info, backbone, license_id)
        if hub_layout:
            _write_hub_files(folder, info)
        _move(folder, out)
    return info


def _move(folder: Path, out: Path) -> None:
    """Rename a folder once its files are on the disk."""
    for written in (*folder.rglob("*"), folder):
        fsync(written)
    folder.rename(out)
    fsync(out.absolute().parent)


def _check_arguments(out: Path, overrides: list[str]) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: give a new folder")
    for override in overrides:
        if override.partition("=")[0] != _PRETRAINED:
            raise UserError(
                f"'{override}' cannot be set here: a model is exported as it was trained "
                f"(only {_PRETRAINED}=FILE is allowed)"
            )


def _write_other_files(
    folder: Path, config: Config, info: ModelInfo, backbone: str, license_id: str
) -> ModelInfo:
    """Write everything but towers and weights; return ``info`` with the hashes of the files."""
    model = replace(
        config.model,
        backbone=backbone,
        # The built-in texts may change in a later version, paths differ on another machine.
        sentences=info.texts or config.model.sentences,
        negative_sentences=info.negative_texts,
        pretrained=info.pretrained,
    )
    data = replace(config.data, shards="not-set", cache=None)
    portable = replace(config, model=model, data=data, tracking=TrackingConfig())
    write_text(folder / CONFIG, dump_config(portable))

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {
        f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "sha256": sha256_file(f)}
        for f in files
    }
    info = replace(info, files=hashes)
    write_json(folder / INFO, info.to_json())
    card = model_card(info, config, sha256_file(folder / INFO), license_id)
    write_text(folder / CARD, card)
    write_text(folder / LICENSE, license_text(info, license_id))
    package = Path(dfer_dist.__file__).parent
    shutil.copytree(
        package, folder / "code" / "dfer_dist", ignore=shutil.ignore_patterns("__pycache__")
    )
    write_mlflow(folder, info.classes)
    return info


def _write_hub_files(folder: Path, info: ModelInfo) -> None:
    """Write what the Hub counts downloads by, and what ``git push`` to it needs."""
    about = {
        "library_name": "dfer_dist",
        "pipeline_tag": TASK,
        "id2label": dict(enumerate(info.classes)),
        "label2id": {name: i for i, name in enumerate(info.classes)},
    }
    write_text(folder / "config.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / ".gitattributes", "*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
