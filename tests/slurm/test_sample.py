"""A small part of what `make test-slurm` does, for every `make test`."""

from __future__ import annotations

from submitted import EPOCH, Submitted

from dfer_dist.rundir import read_json


def test_two_folds_one_of_which_dies_once(bare: Submitted) -> None:
    """Without accounting: submitted as one array, killed inside a save, requeued, summarized, and followed by ``--wait``."""
    bare.prepare(EPOCH)
    mark = bare.root / "killed"
    bare.hook("dfer_dist.checkpoint", f"hooks.kill_in_save(me, {str(mark)!r}, 'between', 1)")
    said = bare.submit("--wait", settings=EPOCH, folds="1-2")
    assert mark.exists() and "2 of 5 folds done" in said
    statuses = [read_json(bare.run.fold(k).status) for k in (1, 2)]
    assert [s["state"] for s in statuses] == ["DONE", "DONE"]
    assert sorted(len(s["attempts"]) for s in statuses) == [1, 2]
    for fold in (1, 2):
        trained = [line["step"] for line in bare.lines(fold) if "loss" in line]
        assert trained == list(range(1, 7)), "each step once"
    summary = read_json(bare.run.summary)
    assert [r["fold"] for r in summary["folds"]] == [1, 2] and summary["missing"] == [3, 4, 5]
