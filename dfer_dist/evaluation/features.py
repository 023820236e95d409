"""Features of clips, which a model compares with those of class texts, and their file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import VERSION, atomic_path, parse_json
from dfer_dist.utils.records import Record

Floats = NDArray[np.float32]
_METADATA = b"dfer_dist"


@dataclass(frozen=True)
class FeatureInfo(Record):
    """What the features in a file are: JSON under the key ``dfer_dist`` of its metadata.

    Attributes
    ----------
    model : str
        Backbone and pretrained weights.
    layer : str
        Where in the model the features are taken.
    normalization : str
    views : int
        Of a clip, in time and in space. Features of several are averaged and normalized again.
    checkpoint, checkpoint_sha256 : str
        Name of the checkpoint's folder, and sha256 of the file of its weights.
    dataset, index_hash : str
    fold : int or None
        The test fold; None for all clips of another set.
    classes : list of C str
        In the order of labels.
    texts : dict of polarity to float [C, D]
        Features of the class texts, of unit length; empty for a linear head.
    """

    remedy: ClassVar[str] = "store the features again with dfer eval --features"

    model: str
    layer: str
    normalization: str
    views: int
    checkpoint: str
    checkpoint_sha256: str
    dataset: str
    index_hash: str
    fold: int | None
    classes: list[str]
    texts: dict[str, list[list[float]]]


@dataclass(frozen=True)
class ClipFeatures:
    """Features of N clips in the order of their predictions.

    Attributes
    ----------
    info : FeatureInfo
    keys : list of N str
    labels : int32 [N]
    values : float32 [N, D]
        Of unit length.
    """

    info: FeatureInfo
    keys: list[str]
    labels: NDArray[np.int32]
    values: Floats

    @property
    def texts(self) -> Floats:
        """Features of the texts that say what a class is, float32 [C, D]; [0, D] without texts."""
        rows = self.info.texts.get("positive", [])
        return np.array(rows, np.float32).reshape(-1, self.values.shape[1])

    def write(self, path: Path) -> None:
        """Write as parquet with columns ``key``, ``fold``, ``label``, ``feature``.

        Features are lists of float32 of a fixed size.
        """
        width = self.values.shape[1]
        columns = {
            "key": self.keys,
            "fold": pa.array([self.info.fold] * len(self.keys), pa.int32()),
            "label": pa.array(self.labels, pa.int32()),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(self.values.ravel()), width),
        }
        about = json.dumps({"version": VERSION, **self.info.to_json()})
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns, metadata={_METADATA: about}), temporary)

    @classmethod
    def read(cls, path: Path) -> ClipFeatures:
        """Read what :meth:`write` has written.

        Raises
        ------
        UserError
            If the file is missing or damaged.
        """
        try:
            table = pq.read_table(path)
            about = parse_json(table.schema.metadata[_METADATA], str(path))
            lists = table["feature"].combine_chunks()
            values = lists.flatten().to_numpy().reshape(len(table), lists.type.list_size)
            info = FeatureInfo.from_json(about, str(path))
            return cls(info, table["key"].to_pylist(), table["label"].to_numpy(), values)
        except (OSError, LookupError, TypeError, ValueError, pa.ArrowException) as e:
            reason = str(e).partition("\n")[0]
            raise UserError(f"{path} is missing or damaged ({reason}): {FeatureInfo.remedy}") from e
