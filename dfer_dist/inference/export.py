"""Export a checkpoint as a folder that needs no pretrained file, no data set and no DeepSpeed.

::

    OUT/
      model.safetensors             all weights in float32, frozen ones too
      config.yaml                   settings; model.sentences and model.negative_sentences hold the
                                    texts of the classes
      backbone.json                 sizes of the towers, if the checkpoint's were in a file
      model.json                    classes, origin, the fold's result, sha256 of the files above
      README.md                     the model card
      MLmodel  requirements.txt     the same folder as an MLflow model,
      *_example.json                with an example of its input and of a request
      code/dfer_dist/               this package, so that the folder loads where it is not installed

Nothing in it is pickled. :mod:`dfer_dist.inference.exported` loads it, after checking the hashes.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import dfer_dist
from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config, TrackingConfig
from dfer_dist.evaluation.evaluate import load_model
from dfer_dist.inference.exported import BACKBONE, CARD, CONFIG, INFO, WEIGHTS, ModelInfo
from dfer_dist.inference.model_card import describe, model_card
from dfer_dist.inference.pyfunc import write_mlflow
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import fsync, sha256_file, write_json, write_text

# The only setting that may be given: it says where a file is, not what the model is.
_PRETRAINED = "model.pretrained"


def export(path: Path, out: Path, overrides: list[str]) -> ModelInfo:
    """Write a checkpoint as a model on its own. The folder appears complete or not at all.

    Parameters
    ----------
    path : Path
        A checkpoint's folder, or LATEST or BEST next to it.
    out : Path
        The folder to make; it may exist if it is empty.
    overrides : list of str
        ``model.pretrained=FILE``, if that file has moved.

    Returns
    -------
    ModelInfo
        The content of ``model.json``.

    Raises
    ------
    UserError
        If ``out`` is not empty, an override would make another model, or the checkpoint cannot be
        loaded.
    """
    _check_arguments(out, overrides)
    saved = checkpoint.read(path, weights_only=True)
    config = read_config(saved.path / checkpoint.CONFIG, overrides)
    classes = tuple(saved.state["classes"])
    model = load_model(saved, config, classes)
    weights = {name: w.detach().float().contiguous() for name, w in model.state_dict().items()}
    info = describe(saved, config, classes, sum(w.numel() for w in weights.values()))

    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        checkpoint.save_tensors(weights, folder / WEIGHTS)
        info = _write_other_files(folder, config, info)
        for written in (*folder.rglob("*"), folder):
            fsync(written)
        folder.rename(out)
    fsync(parent)
    return info


def _check_arguments(out: Path, overrides: list[str]) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: give a new folder")
    for override in overrides:
        if override.partition("=")[0] != _PRETRAINED:
            raise UserError(
                f"'{override}' cannot be set here: a model is exported as it was trained "
                f"(only {_PRETRAINED}=FILE is allowed)"
            )


def _write_other_files(folder: Path, config: Config, info: ModelInfo) -> ModelInfo:
    """Write everything but the weights; return ``info`` with the hashes of the files."""
    model = replace(
        config.model,
        # The built-in texts may change in a later version, paths differ on another machine.
        sentences=info.texts,
        negative_sentences=info.negative_texts,
        pretrained=info.pretrained,
    )
    if model.backbone.endswith(".json"):
        shutil.copyfile(model.backbone, folder / BACKBONE)
        model.backbone = BACKBONE
    data = replace(config.data, shards="not-set", cache=None)
    portable = replace(config, model=model, data=data, tracking=TrackingConfig())
    write_text(folder / CONFIG, dump_config(portable))

    files = [folder / name for name in (WEIGHTS, CONFIG, BACKBONE) if (folder / name).exists()]
    hashes = {f.name: {"bytes": f.stat().st_size, "sha256": sha256_file(f)} for f in files}
    info = replace(info, files=hashes)
    write_json(folder / INFO, info.to_json())
    write_text(folder / CARD, model_card(info, config, sha256_file(folder / INFO)))
    package = Path(dfer_dist.__file__).parent
    shutil.copytree(
        package, folder / "code" / "dfer_dist", ignore=shutil.ignore_patterns("__pycache__")
    )
    write_mlflow(folder, info.classes)
    return info
