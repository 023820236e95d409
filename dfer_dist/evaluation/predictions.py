"""The table of predictions of a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.evaluation.metrics import Scores
from dfer_dist.evaluation.multilabel import score_table
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import atomic_path


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
    """

    keys: list[str]
    labels: np.ndarray
    logits: np.ndarray
    sets: list[tuple[int, ...]] | None = None

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

    def write(self, path: Path) -> None:
        """Write as parquet with columns ``key``, ``label``, ``logits``, and ``labels`` of sets."""
        labels = pa.array(self.labels, pa.int32())
        logits = pa.array(list(self.logits), pa.list_(pa.float32()))
        table = pa.table({"key": self.keys, "label": labels, "logits": logits})
        if self.sets is not None:
            table = table.append_column("labels", pa.array(self.sets, pa.list_(pa.int32())))
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)
