"""A sample of the faults in ``tests/faults``, in a shorter run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from tests.helpers.training.trials import Trial, same, same_in_mlflow


@pytest.mark.engine_full
def test_sigkill_inside_a_save_changes_no_result(tiny_shards: Index, tmp_path: Path) -> None:
    settings = ["train.epochs=2"]
    undisturbed, killed = (
        Trial(tiny_shards, tmp_path / name, settings=settings) for name in ("undisturbed", "killed")
    )
    undisturbed.finish(undisturbed.start(), again=0)
    same_in_mlflow(undisturbed)
    killed.prepare()
    mark = killed.root / "mark"
    killed.hook(
        "dfer_dist.checkpoints.portable", f"hooks.kill_in_save(me, {str(mark)!r}, 'between', 10)"
    )
    said = killed.finish(killed.start(), again=0)
    assert mark.exists() and "rank 0 was ended by SIGKILL" in said
    same(killed, undisturbed)
    same_in_mlflow(killed)
