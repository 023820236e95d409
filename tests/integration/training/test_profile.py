"""A fold with ``train.profile``."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from tests.helpers.training.commands import dfer, one_epoch


def test_fold_leaves_a_trace_that_opens(tiny_shards: Index, tmp_path: Path) -> None:
    """Of the fourth and fifth of six steps, with the ranges of each."""
    given = one_epoch(tiny_shards, tmp_path, "train.profile=2", "train.micro_batch=4")
    dfer("train", "demo", "--fold", "2", "--nproc", "1", "--name", "traced", *given)
    fold = RunDir(tmp_path / "traced").fold(2)
    (trace,) = fold.profile.iterdir()
    assert f"steps 4 to 5 are traced: open {trace}" in fold.log.read_text()
    with gzip.open(trace, "rt") as f:
        events = [e for e in json.load(f)["traceEvents"] if e.get("cat") == "user_annotation"]
    count = {name: sum(e["name"] == name for e in events) for name in ("forward", "backward")}
    # two micro batches a step
    assert count == {"forward": 4, "backward": 4}
    assert {"ProfilerStep#3", "ProfilerStep#4"} <= {e["name"] for e in events}
