"""What ranks decide on together after a step."""

from __future__ import annotations

from typing import cast

import torch

from dfer_dist.data.loading.loader import Batch
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.training.step import StepVotes, log_lost_clips


class TwoEqualRanks:
    """Ranks of which both have the same values."""

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        return [2 * value for value in values]


def test_votes_are_summed_by_name() -> None:
    votes = StepVotes(loss=1.5, lost_clips=1, preempted=True, save_due=False, save_failed=False)
    total = votes.reduce(cast(Ranks, TwoEqualRanks()))
    assert total == StepVotes(loss=3.0, lost_clips=2, preempted=2, save_due=0, save_failed=0)


def test_votes_of_one_rank_are_its_own() -> None:
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    votes = StepVotes(loss=1.5, lost_clips=0, preempted=0, save_due=1, save_failed=0)
    assert votes.reduce(ranks) == votes


def test_lost_clips_are_those_with_a_key_that_are_not_valid() -> None:
    """Padding has no key."""

    class FakeBatch:
        keys = ("a", "b", "")
        valid = torch.tensor([True, False, False])
        lost = ("shard x, clip b: cut",)

    assert log_lost_clips(cast(Batch, FakeBatch())) == {"b"}
