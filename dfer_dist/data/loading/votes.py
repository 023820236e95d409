"""The votes of the annotators of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dfer_dist.config.schema import Ambiguous, Config, TargetKind
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index, to_numpy
from dfer_dist.utils.errors import UserError

_NO_VOTES = (
    "train.target=votes, but {what}: pack the set with its votes, or set train.target=majority"
)


@dataclass(frozen=True)
class Votes:
    """The votes for N clips, and their labels.

    Attributes
    ----------
    keys : list of N str
    labels : int64 [N]
    counts : float32 [N, C]
        Votes for each class; all zero for a clip without votes.
    """

    keys: list[str]
    labels: NDArray[np.int64]
    counts: NDArray[np.float32]

    @cached_property
    def distributions(self) -> NDArray[np.float32]:
        """Share of each class, float32 [N, C]; all of the label for a clip without votes."""
        given = self.counts.sum(1, keepdims=True)
        of_labels = np.eye(self.counts.shape[1], dtype=np.float32)[self.labels]
        return np.where(given > 0, self.counts / np.maximum(given, 1e-30), of_labels)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def of(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Return the distributions of clips by key, float32 [b, C]."""
        return self.distributions[[self._rows[key] for key in keys]]

    def __str__(self) -> str:
        """Return how many clips have votes, and the least cross-entropy that they allow."""
        shares = self.distributions.astype(np.float64)
        entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=1).mean()
        text = f"votes: of {np.count_nonzero(self.counts.any(1))} of {len(self.keys)} clips"
        return f"{text}, mean entropy {entropy:.4f} nats (the loss less KL)"


def read_votes(index: Index, clips: ClipSet) -> Votes | None:
    """Return the votes for ``clips``, in the order of the index; None if the set has none.

    Raises
    ------
    UserError
        If a number of votes is negative or not finite.
    """
    if "votes" not in index.extras:
        return None
    keys, parts = list[str](), []
    for shard, rows in zip(clips.shards, clips.rows, strict=True):
        table = index.sidecar(shard).select(["key", "label", "votes"])
        if rows is not None:
            table = table.take(pa.array(rows))
        parts.append(table)
        keys += [index.clip_name(shard, key) for key in table["key"].to_pylist()]
    table = pa.concat_tables(parts)
    votes = table["votes"].combine_chunks()
    values = votes.flatten()
    numbers = np.full(len(values), np.nan)
    if not values.null_count:
        numbers = to_numpy(values)
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise UserError(f"{index.root} has votes that are negative or no numbers: pack it again")
    counts = np.zeros((table.num_rows, len(index.classes)), dtype=np.float32)
    counts[to_numpy(pc.list_value_length(votes)) > 0] = numbers.reshape(-1, len(index.classes))
    labels = to_numpy(table["label"].combine_chunks()).astype(np.int64)
    return Votes(keys, labels, counts)


def training_votes(index: Index, clips: ClipSet, target: TargetKind) -> Votes | None:
    """Return the votes for training clips, as :func:`read_votes`; None if labels are the target.

    Raises
    ------
    UserError
        Also if none of the clips has votes.
    """
    if target is not TargetKind.votes:
        return None
    votes = read_votes(index, clips)
    if votes is None or not votes.counts.any():
        raise UserError(_NO_VOTES.format(what=f"no training clip of {index.name} has votes"))
    return votes


def check_votes(index: Index, config: Config) -> None:
    """Check that a set has the votes and the ambiguous clips that are to be trained on.

    Raises
    ------
    UserError
        If it has none.
    """
    if config.train.target is TargetKind.votes and "votes" not in index.extras:
        raise UserError(_NO_VOTES.format(what=f"{index.name} was packed without votes"))
    if config.data.ambiguous is Ambiguous.train and not index.ambiguous_shards:
        raise UserError(
            f"data.ambiguous=train, but {index.name} has no clip without a majority: set "
            "data.ambiguous=leave_out"
        )
