"""What is told of an exported model: the content of ``model.json``, and the card: what it is, from where, how good, how to use it."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import dfer_dist
from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import (
    Config,
    ImageTuning,
    ModelConfig,
    Supervision,
    TextPolarity,
    TextTuning,
    config_hash,
)
from dfer_dist.inference.export import KIND
from dfer_dist.inference.pyfunc import NEEDS
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.runs import provenance
from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import read_json

_SELECTIONS = {
    "last": "the weights after the last epoch; the test fold was read once",
    "best_val": "the epoch that was best on a held-out part of the training folds",
    "best_test": "the epoch that was best **on the test fold itself**, as in the original papers: too good by an unknown amount",
}


def describe(
    saved: Checkpoint, config: Config, classes: tuple[str, ...], weights: int
) -> dict[str, Any]:
    """What ``model.json`` says, but for the hashes of the files.

    Parameters
    ----------
    saved, config
        The checkpoint, and its settings with what the person added; the image size is settled.
    classes : tuple of C str
        In label order.
    weights : int
        Numbers in all tensors.
    """
    state, result = saved.state, _own_result(saved)
    texts = {
        side: dict(zip(classes, own, strict=True))
        for side, own in polarity_texts(classes, config.model).items()
    }
    checkout = provenance.collect([])["git"]
    software = {name: importlib.metadata.version(name) for name in (*NEEDS, "deepspeed")}
    return {
        "kind": KIND,
        "classes": list(classes),
        "texts": texts["positive"],
        **({"negative_texts": texts["negative"]} if "negative" in texts else {}),
        "parameters": weights,
        "backbone": Path(config.model.backbone).name,
        "pretrained": Path(config.model.pretrained).name,
        "dataset": state.get("dataset"),
        **{
            key: state.get(key)
            for key in (
                "fold",
                "epoch",
                "step",
                "index_hash",
                "pretrained_sha256",
                "converted_from",
            )
        },
        "config_hash": state.get("config_hash") or config_hash(saved.config),
        "levels": state.get("levels"),
        "objective": config.train.objective.name,
        "selection": config.train.selection.name,
        "precision": config.train.precision.name,
        "result": result,
        "software": {
            "dfer_dist": dfer_dist.__version__,
            "python": platform.python_version(),
            **software,
        },
        "code_hash": provenance.code_hash(Path(dfer_dist.__file__).parent),
        "git_sha": checkout["sha"]
        if checkout and not checkout["diff"]
        else None,  # of edited files it says nothing
    }


def _own_result(saved: Checkpoint) -> dict[str, Any] | None:
    """The fold's result, if it was measured with these weights; not that of another epoch, nor of other settings or data."""
    fold, state = FoldDir(saved.path.resolve().parent.parent), saved.state
    if not fold.result.is_file():
        return None
    result = read_json(fold.result)
    own = {key: state.get(key) for key in ("fold", "step", "config_hash", "index_hash")}
    own["checkpoint"] = f"{fold.checkpoints.name}/{saved.path.resolve().name}"
    return (
        result
        if all(value is not None and result.get(key) == value for key, value in own.items())
        else None
    )


def card(about: dict[str, Any], config: Config, about_sha256: str) -> str:
    """README.md of an exported model.

    Parameters
    ----------
    about : dict
        The content of ``model.json``.
    about_sha256 : str
        Of that file.
    """
    size, frames = config.data.image_size, config.data.num_frames
    views = f", {config.eval.views} views of a clip averaged" if config.eval.views > 1 else ""
    parts = [
        f"# Facial expressions: {', '.join(about['classes'])}",
        f"Tells apart {len(about['classes'])} facial expressions in a short clip of one face, with {about['backbone']}: {frames} frames "
        f"of {size} x {size} pixels (`{config.data.sampling.name}`{views}), {about['parameters']:,} parameters in float32. Made by dfer_dist "
        f"{about['software']['dfer_dist']}; the method is {_method(config.model)}.",
        "It was trained on faces that were cut out: give it such crops, or let `dfer predict --faces` cut them. The names are "
        "what annotators called an expression. A face does not tell what its owner feels.",
        _use(),
        _origin(about, config),
        _numbers(about),
        _texts(about),
        _files(about, about_sha256),
    ]
    return "\n\n".join(parts) + "\n"


def _method(model: ModelConfig) -> str:
    adapters = model.image is ImageTuning.adapters or model.text_tower is TextTuning.adapters
    there = (
        ("adapters", adapters),
        ("negative texts", model.text_polarity is TextPolarity.both),
        (" and ".join(model.modalities), model.modalities),
    )
    added = ", ".join(what for what, is_there in there if is_there)
    added = " and ".join(added.rsplit(", ", 1))
    return "DFER-CLIP (Zhao & Patras, BMVC 2023)" + (
        f" with the {added} of FineCLIPER (Chen et al., ACM MM 2024)" if added else ""
    )


def _use() -> str:
    return """## Use

In this folder, without DeepSpeed (`pip install -r requirements.txt`):

```python
import sys
import numpy as np

sys.path.insert(0, "code")  # this folder's copy of the package; leave it out where dfer_dist is installed
from dfer_dist.inference.export import load

model = load(".")
frames = np.zeros((1, 40, 224, 224, 3), np.uint8)  # clips of RGB frames: any number, length and size
for name, probability in zip(model.classes, model.probabilities(frames)[0]):
    print(f"{name:15s} {probability:.3f}")
```

With MLflow, clips as above or films by their paths (one, or a list of them); a row each, a column for each class:

```python
import mlflow
import numpy as np

model = mlflow.pyfunc.load_model(".")
print(model.predict(np.zeros((1, 40, 224, 224, 3), np.uint8)))
# model.predict(["a.mp4", "b.mp4"], params={"faces": True})
```

Over time, with a table and a plot: `dfer predict . VIDEO --faces`."""


def _origin(about: dict[str, Any], config: Config) -> str:
    rows = [
        ("data set", about["dataset"] or "not told"),
        ("test fold (not trained on)", about["fold"] or "not told"),
    ]
    if about["converted_from"]:
        source = about["converted_from"]
        rows += [
            (
                "converted from",
                f"`{source['file']}` of DFER-CLIP's authors, sha256 `{source['sha256']}`",
            )
        ]
    rows += (
        [("epoch, step", f"{about['epoch']}, {about['step']}")]
        if about["epoch"] is not None
        else []
    )
    rows += [("selection", f"`{about['selection']}`: {_SELECTIONS[about['selection']]}")]
    if config.train.objective is not Supervision.labels:
        rows += [
            (
                "learned from",
                f"`{about['objective']}`: descriptions of the clips, each held against all clips of a step",
            )
        ]
    rows += [("number format of the towers", about["precision"])]
    pretrained = f"`{about['pretrained']}`" + (
        f", sha256 `{about['pretrained_sha256']}`" if about["pretrained_sha256"] else ""
    )
    rows += [] if about["converted_from"] else [("started from", pretrained)]
    rows += [("hash of the settings", f"`{about['config_hash']}`")]
    rows += [("hash of the data", f"`{about['index_hash']}`")] if about["index_hash"] else []
    rows += [
        (
            "hash of the code",
            f"`{about['code_hash']}`" + (f", git `{about['git_sha']}`" if about["git_sha"] else ""),
        )
    ]
    rows += [
        ("software", ", ".join(f"{name} {version}" for name, version in about["software"].items()))
    ]
    return "## Where it comes from\n\n" + _table(("", ""), rows)


def _numbers(about: dict[str, Any]) -> str:
    result = about["result"]
    if result is None:
        return "## Numbers\n\nThere is no test result of these very weights beside the checkpoint: test it with `dfer eval`."
    rows = [
        ("**UAR**", f"**{result['uar']:.2f}**", result["n"]),
        ("**WAR**", f"**{result['war']:.2f}**", result["n"]),
    ]
    for name, recall in result["recall"].items():
        rows += [
            (
                f"recall of {name}",
                "no clip" if recall is None else f"{recall:.2f}",
                result["support"][name],
            )
        ]
    head = f"## Numbers\n\nFold {result['fold']} of {result['dataset']}, {result['n']} clips, each predicted once, in percent. One fold is no "
    return (
        head + "cross-validation: publish the mean over all.\n\n" + _table(("", "%", "clips"), rows)
    )


def _texts(about: dict[str, Any]) -> str:
    sides = [about["texts"], *([about["negative_texts"]] if "negative_texts" in about else [])]
    rows = [(name, *("<br>".join(side[name]) for side in sides)) for name in about["classes"]]
    head = ("class", "text", "negative text")[: 1 + len(sides)]
    return "## What the text tower reads\n\nIn the order of the logits.\n\n" + _table(head, rows)


def _files(about: dict[str, Any], about_sha256: str) -> str:
    rows = [
        (f"`{name}`", f"{file['bytes']:,}", f"`{file['sha256']}`")
        for name, file in about["files"].items()
    ]
    rows += [("`model.json`", "", f"`{about_sha256}`")]
    return "## Files\n\nChecked whenever the model is loaded. Nothing is pickled.\n\n" + _table(
        ("file", "bytes", "sha256"), rows
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
