"""The clips of a packed set as one table, and whether an overlay fits them."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.config.schema import DataConfig
from dfer_dist.data.folds.overlay import NO_FOLD, VALIDATION, FoldOverlay
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import sets_of
from dfer_dist.data.sources.folds import read_groups
from dfer_dist.data.sources.names import possible_keys
from dfer_dist.utils.errors import UserError

_UNEVEN = 2  # times as many clips in one fold as in another


@dataclass(frozen=True)
class PackedClips:
    """The clips of a set in the order of its index.

    Attributes
    ----------
    keys : list of str
    labels : list of int
    testable : list of bool
        False for the clips of split ``ambiguous``, which are never tested.
    groups : list of str
        As recorded when the set was packed; empty where it was not.
    """

    keys: list[str]
    labels: list[int]
    testable: list[bool]
    groups: list[str]


def read_packed(index: Index) -> PackedClips:
    """Read the table from the sidecars of all shards."""
    clips = PackedClips([], [], [], [])
    ambiguous = set(index.ambiguous_shards)
    for i, shard in enumerate(index.shards):
        table = index.sidecar(i)
        clips.keys.extend(table["key"].to_pylist())
        clips.labels.extend(table["label"].to_pylist())
        clips.testable.extend([i not in ambiguous] * shard.clips)
        has_groups = "group" in table.column_names
        own = table["group"].to_pylist() if has_groups else [""] * shard.clips
        clips.groups.extend(own)
    return clips


def groups_in_file(clips: PackedClips, file: Path, column: str) -> dict[str, str]:
    """Return a column of a CSV file by key; ambiguous clips may be absent.

    The clips are named in the file as in the data set, or by their keys.

    Raises
    ------
    UserError
        If the file or the column is missing, or a clip has no row.
    """
    rows = read_groups(file, column)
    by_key = {key: group for name, group in rows.items() for key in (name, *possible_keys(name))}
    found = {key: by_key[key] for key in clips.keys if key in by_key}
    tested = zip(clips.keys, clips.testable, strict=True)
    missing = [key for key, is_tested in tested if is_tested and key not in found]
    if missing:
        more = f", nor for {len(missing) - 1} more" * (len(missing) > 1)
        raise UserError(f"{file} has no row for clip {missing[0]}{more}")
    return found


def stored_groups(index: Index, clips: PackedClips) -> dict[str, str]:
    """Return the group of each clip by key, as recorded when the set was packed.

    Raises
    ------
    UserError
        If the groups were not recorded.
    """
    unknown = [key for key, group in zip(clips.keys, clips.groups, strict=True) if not group]
    if unknown:
        raise UserError(
            f"{index.root} does not say the group of {len(unknown)} clips, such as {unknown[0]}: "
            "give --groups FILE, a CSV file with the columns 'clip' and 'group'"
        )
    return dict(zip(clips.keys, clips.groups, strict=True))


def check_overlay(overlay: FoldOverlay, index: Index, clips: PackedClips, source: str) -> list[str]:
    """Check that an overlay is of a set and gives each of its clips one fold.

    Parameters
    ----------
    overlay, index, clips
    source : str
        Names the overlay in errors.

    Returns
    -------
    list of str
        Warnings, such as of a fold without a class.

    Raises
    ------
    UserError
        If it is of another set, lacks a clip or has an unknown one, a fold is empty, or a group is
        in two folds.
    """
    if overlay.index_hash != index.hash:
        raise UserError(
            f"{source} is of another set ({overlay.dataset}, index {overlay.index_hash[:12]}) than "
            f"{index.root} ({index.name}, index {index.hash[:12]}): make folds of this one with "
            "dfer folds"
        )
    _check_clips(overlay, clips, source)
    _check_groups(overlay, source)
    labels = dict(zip(clips.keys, clips.labels, strict=True))
    tested = {key for key, is_tested in zip(clips.keys, clips.testable, strict=True) if is_tested}
    counts = Counter((overlay.fold_of[key], labels[key]) for key in tested)
    warnings = []
    for k in overlay.numbers:
        absent = [name for c, name in enumerate(index.classes) if not counts[k, c]]
        if len(absent) == len(index.classes):
            raise UserError(f"{source}: fold {k} has no clip: give fewer folds")
        if absent:
            warnings.append(f"fold {k} tests no clip of {', '.join(absent)}")
    sizes = Counter(fold for key in tested if (fold := overlay.fold_of[key]) in overlay.numbers)
    (largest, most), (smallest, least) = sizes.most_common()[0], sizes.most_common()[-1]
    if most > _UNEVEN * least:
        warnings.append(
            f"fold {largest} tests {most} clips, fold {smallest} {least}: groups are too large"
        )
    return warnings


def _check_clips(overlay: FoldOverlay, clips: PackedClips, source: str) -> None:
    if unknown := overlay.fold_of.keys() - set(clips.keys):
        raise UserError(f"{source}: the set has no clip {min(unknown)} ({len(unknown)} unknown)")
    if missing := set(clips.keys) - overlay.fold_of.keys():
        raise UserError(f"{source} has no fold for clip {min(missing)} ({len(missing)} missing)")
    for key, is_tested in zip(clips.keys, clips.testable, strict=True):
        fold, lowest = overlay.fold_of[key], int(is_tested)
        if overlay.made_by == VALIDATION:
            lowest = NO_FOLD
        if not lowest <= fold <= overlay.folds:
            raise UserError(
                f"{source}: clip {key} is in fold {fold}, but folds are 1 to {overlay.folds}"
            )


def _check_groups(overlay: FoldOverlay, source: str) -> None:
    folds_of: dict[str, set[int]] = defaultdict(set)
    for key, group in overlay.group_of.items():
        folds_of[group].add(overlay.fold_of.get(key, 0))
    for group, folds in sorted(folds_of.items()):
        if len(folds := {fold for fold in folds if fold > 0}) > 1:
            numbers = " and ".join(map(str, sorted(folds)))
            raise UserError(f"{source}: group {group} is in folds {numbers}: give it one")


def open_folds(data: DataConfig, index: Index) -> FoldOverlay | None:
    """Return the overlay that ``data.folds`` names, checked; None for the set's own folds.

    Of several sets it is of the first one.

    Raises
    ------
    UserError
        If it does not fit the set, or is not the one of ``data.folds_hash``.
    """
    if data.folds is None:
        return None
    if not Path(data.folds).is_file():
        raise UserError(f"data.folds={data.folds} is missing: dfer folds writes such a file")
    overlay = FoldOverlay.read(Path(data.folds))
    if data.folds_hash not in (None, overlay.hash):
        raise UserError(
            f"data.folds={data.folds} has the hash {overlay.hash[:12]}, but "
            f"data.folds_hash={data.folds_hash}: give the file that the run was made with"
        )
    first = sets_of(index)[0]
    check_overlay(overlay, first, read_packed(first), data.folds)
    return overlay
