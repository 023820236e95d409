"""Stored features of clips in the report of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dfer_dist.reporting.extra_tables import (
    features_section,
    read_features,
)
from dfer_dist.reporting.plots.features import MAX_CLIPS, class_figure, sample
from dfer_dist.reporting.plots.pictures import run_pictures
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.sections import run_sections
from dfer_dist.utils.files import write_json
from tests.helpers.made_runs import FEATURES, load_made, made_features, make_fold


def store_features(root: Path, folds: list[int], **changes: Any) -> LoadedRun:
    """Write folds of 24 clips with features; ``changes`` are those of what they are of."""
    for k in folds:
        make_fold(root, k, n=24)
    loaded = load_made(root, folds)
    for k, fold in loaded.folds.items():
        info = replace(FEATURES, fold=k, **changes)
        made_features(fold.table.labels.tolist(), info).write(loaded.run.fold(k).features)
    return loaded


def test_features_of_a_run_are_a_section_with_pictures_by_class_and_by_fold(
    tmp_path: Path,
) -> None:
    loaded = store_features(tmp_path / "run", [1, 2])
    section = features_section(loaded)
    assert section is not None and "class token after the temporal transformer" in section.text[0]
    features = read_features(loaded)
    cosines = [
        f.values[i] @ f.texts[label] for f in features.values() for i, label in enumerate(f.labels)
    ]
    mean = f"{np.mean(cosines):+.3f}"
    assert mean[0] == "-"
    assert f"is −{mean[1:]} with the text of its class" in section.text[1]
    by_class, by_fold = run_pictures(loaded)["features"]
    assert "van der Maaten" in by_class.caption and "modality gap" in by_class.caption
    assert "a model of its own" in by_fold.caption
    assert "features" in [s.key for s in run_sections(loaded)]


def test_report_without_features_or_with_those_of_another_test(tmp_path: Path) -> None:
    loaded = load_made(make_fold(tmp_path / "none", 1).parent, [1])
    assert features_section(loaded) is None and not run_pictures(loaded)["features"]
    loaded = store_features(tmp_path / "old", [1, 2], checkpoint="step-00000009")
    section = features_section(loaded)
    assert section is not None and len(section.text) == 1
    assert "folds 1, 2 are of another test" in section.text[0]
    assert not run_pictures(loaded)["features"]
    # of weights that are there, the hash has to be the same
    loaded = store_features(tmp_path / "same", [1])
    assert list(read_features(loaded)) == [1]
    write_json(loaded.run.fold(1).root / "c" / "COMPLETE", {"sha256": {"model.safetensors": "ab"}})
    assert not read_features(loaded)


def test_planes_show_every_clip_once_and_texts_of_a_text_head_alone(tmp_path: Path) -> None:
    features = read_features(store_features(tmp_path / "run", [1]))[1]
    (ax,) = class_figure({1: features}).axes
    points = np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() == "o"])
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert len(points) == len(np.unique(points, axis=0)) == 24
    assert len(stars) == len(ax.texts) == 7
    again = class_figure({1: features}).axes[0].lines
    assert all(
        np.array_equal(a.get_xydata(), b.get_xydata()) for a, b in zip(ax.lines, again, strict=True)
    )
    linear = replace(features, info=replace(features.info, texts={}))
    assert not [x for x in class_figure({1: linear}).axes[0].lines if x.get_marker() == "*"]
    assert (len(sample(20)), len(sample(3000))) == (20, MAX_CLIPS)
