"""``dfer folds``: overlays from files, and leaks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import read_packed
from dfer_dist.data.shards.index import Index
from tests.helpers.cli import check_refusal, invoke
from tests.helpers.data.folds import fold_overlay
from tests.helpers.forked import Done


def people(index: Index, file: Path, column: str = "group", count: int = 12) -> dict[str, str]:
    """Write which of some people each clip shows."""
    group_of = {key: f"p{int(key) % count:02d}" for key in read_packed(index).keys}
    rows = "".join(f"{key},{group}\n" for key, group in group_of.items())
    file.write_text(f"clip,{column}\n{rows}")
    return group_of


def folds(index: Index, cwd: Path, *arguments: Any) -> Done:
    return invoke("folds", index.root, *arguments, cwd=cwd)


def cells(done: Done, name: str) -> list[str]:
    """The cells of a row of the printed table."""
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_folds_by_group_share_none(tiny_shards: Index, tmp_path: Path) -> None:
    group_of = people(tiny_shards, tmp_path / "people.csv", "person")
    arguments = ["--by", "group", "--groups", "people.csv", "--column", "person", "--folds", 3]
    done = folds(tiny_shards, tmp_path, *arguments, "--out", "by.json")
    assert done.returncode == 0, done.stderr
    overlay = FoldOverlay.read(tmp_path / "by.json")
    assert (overlay.name, overlay.made_by, overlay.folds) == ("by", "group", 3)
    assert overlay.index_hash == tiny_shards.hash and overlay.group_of == group_of
    of_group = {(group_of[key], fold) for key, fold in overlay.fold_of.items()}
    assert len(of_group) == 12 and {fold for _, fold in of_group} == {1, 2, 3}
    assert sum(map(int, cells(done, "clips")[1:])) == 60
    rows = list(csv.DictReader((tmp_path / "by.csv").open()))
    assert {row["clip"]: row["group"] for row in rows} == group_of
    folds(tiny_shards, tmp_path, *arguments, "--out", "again.json", "--name", "by")
    assert FoldOverlay.read(tmp_path / "again.json").hash == overlay.hash
    # the table that was written makes the same folds again
    edited = ["--by", "file", "--groups", "by.csv", "--out", "file.json"]
    assert folds(tiny_shards, tmp_path, *edited).returncode == 0
    assert FoldOverlay.read(tmp_path / "file.json").fold_of == overlay.fold_of


def test_check_counts_clips_of_groups_that_are_trained_on(
    tiny_shards: Index, tmp_path: Path
) -> None:
    group_of = people(tiny_shards, tmp_path / "people.csv")
    done = folds(tiny_shards, tmp_path, "--check", "--groups", "people.csv")
    assert done.returncode == 0
    assert cells(done, "fold 1") == ["fold 1", "12", "12", "100.00", "12"]
    assert cells(done, "all")[1:4] == ["60", "60", "100.00"]
    arguments = ["--by", "group", "--groups", "people.csv", "--out", "by.json"]
    assert folds(tiny_shards, tmp_path, *arguments).returncode == 0
    check = ["--check", "--groups", "people.csv", "--strict"]
    done = folds(tiny_shards, tmp_path, *check, "--overlay", "by.json")
    assert (done.returncode, cells(done, "all")[1:4]) == (0, ["60", "0", "0.00"])
    # one clip in another fold than the others of its group
    overlay = FoldOverlay.read(tmp_path / "by.json")
    key, fold = next(iter(overlay.fold_of.items()))
    leaking = overlay.fold_of | {key: fold % 5 + 1}
    rows = "".join(f"{k},{f}\n" for k, f in leaking.items())
    (tmp_path / "leak.csv").write_text(f"clip,fold\n{rows}")
    arguments = ["--by", "file", "--groups", "leak.csv", "--out", "leak.json"]
    assert folds(tiny_shards, tmp_path, *arguments).returncode == 0
    done = folds(tiny_shards, tmp_path, *check, "--overlay", "leak.json")
    assert done.returncode == 1
    of_group = sum(group == group_of[key] for group in group_of.values())
    assert cells(done, f"fold {fold}")[2] == str(of_group - 1)
    assert cells(done, f"fold {fold % 5 + 1}")[2] == "1"
    assert cells(done, "all")[2] == str(of_group)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--by", "group"], ["--out FILE is missing"]),
        (["--by", "group", "--out", "o.json"], ["does not say the group of 60 clips", "--groups"]),
        (["--by", "movie", "--out", "o.json"], ["dfew does not say the movie", "are numbers"]),
        (["--by", "file", "--out", "o.json"], ["--by file needs --groups FILE"]),
        (["--groups", "no.csv", "--out", "o.json"], ["no.csv is missing"]),
        (["--groups", "two.csv", "--out", "o.json"], ["2 groups are too few for 5 folds"]),
        (["--by", "movie", "--groups", "two.csv", "--out", "o.json"], ["'movie' are needed"]),
        (
            ["--by", "file", "--groups", "text.csv", "--out", "o.json"],
            ["is in fold 'p", "give numbers from 1"],
        ),
        (["--by", "file", "--groups", "gap.csv", "--out", "o.json"], ["fold 2 has no clip"]),
        (
            ["--by", "file", "--groups", "both.csv", "--out", "o.json"],
            ["o.json: group p00 is in folds 1 and 2"],
        ),
        (["--check"], ["does not say the group"]),
        (
            ["--check", "--groups", "two.csv", "--overlay", "o.json"],
            ["o.json is missing: dfer folds writes"],
        ),
        (["--check", "--groups", "two.csv", "--overlay", "other.json"], ["is of another set"]),
    ],
)
def test_one_line_says_what_is_wrong(
    tiny_shards: Index, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    people(tiny_shards, tmp_path / "two.csv", count=2)
    people(tiny_shards, tmp_path / "text.csv", "fold")
    keys = sorted(read_packed(tiny_shards).keys)
    rows = "".join(f"{key},{3 if int(key) else 1}\n" for key in keys)
    (tmp_path / "gap.csv").write_text(f"clip,fold\n{rows}")
    rows = "".join(f"{key},{int(key) % 2 + 1},p{int(key) // 2 % 30:02d}\n" for key in keys)
    (tmp_path / "both.csv").write_text(f"clip,fold,group\n{rows}")
    overlay = fold_overlay(tiny_shards, 3).to_json() | {"index_hash": "0" * 64, "hash": ""}
    FoldOverlay(**overlay).signed().write(tmp_path / "other.json")
    check_refusal(folds(tiny_shards, tmp_path, *arguments), *parts)
    assert not (tmp_path / "o.json").exists()
