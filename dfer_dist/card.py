"""The model card of an exported model: what it is, what it was trained and tested on, how sure, and how to use it."""

from __future__ import annotations

from typing import Any

from dfer_dist.config import Config

_SELECTIONS = {
    "last": "the weights after the last epoch; the test fold was read once",
    "best_val": "the epoch that was best on a held-out part of the training folds",
    "best_test": "the epoch that was best **on the test fold itself**, as in the original papers: too good by an unknown amount",
}


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
        f"# DFER-CLIP: {', '.join(about['classes'])}",
        f"Tells apart {len(about['classes'])} facial expressions in a short clip of one face, with {about['backbone']}: {frames} frames "
        f"of {size} x {size} pixels (`{config.data.sampling.name}`{views}), {about['parameters']:,} parameters in float32. Made by dfer_dist "
        f"{about['software']['dfer_dist']}; the method is DFER-CLIP (Zhao & Patras, BMVC 2023).",
        "It was trained on faces that were cut out: give it such crops, or let `dfer predict --faces` cut them. The names are "
        "what annotators called an expression. A face does not tell what its owner feels.",
        _use(),
        _origin(about, config),
        _numbers(about),
        _texts(about),
        _files(about, about_sha256),
    ]
    return "\n\n".join(parts) + "\n"


def _use() -> str:
    return """## Use

In this folder, without DeepSpeed (`pip install -r requirements.txt`):

```python
import sys
import numpy as np
sys.path.insert(0, "code")  # this folder's copy of the package; leave it out where dfer_dist is installed
from dfer_dist.export import load
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
    rows = [("data set", about["dataset"] or "not told"), ("test fold (not trained on)", about["fold"] or "not told")]
    if about["converted_from"]:
        source = about["converted_from"]
        rows += [("converted from", f"`{source['file']}` of DFER-CLIP's authors, sha256 `{source['sha256']}`")]
    rows += [("epoch, step", f"{about['epoch']}, {about['step']}")] if about["epoch"] is not None else []
    rows += [("selection", f"`{about['selection']}`: {_SELECTIONS[about['selection']]}")]
    rows += [("tested in", about["precision"])]
    pretrained = f"`{about['pretrained']}`" + (f", sha256 `{about['pretrained_sha256']}`" if about["pretrained_sha256"] else "")
    rows += [("started from", pretrained), ("hash of the settings", f"`{about['config_hash']}`")]
    rows += [("hash of the data", f"`{about['index_hash']}`")] if about["index_hash"] else []
    rows += [("hash of the code", f"`{about['code_hash']}`" + (f", git `{about['git_sha']}`" if about["git_sha"] else ""))]
    rows += [("software", ", ".join(f"{name} {version}" for name, version in about["software"].items()))]
    return "## Where it comes from\n\n" + _table(("", ""), rows)


def _numbers(about: dict[str, Any]) -> str:
    result = about["result"]
    if result is None:
        return "## Numbers\n\nThere is no test result of these very weights beside the checkpoint: test it with `dfer eval`."
    rows = [("**UAR**", f"**{result['uar']:.2f}**", result["n"]), ("**WAR**", f"**{result['war']:.2f}**", result["n"])]
    for name, recall in result["recall"].items():
        rows += [(f"recall of {name}", "no clip" if recall is None else f"{recall:.2f}", result["support"][name])]
    head = f"## Numbers\n\nFold {result['fold']} of {result['dataset']}, {result['n']} clips, each predicted once, in percent. One fold is no "
    return head + "cross-validation: publish the mean over all.\n\n" + _table(("", "%", "clips"), rows)


def _texts(about: dict[str, Any]) -> str:
    rows = [(name, "<br>".join(sentences)) for name, sentences in about["texts"].items()]
    return "## What the text tower reads\n\nIn the order of the logits.\n\n" + _table(("class", "text"), rows)


def _files(about: dict[str, Any], about_sha256: str) -> str:
    rows = [(f"`{name}`", f"{file['bytes']:,}", f"`{file['sha256']}`") for name, file in about["files"].items()]
    rows += [("`model.json`", "", f"`{about_sha256}`")]
    return "## Files\n\nChecked whenever the model is loaded. Nothing is pickled.\n\n" + _table(("file", "bytes", "sha256"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
