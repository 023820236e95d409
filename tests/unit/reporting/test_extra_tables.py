"""Published scores next to those of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.config.load import load_config
from dfer_dist.reporting.extra_tables import published_table, read_published
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import load_made, make_fold


def test_published_table_lists_run_and_papers(tmp_path: Path) -> None:
    make_fold(tmp_path / "mine", 1)
    loaded, published = load_made(tmp_path / "mine", [1]), read_published("published")
    table = published_table(loaded, published)
    rows = {row[0]: row[1:] for row in table.rows}
    assert next(iter(rows)) == "mine (this run)"
    assert f"{loaded.summary.war.mean:.2f}" in rows["mine (this run)"][3]
    assert rows["DFER-CLIP"] == ["video", "published: BMVC 2023", "59.61", "71.25"]
    assert rows["MMA-DFER"][0] == "video and audio"
    assert rows["95 % interval"][3] == "{:.2f} to {:.2f}".format(*loaded.summary.war.ci95)
    assert len(rows) == 10
    assert "as published, not reproduced here" in table.notes[0]
    assert all(any(m.paper in note for note in table.notes) for m in published.methods)
    make_fold(tmp_path / "other", 1, dataset="ferv39k")
    other = published_table(load_made(tmp_path / "other", [1]), published)
    assert len(other.rows) == 9  # MMA-DFER has no figure there
    make_fold(tmp_path / "demo", 1, dataset="demo")
    with pytest.raises(UserError, match="no scores are published for the data set 'demo'"):
        published_table(load_made(tmp_path / "demo", [1]), published)


def test_read_published_rejects_other_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment 'published'") as e:
        load_config("published")
    assert "published" not in str(e.value).partition("one of")[2]
    with pytest.raises(UserError, match="give 'published', or a YAML file"):
        read_published("demo")
    own = tmp_path / "own.yaml"
    own.write_text(
        "methods: [{name: A, paper: P, venue: V, figures: {dfew: {uar: 0.5961, war: 171}}}]"
    )
    with pytest.raises(UserError, match="'A', dfew: needs"):
        read_published(str(own))
    own.write_text("methods: [{name: A, paper: P, venue: V, figures: {dfew: {uar: 50, war: 60}}}]")
    assert read_published(str(own)).methods[0].figures["dfew"].war == 60
