"""The table of predictions of a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.evaluation.metrics import Scores
from dfer_dist.evaluation.multilabel import score_table
from dfer_dist.evaluation.votes import score_votes
from dfer_dist.runs.records import VoteScores
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path


class Evaluation(NamedTuple):
    """A test: its table and scores; ``votes`` is None where no clip has votes."""

    table: Predictions
    scores: Scores
    votes: VoteScores | None


@dataclass(frozen=True)
class Predictions:
    """Predictions of N clips in the order of the index.

    Attributes
    ----------
    keys : list of N str
    labels : int32 [N]
    logits : float32 [N, C]
    sets : list of N tuples of int, optional
        All labels of each clip, for sigmoid outputs.
    votes : float32 [N, C], optional
        Of annotators for each class, in a set that has votes; all zero for a clip without.
    """

    keys: list[str]
    labels: np.ndarray
    logits: np.ndarray
    sets: list[tuple[int, ...]] | None = None
    votes: np.ndarray | None = None

    def score(self, classes: tuple[str, ...]) -> Scores:
        """Return the scores of the table.

        Raises
        ------
        UserError
            If a logit is not finite, as of a model that training has broken.
        """
        bad = np.flatnonzero(~np.isfinite(self.logits).all(1))
        if len(bad):
            raise UserError(
                f"the model's logits are not finite for {len(bad)} of {len(self.keys)} clips, "
                f"such as {self.keys[bad[0]]}"
            )
        return score_table(self.labels, self.logits, list(classes), self.sets)

    def score_votes(self) -> VoteScores | None:
        """Return the scores against votes; None if no clip has votes."""
        if self.votes is None:
            return None
        return score_votes(self.votes, self.logits)

    def write(self, path: Path) -> None:
        """Write as parquet with columns ``key``, ``label``, ``logits``.

        ``labels`` are all of a clip, ``votes`` those of annotators, if there are some.
        """
        labels = pa.array(self.labels, pa.int32())
        logits = pa.array(list(self.logits), pa.list_(pa.float32()))
        table = pa.table({"key": self.keys, "label": labels, "logits": logits})
        if self.sets is not None:
            table = table.append_column("labels", pa.array(self.sets, pa.list_(pa.int32())))
        if self.votes is not None:
            votes = pa.array(list(self.votes), pa.list_(pa.float32()))
            table = table.append_column("votes", votes)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)


def write_classes(
    path: Path, keys: Sequence[str], labels: Sequence[int], predicted: Sequence[int]
) -> None:
    """Write the predictions of a model without logits: ``key``, ``label``, ``predicted``."""
    columns = {"label": pa.array(labels, pa.int32()), "predicted": pa.array(predicted, pa.int32())}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"key": list(keys), **columns}), temporary)
