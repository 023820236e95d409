"""The attempts in ``status.json``."""

from __future__ import annotations

from pathlib import Path

from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.status import Attempt
from dfer_dist.utils.files import read_json


def test_attempt_without_an_end_is_marked_as_killed(tmp_path: Path) -> None:
    fold = FoldDir(tmp_path)
    Attempt(fold, 2, True).begin(5, 100, 0)
    second = Attempt(fold, 4, True)
    second.begin(10, 100, 3)
    second.end("DONE", "all steps done")
    status = read_json(fold.status)
    assert [a["why"] for a in status["attempts"]] == [
        "it said nothing at its end: killed, or its machine was lost",
        "all steps done",
    ]
    assert [(a["world_size"], a["from_step"], a["undone_steps"]) for a in status["attempts"]] == [
        (2, 5, 0),
        (4, 10, 3),
    ]
