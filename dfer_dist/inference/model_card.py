"""The content of an exported model's ``model.json``, and its model card."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import Config, config_hash
from dfer_dist.evaluation.metrics import left_out_text
from dfer_dist.inference.exported import INFO, ModelInfo
from dfer_dist.inference.pyfunc import REQUIREMENTS, TEMPLATES
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.runs import provenance
from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import read_json
from dfer_dist.utils.version import package_version

# Fields of ModelInfo that a checkpoint's state has by the same names.
_KEPT = ("dataset", "fold", "epoch", "step", "index_hash", "pretrained_sha256", "converted_from")
_SELECTIONS = {
    "last": "the weights after the last epoch; the test fold was read once",
    "best_val": "the epoch that was best on a held-out part of the training folds",
    "best_test": "the epoch that was best **on the test fold itself**, as in the original papers: "
    "too good by an unknown amount",
}


def describe(
    saved: Checkpoint, config: Config, classes: tuple[str, ...], parameters: int
) -> ModelInfo:
    """Describe a checkpoint; the hashes of the exported files are still to be added.

    Parameters
    ----------
    saved, config
        The checkpoint, and its settings with the user's overrides; the image size is settled.
    classes : tuple of C str
        In label order.
    parameters : int
        Numbers in all tensors.
    """
    state = saved.state
    texts = {
        polarity: dict(zip(classes, own, strict=True))
        for polarity, own in polarity_texts(classes, config.model).items()
    }
    kept: dict[str, Any] = {key: state.get(key) for key in _KEPT}
    origin = provenance.collect([])
    versions = {name: importlib.metadata.version(name) for name in (*REQUIREMENTS, "deepspeed")}
    return ModelInfo(
        classes=list(classes),
        texts=texts["positive"],
        negative_texts=texts.get("negative"),
        parameters=parameters,
        backbone=Path(config.model.backbone).name,
        pretrained=Path(config.model.pretrained).name,
        config_hash=state.get("config_hash") or config_hash(saved.config),
        modalities=state.get("levels"),
        **kept,
        objective=config.train.objective.name,
        selection=config.train.selection.name,
        precision=config.train.precision.name,
        result=_read_result(saved),
        software={"dfer_dist": package_version(), "python": platform.python_version(), **versions},
        code_hash=origin.code_hash,
        # The commit does not describe edited files.
        git_sha=origin.git.sha if origin.git and not origin.git.diff else None,
    )


def _read_result(saved: Checkpoint) -> dict[str, Any] | None:
    """Return the fold's result if it was measured with these weights, settings and data."""
    fold, state = FoldDir(saved.path.resolve().parent.parent), saved.state
    if not fold.result.is_file():
        return None
    result = read_json(fold.result)
    expected = {key: state.get(key) for key in ("fold", "step", "config_hash", "index_hash")}
    expected["checkpoint"] = f"{fold.checkpoints.name}/{saved.path.resolve().name}"
    if None in expected.values() or not expected.items() <= result.items():
        return None
    return result


def model_card(info: ModelInfo, config: Config, info_sha256: str) -> str:
    """Return the README.md of an exported model; ``info_sha256`` is that of ``model.json``."""
    size, frames = config.data.image_size, config.data.num_frames
    views = f", {config.eval.views} views of a clip averaged" if config.eval.views > 1 else ""
    parts = [
        f"# Facial expressions: {', '.join(info.classes)}",
        f"Classifies {len(info.classes)} facial expressions in a short clip of one face, with "
        f"{info.backbone}: {frames} frames of {size} x {size} pixels "
        f"(`{config.data.sampling.name}`{views}), {info.parameters:,} parameters in float32. "
        f"Made by dfer_dist {info.software['dfer_dist']}; the method is {_method(info, config)}.",
        (TEMPLATES / "use.md").read_text("utf-8").strip(),
        _origin(info),
        _results(info),
        _texts(info),
        _files(info, info_sha256),
    ]
    return "\n\n".join(parts) + "\n"


def _method(info: ModelInfo, config: Config) -> str:
    parts, model = [], config.model
    if "adapters" in (model.image.name, model.text_tower.name):
        parts.append("adapters")
    if info.negative_texts:
        parts.append("negative texts")
    if model.modalities:
        parts.append(" and ".join(model.modalities))
    added = " and ".join(", ".join(parts).rsplit(", ", 1))
    fine_cliper = f" with the {added} of FineCLIPER (Chen et al., ACM MM 2024)" if added else ""
    return "DFER-CLIP (Zhao & Patras, BMVC 2023)" + fine_cliper


def _origin(info: ModelInfo) -> str:
    rows = [
        ("data set", info.dataset or "unknown"),
        ("test fold (not trained on)", info.fold or "unknown"),
    ]
    if info.converted_from:
        file, sha256 = info.converted_from["file"], info.converted_from["sha256"]
        rows.append(("converted from", f"`{file}` of DFER-CLIP's authors, sha256 `{sha256}`"))
    if info.epoch is not None:
        rows.append(("epoch, step", f"{info.epoch}, {info.step}"))
    rows.append(("selection", f"`{info.selection}`: {_SELECTIONS[info.selection]}"))
    if info.objective != "labels":
        what = "descriptions of the clips, each contrasted with all clips of a step"
        rows.append(("learned from", f"`{info.objective}`: {what}"))
    rows.append(("number format of the towers", info.precision))
    if not info.converted_from:
        sha256 = f", sha256 `{info.pretrained_sha256}`" if info.pretrained_sha256 else ""
        rows.append(("started from", f"`{info.pretrained}`{sha256}"))
    rows.append(("hash of the settings", f"`{info.config_hash}`"))
    if info.index_hash:
        rows.append(("hash of the data", f"`{info.index_hash}`"))
    commit = f", git `{info.git_sha}`" if info.git_sha else ""
    rows.append(("hash of the code", f"`{info.code_hash}`{commit}"))
    software = (f"{name} {version}" for name, version in info.software.items())
    rows.append(("software", ", ".join(software)))
    return "## Origin\n\n" + _table(("", ""), rows)


def _results(info: ModelInfo) -> str:
    result = info.result
    if result is None:
        return (
            "## Results\n\nThe checkpoint has no test result of these very weights: "
            "test it with `dfer eval`."
        )
    rows = [
        ("**UAR**", f"**{result['uar']:.2f}**", result["n"]),
        ("**WAR**", f"**{result['war']:.2f}**", result["n"]),
    ]
    for name, recall in result["recall"].items():
        percent = "no clip" if recall is None else f"{recall:.2f}"
        rows.append((f"recall of {name}", percent, result["support"][name]))
    lost: list[str] = result.get("left_out", [])
    left_out = ""
    if lost:
        left_out = f" **{left_out_text(len(lost), result['n'])}**: {', '.join(lost)}."
    return (
        f"## Results\n\nFold {result['fold']} of {result['dataset']}, {result['n']} clips, each "
        "predicted once, in percent. One fold is no cross-validation: publish the mean over all."
        f"{left_out}\n\n" + _table(("", "%", "clips"), rows)
    )


def _texts(info: ModelInfo) -> str:
    columns = {"text": info.texts}
    if info.negative_texts:
        columns["negative text"] = info.negative_texts
    rows = [
        (name, *("<br>".join(texts[name]) for texts in columns.values())) for name in info.classes
    ]
    head = ("class", *columns)
    return "## Class texts\n\nIn the order of the logits.\n\n" + _table(head, rows)


def _files(info: ModelInfo, info_sha256: str) -> str:
    rows = [
        (f"`{name}`", f"{file['bytes']:,}", f"`{file['sha256']}`")
        for name, file in info.files.items()
    ]
    rows.append((f"`{INFO}`", "", f"`{info_sha256}`"))
    table = _table(("file", "bytes", "sha256"), rows)
    return "## Files\n\nChecked whenever the model is loaded. Nothing is pickled.\n\n" + table


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = []
    for row in (head, tuple("---" for _ in head), *rows):
        cells = (str(cell).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
