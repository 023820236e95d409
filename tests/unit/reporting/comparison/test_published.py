"""Published scores next to those of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.config.load import load_config
from dfer_dist.reporting.comparison.published import (
    Method,
    Published,
    PublishedScores,
    published_sections,
    published_table,
    read_published,
)
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import load_made, make_fold

FIVE = [1, 2, 3, 4, 5]
# UAR and WAR in the order of the data sets, as in the issue that asked for them
NEW = {
    "MiRA ViT-H": "68.25/78.24 45.12/55.64 48.22/61.45",
    "MiRA ViT-B": "65.29/75.86 - 45.24/58.69",
    "CLAIP-Emo": "-/80.14 - -/61.18",
    "AVF-MAE++ H": "66.88/77.45 - 46.05/60.24",
    "HiCMAE": "63.76/75.01 - 42.65/56.17",
    "UMBEnet": "64.55/73.93 44.01/52.10 46.92/57.25",
    "PE-CLIP": "62.82/74.04 41.57/51.26 -",
    "HumanOmni 7B": "74.86/82.46 - 52.94/68.40",
    "EmoThinker": "-/78.13 - -",
    "FaVChat": "70.01/79.79 - 51.09/62.17",
}


def five_folds(root: Path, **fields: object) -> LoadedRun:
    for k in FIVE:
        make_fold(root, k, **fields)
    return load_made(root, FIVE)


def marks(loaded: LoadedRun) -> dict[str, str]:
    """Return what the table says of each method."""
    rows = published_table(loaded, read_published("published")).rows
    return {row[0]: row[1] for row in rows[2:]}


def test_published_table_lists_run_and_papers(tmp_path: Path) -> None:
    loaded, published = five_folds(tmp_path / "mine"), read_published("published")
    table = published_table(loaded, published)
    rows = {row[0]: row[1:] for row in table.rows}
    assert next(iter(rows)) == "mine (this run)"
    assert f"{loaded.summary.war.mean:.2f}" in rows["mine (this run)"][2]
    assert rows["mine (this run)"][3:5] == ["video", "last"]
    named = ["59.61", "71.25", "video", "test_fold", "–"]
    assert rows["DFER-CLIP"] == ["selected on test fold", *named]
    assert rows["CLAIP-Emo"] == ["audio", "–", "80.14", "video, audio", "unknown", "8"]
    assert rows["95 % interval"][2] == "{:.2f} to {:.2f}".format(*loaded.summary.war.ci95)
    assert len(rows) == 2 + 18
    wars = [float(row[3]) for row in table.rows[2:]]
    assert wars == sorted(wars)
    assert "as published, not reproduced here" in table.notes[1]
    _, section = published_sections([loaded], published)
    sources = {text.partition(":")[0]: text for text in section.text}
    assert all(m.paper in sources[m.name] for m in published.methods)
    seen = "ECCV 2026, arXiv 2606.30611, scores as another text gives them."
    assert sources["MiRA ViT-B"].endswith(seen)
    assert sources["HumanOmni 7B"].endswith("arXiv 2501.15111, other protocol.")
    make_fold(tmp_path / "other", 1, dataset="ferv39k")
    other = published_table(load_made(tmp_path / "other", [1]), published)
    assert "MMA-DFER" not in [row[0] for row in other.rows]
    make_fold(tmp_path / "demo", 1, dataset="demo")
    with pytest.raises(UserError, match="no scores are published for the data set 'demo'"):
        published_table(load_made(tmp_path / "demo", [1]), published)


def test_numbers_are_those_of_the_issue() -> None:
    methods = {m.name: m for m in read_published("published").methods}
    for name, numbers in NEW.items():
        for dataset, pair in zip(("dfew", "ferv39k", "mafw"), numbers.split(), strict=True):
            scores = methods[name].scores.get(dataset, PublishedScores())
            shown = ["-" if x == "–" else x for x in scores.texts]
            assert shown == (["-", "-"] if pair == "-" else pair.split("/")), (name, dataset)
    secondary = {name for name, m in methods.items() if m.secondary}
    assert secondary == {"MiRA ViT-H", "MiRA ViT-B", "UMBEnet"}
    selections = {name: m.selection.name for name, m in methods.items()}
    known = {name: s for name, s in selections.items() if s != "unknown"}
    assert known == dict.fromkeys(("DFER-CLIP", "MAE-DFER", "S2D", "S4D"), "test_fold") | {
        "MMA-DFER": "last"
    }


def test_marks_say_what_is_comparable_with_a_run(tmp_path: Path) -> None:
    last = marks(five_folds(tmp_path / "last"))
    assert last["DFER-CLIP"] == last["S4D"] == "selected on test fold"
    assert last["MMA-DFER"] == last["CLAIP-Emo"] == "audio" and last["FineCLIPER"] == "text"
    assert last["FaVChat"] == last["HumanOmni 7B"] == "language model"
    assert last["A3lign-DFER"] == "unknown selection"
    assert "yes" not in last.values()
    best = marks(five_folds(tmp_path / "best", selection="best_test"))
    assert [name for name, mark in best.items() if mark == "yes"] == [
        *("DFER-CLIP", "MAE-DFER", "S2D", "S4D")
    ]
    with_text = marks(five_folds(tmp_path / "both", selection="best_test", objective="both"))
    assert with_text["DFER-CLIP"] == "no text" and with_text["FineCLIPER"] == "unknown selection"
    held_out = marks(five_folds(tmp_path / "val", selection="best_val"))
    assert held_out["DFER-CLIP"] == "selected on test fold" and "yes" not in held_out.values()


def test_other_or_missing_folds_are_never_comparable(tmp_path: Path) -> None:
    own = marks(five_folds(tmp_path / "own", selection="best_test", folds_hash="ab"))
    for k in FIVE[:4]:
        make_fold(tmp_path / "gap", k, selection="best_test")
    assert {*own.values(), *marks(load_made(tmp_path / "gap", FIVE)).values()} == {"other folds"}


def test_same_inputs_and_selection_are_comparable(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "folds: {dfew: 5}\n"
        "methods: [{name: A, venue: V, input: [video], selection: last, scores: {dfew: {war: 60}}}]"
    )
    published = read_published(str(file))
    (method,) = published.methods
    assert published.why_not(method, five_folds(tmp_path / "run")) == ""
    best_test = five_folds(tmp_path / "best", selection="best_test")
    assert published.why_not(method, best_test) == "last epoch"


GOOD = "name: A, venue: V, input: [video], scores: {dfew: {uar: 50, war: 60}}"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("uar: 50, war: 60", "uar: 0.5961, war: 71", "'A': dfew: needs uar, war or both, in perc"),
        ("uar: 50, war: 60", "war: 171", "'A': dfew: needs uar, war or both, in percent"),
        ("uar: 50, war: 60", "", "'A': dfew: needs uar, war or both, in percent"),
        ("dfew: {uar", "new: {uar", "'A': give the number of folds of 'new', as in 'folds: {new:"),
        ("venue: V, ", "", r"'A': needs name, venue, input \(a list of video, text, audio\) and"),
        ("input: [video], ", "", "'A': needs name, venue, input"),
        ("[video]", "[smell]", r"'A': input\[0\]: Invalid value 'smell', expected one of \[vid"),
        ("[video]", "[[video]]", "'A': needs name, venue, input"),
        ("[video]", "video", "'A': 'input' is a list, not a single value"),
        ("name: A, ", "", "'method 1': needs name"),
        ("name: A", "name: A, selection: best", "'A': selection: Invalid value 'best', expected"),
        ("name: A", "name: A, source: a book", "'A': source 'a book' must be like 'arXiv 2308"),
        ("name: A", "name: A, trained_parameters: -1", "'A': trained_parameters -1 must be"),
        ("name: A", "name: A, trained_parameters: many", "'A': trained_parameters: Value 'many'"),
        ("scores:", "figures:", "own.yaml: 'A': unknown key 'figures"),
    ],
)
def test_read_published_rejects_what_is_wrong_in_a_line(
    tmp_path: Path, old: str, new: str, fault: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"folds: {{dfew: 5}}\nmethods: [{{{GOOD}}}]")
    assert read_published(str(file)).methods[0].scores["dfew"].war == 60
    file.write_text(f"folds: {{dfew: 5}}\nmethods: [{{{GOOD.replace(old, new, 1)}}}]")
    with pytest.raises(UserError, match=fault) as e:
        read_published(str(file))
    assert "\n" not in str(e.value) and str(file) in str(e.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "needs methods, a list as in configs/published.yaml"),
        ("folds: {dfew: 5}\nmethods: []", "needs methods, a list"),
        ("methods: {A: 1}", "needs methods, a list"),
        ("methods: [A]", "method 1 must be a group of settings"),
        ("folds: 5\nmethods: [A]", "'folds' is a group of settings, not a single value"),
        (
            f"folds: {{dfew: 5}}\nmethods: [{{{GOOD}}}, {{{GOOD}}}]",
            "'A': is there twice: give each method a name of its own",
        ),
    ],
)
def test_read_published_rejects_files_without_methods_or_with_one_twice(
    tmp_path: Path, text: str, fault: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=fault) as e:
        read_published(str(file))
    assert "\n" not in str(e.value) and str(file) in str(e.value)


def test_read_published_rejects_other_files() -> None:
    with pytest.raises(UserError, match="no experiment 'published'") as e:
        load_config("published")
    assert "published" not in str(e.value).partition("one of")[2]
    with pytest.raises(UserError, match="give 'published', or a YAML file"):
        read_published("demo")


def test_methods_are_sorted_by_war_whatever_the_case_of_the_name() -> None:
    scores = {"A": 60.0, "B": 50.0, "C": None}
    methods = [Method(name, scores={"dfew": PublishedScores(1, x)}) for name, x in scores.items()]
    assert [m.name for m in Published({}, methods).on("DFEW")] == ["C", "B", "A"]
