"""Folds of a packed set that are stored in a file of their own: ``folds.json``.

Nothing is packed again: the file gives each clip of the set a fold, by its key.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.records import Record

#: ``made_by`` of a part of the training clips to validate on. In such a file a fold may be
#: :data:`ALL_FOLDS`, of clips that every fold trains on, or :data:`NO_FOLD`, of clips that none
#: reads.
VALIDATION = "validation"
ALL_FOLDS, NO_FOLD = 0, -1


@dataclass(frozen=True)
class FoldOverlay(Record):
    """``folds.json``: other folds than a set's own.

    Attributes
    ----------
    name : str
        For reports.
    dataset : str
        The set's name.
    index_hash : str
        The content hash of the set that it was made for.
    made_by : str
        ``group``, ``movie``, ``face``, ``file`` or :data:`VALIDATION`.
    options : dict
        Those of the command that made it.
    folds : int
        K.
    fold_of : dict of str to int
        The test fold, 1 to K, of each clip by key; of an ambiguous clip, whose group may be tested
        in it, the fold in which it is never trained on.
    group_of : dict of str to str
        The group of each clip by key; empty if the folds know none.
    confidence : dict of str to float
        How sure a clip's group is, -1 to 1, where it was estimated.
    hash : str
        Hex sha256 of all the rest.
    """

    remedy: ClassVar[str] = "make it again with dfer folds"

    name: str
    dataset: str
    index_hash: str
    made_by: str
    folds: int
    fold_of: dict[str, int]
    hash: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    group_of: dict[str, str] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the folds, 1 to K."""
        return list(range(1, self.folds + 1))

    def content_hash(self) -> str:
        """Return the hex sha256 of everything but ``hash``."""
        body = json.dumps(self.to_json() | {"hash": ""}, sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()

    def signed(self) -> Self:
        """Return it with its hash."""
        return replace(self, hash=self.content_hash())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the overlay in a file.

        Raises
        ------
        UserError
            If the file is missing, is none, or was changed.
        """
        overlay = super().read(path)
        if overlay.hash != overlay.content_hash():
            raise UserError(
                f"{path} was changed: its hash does not match its content; {cls.remedy} "
                "(--by file takes folds that are written by hand)"
            )
        return overlay


def validation_name(path: Path) -> str | None:
    """Return the name of the part of the training clips in a file; None if it has test folds."""
    with suppress(UserError):
        overlay = FoldOverlay.read(path)
        if overlay.made_by == VALIDATION:
            return overlay.name
    return None
