"""What a report has if it was made: scores on other sets, zero-shot results, features of clips.

Zero-shot results come from ``dfer eval --zero-shot --out fold-K/zero-shot-SET.parquet``, features
from ``dfer eval RUN --features``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_dist.reporting.results import (
    LoadedFold,
    LoadedRun,
    ScoredPredictions,
    check_scores,
    read_predictions,
    score_spread,
)
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.wording import (
    folds_text,
    heading,
    interval_text,
    join,
    mean_text,
    p_text,
    signed,
    trained_text,
    warnings,
)
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult, Scores
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from dfer_dist.utils.records import from_json

if TYPE_CHECKING:
    from dfer_dist.evaluation.features import ClipFeatures

ZERO_SHOT_FILES = "zero-shot*.json"


def sets_table(loaded: LoadedRun) -> Table | None:
    """Return a row for each of several sets that a run was trained on; None for a single one.

    Raises
    ------
    UserError
        If the predictions of a set are missing, damaged, or contradict its result.
    """
    results = [fold.result for fold in loaded.folds.values()]
    first = results[0]
    if not first.sets:
        return None
    tables = [[fold.table for fold in loaded.folds.values()]]
    for i in range(len(first.others)):
        tables.append([_read_other(loaded.run, result, i) for result in results])
    rows = []
    for i, (own, of_folds) in enumerate(zip(first.sets, tables, strict=True)):
        trained = sorted({result.sets[i].clips for result in results})
        tested = sum(table.scores.n for table in of_folds)
        row = [own.name, " to ".join(map(str, trained)), f"{own.weight:g}", str(tested)]
        for metric in ("uar", "war"):
            spread = score_spread(of_folds, metric)
            row += [mean_text(spread), interval_text(*spread.ci95)]
        rows.append(row)
    scores = [x for metric in ("UAR %", "WAR %") for x in (metric, "95 % interval")]
    header = ["Set", "Training clips of a fold", "Weight", "Test clips", *scores]
    return Table(
        "sets",
        f"{heading(loaded.name, loaded.summary)}: each set",
        header,
        rows,
        warnings(loaded.summary),
        _sets_notes(first),
        left=1,
    )


def _read_other(run: RunDir, result: FoldResult, number: int) -> ScoredPredictions:
    other = result.others[number]
    path = run.fold(result.fold).predictions_of(other.dataset)
    table = read_predictions(path, result.classes)
    check_scores(path, other.scores, table.scores)
    return table


def _sets_notes(result: FoldResult) -> list[str]:
    names = [own.name for own in result.sets]
    lines = [
        f"Trained on {join(names)}, each set's folds kept apart; every test is of one set alone. "
        f"All other tables, and the choice of an epoch, are of {names[0]}."
    ]
    for own in result.sets:
        lost = [f"{count} of {name}" for name, count in own.without_class.items()]
        if lost:
            lines.append(f"{own.name}: left out, since the model has no such class: {join(lost)}.")
    return lines


def zero_shot_table(loaded: LoadedRun) -> Table | None:
    """Return a row for each zero-shot result of the finished folds, and the means by data set.

    Returns
    -------
    Table or None
        None without any result.

    Raises
    ------
    UserError
        For a result that its predictions contradict, or of another training.
    """
    results = [
        r for fold in loaded.folds.values() for r in _read_zero_shot(loaded.run, fold.result)
    ]
    if not results:
        return None
    rows: list[list[str]] = []
    rules = []
    for name in dict.fromkeys(r["dataset"] for r in results):
        own = [r for r in results if r["dataset"] == name]
        rows += [_zero_shot_row(r) for r in own]
        folds = [r["trained_on"]["fold"] for r in own]
        if len(set(folds)) == len(own) > 1:
            uar, war = (f"{np.mean([r[m] for r in own]):.2f}" for m in ("uar", "war"))
            rules.append(len(rows))
            rows.append([name, f"mean of {join(folds)}", "", uar, "", "", war, "", ""])
    scores = [x for metric in ("UAR %", "WAR %") for x in (metric, "Chance", "p")]
    header = ["Tested on", "Fold of the training", "Clips", *scores]
    title, notes = f"{heading(loaded.name, loaded.summary)}: zero-shot", _zero_shot_notes(results)
    return Table("zero-shot", title, header, rows, notes=notes, left=2, rules=rules)


def _read_zero_shot(run: RunDir, fold: FoldResult) -> list[dict[str, Any]]:
    results = []
    for path in sorted(run.fold(fold.fold).root.glob(ZERO_SHOT_FILES)):
        result = read_json(path)
        origin = result.get("trained_on") or {}
        if any(origin.get(k) != getattr(fold, k) for k in ("fold", "config_hash", "index_hash")):
            raise UserError(f"{path} is no result of this fold's checkpoints: move it elsewhere")
        table = read_predictions(path.with_suffix(".parquet"), result["classes"])
        check_scores(path, from_json(Scores, result), table.scores)
        results.append(result)
    return results


def _zero_shot_row(result: Mapping[str, Any]) -> list[str]:
    chance = result["chance"]
    row = [result["dataset"], str(result["trained_on"]["fold"]), str(result["n"])]
    for m in ("uar", "war"):
        row += [f"{result[m]:.2f}", f"{chance[m]:.2f}", p_text(chance[f"{m}_p"])]
    return row


def _zero_shot_notes(results: list[dict[str, Any]]) -> list[str]:
    first = results[0]["trained_on"]
    lines = [
        f"The models were {trained_text({**first, 'fold': None})}, of the classes "
        f"{', '.join(first['classes'])}; the tested sets were not seen, their classes are read as "
        "texts. Chance and p: for UAR the same predictions in random orders, for WAR always the "
        "commonest class (exact binomial)."
    ]
    for name in dict.fromkeys(r["dataset"] for r in results if r["context"] == "left out"):
        lines.append(
            f"{name}: the learned context belongs to the classes of the training and was left out."
        )
    for name in dict.fromkeys(r["dataset"] for r in results if r["classes"] == first["classes"]):
        lines.append(f"{name} has the classes of the training: another set, and no new classes.")
    return lines


def read_features(loaded: LoadedRun) -> dict[int, ClipFeatures]:
    """Return the stored features of the finished folds, without those of another test.

    Raises
    ------
    UserError
        If a file is damaged.
    """
    from dfer_dist.evaluation.features import ClipFeatures

    found = {}
    for k, fold in loaded.folds.items():
        files = loaded.run.fold(k)
        if files.features.is_file():
            features = ClipFeatures.read(files.features)
            if _is_of_fold(features, fold, files):
                found[k] = features
    return found


def _is_of_fold(features: ClipFeatures, fold: LoadedFold, files: FoldDir) -> bool:
    """Return whether features are of the weights and the clips of a fold's result."""
    weights = files.root / fold.result.checkpoint
    hashes = {features.info.checkpoint_sha256}
    # without the weights their name has to do
    if (weights / "COMPLETE").is_file():
        hashes = set(read_json(weights / "COMPLETE")["sha256"].values())
    return (
        features.info.checkpoint == weights.name
        and features.info.checkpoint_sha256 in hashes
        and features.keys == fold.table.keys
        and np.array_equal(features.labels, fold.table.labels)
    )


def features_section(loaded: LoadedRun) -> Section | None:
    """Return what stored features are; None if there are none. The page has pictures of them."""
    stored = [k for k in loaded.folds if loaded.run.fold(k).features.is_file()]
    if not stored:
        return None
    folds = read_features(loaded)
    layers = {f"{f.info.layer}, {f.info.normalization}" for f in folds.values()}
    text = [f"What the model classifies: {layer}." for layer in layers]
    cosines = [_text_cosines(f) for f in folds.values() if len(f.texts)]
    if cosines:
        own, others = np.mean(cosines, axis=0)
        text.append(
            f"The mean cosine of a clip is {signed(own, 3)} with the text of its class, and "
            f"{signed(others, 3)} with those of others. In CLIP features of images and of texts "
            "are apart (modality gap: Liang et al., NeurIPS 2022), so only the difference counts."
        )
    if outdated := [k for k in stored if k not in folds]:
        text.append(
            f"The stored features of {folds_text(outdated)} are of another test and are left out: "
            "run dfer eval RUN --features again."
        )
    return Section("features", "Features of clips", text=text)


def _text_cosines(features: ClipFeatures) -> tuple[float, float]:
    """Return the mean cosine of clips with the text of their class, and with other texts."""
    cosines = features.values @ features.texts.T
    own = np.eye(len(features.texts), dtype=bool)[features.labels]
    return float(cosines[own].mean()), float(cosines[~own].mean())
