"""Make overlays, and count the test clips whose group is trained on too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_dist.data.folds.clips import fold_clips, fold_numbers
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import PackedClips, groups_in_file
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.folds import split_groups
from dfer_dist.utils.errors import UserError

# What the names of a set's clips tell of the video that they were cut from.
_NAMES_TELL = {
    "ferv39k": "the names of its clips tell the scene (Action, War, …), not the video",
    "dfew": "the names of its clips are numbers",
    "mafw": "the names of its clips are numbers",
}


def movie_file(index: Index, file: Path | None) -> Path:
    """Return the file that tells the movie of each clip: no known set's names do.

    Raises
    ------
    UserError
        If there is none.
    """
    if file is None:
        names = _NAMES_TELL.get(index.name, "its clips' names are not known to tell it")
        raise UserError(
            f"--by movie: {index.name} does not say the movie of a clip ({names}): give "
            "--groups FILE, a CSV file with the columns 'clip' and --column"
        )
    return file


def assign_groups(
    clips: PackedClips, group_of: Mapping[str, str], folds: int, seed: int
) -> dict[str, int]:
    """Return a fold from 1 for each clip by key: no group is in two, classes are stratified.

    Ambiguous clips, which are not tested, are in the fold of their group, or in 0 if it is in none.

    Raises
    ------
    UserError
        If the groups are too few.
    """
    tested = [i for i, is_tested in enumerate(clips.testable) if is_tested]
    groups = [group_of[clips.keys[i]] for i in tested]
    assigned = split_groups([clips.labels[i] for i in tested], groups, folds, seed)
    fold_of_group = dict(zip(groups, assigned, strict=True))
    return {key: fold_of_group.get(group_of.get(key, ""), 0) for key in clips.keys}


def folds_in_file(clips: PackedClips, file: Path, column: str) -> dict[str, int]:
    """Return the fold of each clip by key from a column of a CSV file.

    Raises
    ------
    UserError
        If the file or the column is missing, a clip has no row, or a fold is no number from 1.
    """
    found = groups_in_file(clips, file, column)
    for key, fold in found.items():
        if not fold.isdecimal():
            raise UserError(f"{file}: clip {key} is in fold '{fold}': give numbers from 1")
    return {key: int(found.get(key, "0")) for key in clips.keys}


def make_overlay(
    index: Index,
    fold_of: Mapping[str, int],
    group_of: Mapping[str, str],
    *,
    name: str,
    made_by: str,
    options: Mapping[str, Any],
    confidence: Mapping[str, float] | None = None,
) -> FoldOverlay:
    """Return an overlay of a set with its hash."""
    return FoldOverlay(
        name=name,
        dataset=index.name,
        index_hash=index.hash,
        made_by=made_by,
        folds=max(fold_of.values()),
        fold_of=dict(fold_of),
        options=dict(options),
        group_of=dict(group_of),
        confidence=dict(confidence or {}),
    ).signed()


@dataclass(frozen=True)
class Leak:
    """What a fold tests of groups that it is trained on too."""

    fold: int
    tested: int
    leaking: list[str]
    groups: int

    @property
    def percent(self) -> float:
        """Share of the tested clips, in percent."""
        return 100.0 * len(self.leaking) / max(self.tested, 1)


def find_leaks(index: Index, group_of: Mapping[str, str], folds: FoldOverlay | None) -> list[Leak]:
    """Return for each fold the test clips whose group is among the training clips.

    Parameters
    ----------
    index : Index
    group_of : dict of str to str
        The group of each clip by key.
    folds : FoldOverlay or None
        None for the set's own folds.
    """
    leaks = []
    for k in fold_numbers(index, folds):
        clips = fold_clips(index, k, folds)
        trained = {group_of[key] for key in clip_keys(index, clips.train)}
        tested = clip_keys(index, clips.test)
        leaking = [key for key in tested if group_of[key] in trained]
        leaks.append(Leak(k, len(tested), leaking, len({group_of[key] for key in leaking})))
    return leaks
