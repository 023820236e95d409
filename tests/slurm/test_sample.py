"""A small part of what `make test-slurm` does, for every `make test`."""

from __future__ import annotations

from dfer_dist.utils.files import read_json
from tests.helpers.slurm.submitted import EPOCH, Submitted


def test_killed_fold_is_requeued_and_summarized(bare: Submitted) -> None:
    """It is killed inside a save, requeued, summarized, and followed by ``--wait``."""
    bare.prepare(EPOCH)
    mark = bare.root / "killed"
    bare.hook(
        "dfer_dist.checkpoints.portable", f"hooks.kill_in_save(me, {str(mark)!r}, 'between', 1)"
    )
    said = bare.submit("--wait", settings=EPOCH, folds="2")
    assert mark.exists() and "1 of 5 folds done" in said
    status = read_json(bare.run.fold(2).status)
    assert status["state"] == "DONE" and len(status["attempts"]) == 2
    trained = [line["step"] for line in bare.lines(2) if "loss" in line]
    assert trained == list(range(1, 7)), "each step once"
    summary = read_json(bare.run.summary)
    assert [r["fold"] for r in summary["folds"]] == [2] and summary["missing"] == [1, 3, 4, 5]
