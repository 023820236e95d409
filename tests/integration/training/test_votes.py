"""A fold that is trained on votes: on one and two ranks, its result, and tests of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.evaluation.votes import kl_divergence
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult
from tests.helpers.cli import invoke
from tests.helpers.data.votes import pack_with_votes, votes_of
from tests.helpers.training.commands import dfer, one_epoch

ON_VOTES = ["train.target=votes", "data.ambiguous=train"]


@pytest.fixture(scope="module")
def voted(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return pack_with_votes(tiny_source, tmp_path_factory.mktemp("voted") / "shards")


def train(index: Index, runs: Path, ranks: int, *settings: str) -> FoldDir:
    name = f"run{ranks}"
    options = ["--fold", "2", "--nproc", str(ranks), "--name", name]
    dfer("train", "demo", *options, *one_epoch(index, runs, *settings))
    return RunDir(runs / name).fold(2)


def test_fold_trained_on_votes(voted: Index, tmp_path: Path) -> None:
    alone, shared = (train(voted, tmp_path, ranks, *ON_VOTES) for ranks in (1, 2))
    result = FoldResult.read(alone.result)
    assert (result.target, result.ambiguous_clips, result.n) == ("votes", 5, 12)
    assert "votes: of 44 of 48 clips, mean entropy" in alone.log.read_text()
    table = pq.read_table(alone.predictions).to_pydict()
    votes = np.array(table["votes"])
    assert [tuple(own) for own in votes.astype(int)] == [
        votes_of(int(key), label) or (0,) * 7
        for key, label in zip(table["key"], table["label"], strict=True)
    ]
    known = votes.any(1)
    divergence = kl_divergence(votes[known], np.array(table["logits"])[known])
    assert result.votes is not None and result.votes.n == known.sum() < 12
    assert result.votes.kl == pytest.approx(divergence.mean())
    assert '"test_kl"' in alone.metrics.read_text()
    other = FoldResult.read(shared.result)
    assert other.votes is not None and other.votes.kl == pytest.approx(result.votes.kl, rel=1e-3)
    checkpoint = alone.checkpoints / "LATEST"
    done = invoke("eval", checkpoint, cwd=tmp_path)
    assert f"KL(votes || model) {result.votes.kl:.4f} nats" in done.stdout
    done = invoke("eval", checkpoint, "--ambiguous", cwd=tmp_path)
    assert done.returncode == 2 and "among the training clips of this checkpoint" in done.stderr
    done = invoke("eval", checkpoint, "--ambiguous", "--fold", "1", cwd=tmp_path)
    assert done.returncode == 2 and "leave --fold and --zero-shot out" in done.stderr
    # as if it had been trained without them
    overrides = ["data.ambiguous=leave_out", "--out", tmp_path / "a.parquet"]
    done = invoke("eval", checkpoint, "--ambiguous", *overrides, cwd=tmp_path)
    assert "votes for 5 clips: KL" in done.stdout and "UAR" not in done.stdout
    keys = pq.read_table(tmp_path / "a.parquet")["key"].to_pylist()
    assert sorted(keys) == ["00009", "00019", "00029", "00049", "00059"]


def test_sets_without_votes_are_refused_before_ranks_start(
    tiny_shards: Index, trained: RunDir, tmp_path: Path
) -> None:
    arguments = one_epoch(tiny_shards, tmp_path, "train.target=votes")
    done = invoke("train", "demo", "--fold", "2", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and "dfew was packed without votes: pack the set" in done.stderr
    assert not (tmp_path / "demo").exists()
    latest = trained.fold(2).checkpoints / "LATEST"
    done = invoke("eval", latest, "--ambiguous", cwd=tmp_path)
    assert done.returncode == 2 and "dfew has no clip without a majority" in done.stderr
    assert FoldResult.read(trained.fold(2).result).votes is None
    assert "votes" not in pq.read_schema(trained.fold(2).predictions).names
