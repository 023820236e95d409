"""The content of an exported model's ``model.json``, and its model card."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.applicable import VIDEO
from dfer_dist.config.schema import Config, Head, TemporalKind, config_hash
from dfer_dist.evaluation.metrics import bootstrap_ci, left_out_text, wilson_interval
from dfer_dist.inference.exported import INFO, WEIGHTS, ModelInfo
from dfer_dist.inference.pyfunc import REQUIREMENTS, TEMPLATES
from dfer_dist.models.class_texts import polarity_texts
from dfer_dist.reporting.protocol import Rows, settings_rows
from dfer_dist.reporting.tables import Table, markdown, slug
from dfer_dist.reporting.wording import interval_text, views_text
from dfer_dist.runs import provenance
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from dfer_dist.utils.version import package_version

LICENSE = "LICENSE"
# What the Hub calls a license that it does not list.
OTHER = "other"
# The Hub's name of the task.
TASK = "video-classification"
_TAGS = ["dynamic-facial-expression-recognition", "facial-expression-recognition"]
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")

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
    # a trained classifier reads none
    if config.model.head is Head.linear:
        texts = {"positive": {}}
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
        output=config.model.output.name,
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


def model_card(info: ModelInfo, config: Config, info_sha256: str, license_id: str) -> str:
    """Return the README.md of an exported model, as the Hugging Face Hub reads it.

    Parameters
    ----------
    info, config
        Of the exported model.
    info_sha256 : str
        Of ``model.json``.
    license_id : str
        Of the weights: an identifier of the Hub, or :data:`OTHER`.
    """
    test = config.eval
    card = _environment().get_template("card.md")
    text: str = card.render(
        **_license_values(info, license_id),
        **_result_values(info),
        metadata=_metadata(info, license_id),
        data=config.data,
        views=views_text(test.views, test.crops, test.mirror),
        method=_method(info, config),
        selections=_SELECTIONS,
        settings=settings_rows(config),
        info_sha256=info_sha256,
    )
    return f"{text}\n"


def license_text(info: ModelInfo, license_id: str) -> str:
    """Return the terms of the weights, and the license of the code next to them."""
    terms = _environment().get_template("terms.md").render(_license_values(info, license_id))
    code = (TEMPLATES / LICENSE).read_text("utf-8").strip()
    return f"Weights\n\n{textwrap.fill(terms.replace('`', ''), 80)}\n\nCode\n\n{code}\n"


def check_license(license_id: str) -> None:
    """Refuse what cannot be an identifier of a license on the Hugging Face Hub.

    Raises
    ------
    UserError
        If it has other characters than one of the Hub's has. The Hub checks the rest.
    """
    if not _LICENSE_ID.fullmatch(license_id):
        raise UserError(
            f"'{license_id}' is no license of the Hugging Face Hub: give an identifier such as "
            "cc-by-nc-4.0 (https://huggingface.co/docs/hub/repositories-licenses)"
        )


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined)
    environment.globals["table"] = _table
    environment.filters["cell"] = lambda text: text.replace("|", r"\|")
    return environment


def _table(header: list[str], rows: Rows, left: int = 1) -> str:
    return markdown(Table("", "", header, rows, left=left))


def _metadata(info: ModelInfo, license_id: str) -> str:
    """Return the metadata that the Hub reads, as YAML.

    References
    ----------
    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    terms = {"license": license_id}
    if license_id == OTHER:
        terms |= {"license_name": "terms-of-the-training-data", "license_link": LICENSE}
    scores: dict[str, Any] = {}
    if info.result:
        scores = {"metrics": ["recall", "accuracy"], "model-index": [_model_index(info)]}
    tags = [*_TAGS, *["clip"] * bool(info.texts)]
    data = {"library_name": "dfer_dist", "pipeline_tag": TASK, **terms, "tags": tags, **scores}
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _model_index(info: ModelInfo) -> dict[str, Any]:
    """Return the scores of a fold as the Hub lists them."""
    result = info.result or {}
    name = f"{result['dataset']}, test fold {result['fold']}"
    metrics = [
        {"type": kind, "name": f"{key.upper()} (%)", "value": round(result[key], 2)}
        for key, kind in (("uar", "recall"), ("war", "accuracy"))
    ]
    scores = {
        "task": {"type": TASK, "name": "Dynamic facial expression recognition"},
        "dataset": {"type": slug(result["dataset"]).lower(), "name": name, "split": "test"},
        "metrics": metrics,
    }
    return {"name": info.method, "results": [scores]}


def _license_values(info: ModelInfo, license_id: str) -> dict[str, Any]:
    """Return what ``terms.md`` shows."""
    source = info.pretrained
    if info.converted_from:
        source = info.converted_from["file"]
    return {"info": info, "license": license_id, "weights": WEIGHTS, "source": source}


def _method(info: ModelInfo, config: Config) -> str:
    parts, model = [], config.model
    if model.backbone.startswith(VIDEO):
        return "a video tower and a linear classifier"
    if model.head is Head.linear:
        over_time = "the mean over its frames"
        if model.temporal is TemporalKind.transformer:
            over_time = "the temporal transformer of DFER-CLIP (Zhao & Patras, BMVC 2023)"
        return f"an image tower, {over_time} and a linear classifier"
    if "adapters" in (model.image.name, model.text_tower.name):
        parts.append("adapters")
    if info.negative_texts:
        parts.append("negative texts")
    if model.modalities:
        parts.append(" and ".join(model.modalities))
    added = " and ".join(", ".join(parts).rsplit(", ", 1))
    fine_cliper = f" with the {added} of FineCLIPER (Chen et al., ACM MM 2024)" if added else ""
    return "DFER-CLIP (Zhao & Patras, BMVC 2023)" + fine_cliper


def _result_values(info: ModelInfo) -> dict[str, Any]:
    """Return what ``card.md`` shows of the fold's result."""
    if info.result is None:
        return {"result": None}
    result = FoldResult.from_json(info.result, INFO)
    classes, counts = result.classes, np.array(result.confusion)
    return {
        "result": result,
        "left_out": left_out_text(len(result.left_out), result.n),
        "scores": _scores(result, counts),
        "recalls": [
            [name, *_recall_cells(int(row[i]), int(row.sum()))]
            for i, (name, row) in enumerate(zip(classes, counts, strict=True))
        ],
        "confusion": [[name, *map(str, row)] for name, row in zip(classes, counts, strict=True)],
    }


def _scores(result: FoldResult, counts: np.ndarray) -> list[list[str]]:
    """Return the rows of UAR and WAR with their intervals, and the baselines."""
    support, number = counts.sum(1), np.arange(len(counts))
    # predictions in the order of their labels: the intervals depend on the numbers alone
    tables = [(number.repeat(support), np.tile(number, len(counts)).repeat(counts.ravel()))]
    model = ["this model"]
    for metric in ("uar", "war"):
        interval = interval_text(*bootstrap_ci(tables, len(counts), metric))
        model += [f"{getattr(result, metric):.2f}", interval]
    rows = [model]
    if result.shuffled:
        shuffled = result.shuffled
        rows.append(["frames shuffled", f"{shuffled.uar:.2f}", "", f"{shuffled.war:.2f}", ""])
    uar, war = 100 / np.count_nonzero(support), 100 * support.max() / result.n
    commonest = result.classes[int(support.argmax())]
    rows.append([f"always {commonest}", f"{uar:.2f}", "", f"{war:.2f}", ""])
    return rows


def _recall_cells(correct: int, clips: int) -> list[str]:
    if not clips:
        return ["0", "absent", ""]
    interval = interval_text(*wilson_interval(correct, clips))
    return [str(clips), f"{100 * correct / clips:.2f}", interval]
