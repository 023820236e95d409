"""A part of the training clips of folds to validate on, such that no test clip is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.folds.make import make_overlay
from dfer_dist.data.folds.overlay import ALL_FOLDS, NO_FOLD, VALIDATION, FoldOverlay
from dfer_dist.data.folds.packed import PackedClips, read_packed
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.folds import split_groups
from dfer_dist.utils.errors import UserError

_PARTS = 5  # one of them is validated on


def make_validation(
    index: Index, folds: Sequence[int], overlay: FoldOverlay | None, seed: int
) -> FoldOverlay:
    """Return an overlay whose only fold tests a fifth of the clips that all ``folds`` train on.

    It trains on the other four fifths. Test clips of ``folds`` and the set's own validation clips
    are in no fold. Where the groups of the clips are known, none is both in the validation part and
    among the training clips.

    Parameters
    ----------
    index : Index
    folds : sequence of int
        Folds of the set, or of ``overlay``, counted from 1.
    overlay : FoldOverlay or None
        None for the set's own folds.
    seed : int
        Of the split; each has another validation part.

    Raises
    ------
    UserError
        If no clip is in the training of all folds, or those have fewer than two groups.
    """
    clips = read_packed(index)
    trained = set(clips.keys)
    for k in folds:
        part = fold_clips(index, k, overlay, ambiguous=True)
        trained &= set(clip_keys(index, part.train))
    rows = zip(clips.keys, clips.labels, clips.testable, strict=True)
    label_of = {key: label for key, label, is_tested in rows if is_tested and key in trained}
    listed = ", ".join(map(str, folds))
    if not label_of:
        raise UserError(f"no clip is trained on by all of folds {listed}: give fewer --folds")
    group_of = _groups(clips, label_of, overlay)
    groups = [group_of.get(key, key) for key in label_of]
    validated = _choose_groups([*label_of.values()], groups, seed)
    fold_of = dict.fromkeys(clips.keys, NO_FOLD)
    fold_of |= {key: int(group_of.get(key, key) in validated) or ALL_FOLDS for key in trained}
    return make_overlay(
        index,
        fold_of,
        {key: group for key, group in group_of.items() if key in trained},
        name=f"validation part of fold {listed}, seed {seed}",
        made_by=VALIDATION,
        options={"folds": list(folds), "seed": seed, "of": overlay and overlay.hash},
    )


def _choose_groups(labels: list[int], groups: list[str], seed: int) -> set[str]:
    parts = min(_PARTS, len(set(groups)))
    if parts < 2:
        raise UserError(
            f"the training clips of these folds have {parts} group: two are needed, one to "
            "validate on; give other --folds"
        )
    assigned = split_groups(labels, groups, parts, seed)
    # as many groups as parts are not shuffled
    chosen = seed % parts + 1
    return {group for group, own in zip(groups, assigned, strict=True) if own == chosen}


def _groups(
    clips: PackedClips, needed: Iterable[str], overlay: FoldOverlay | None
) -> dict[str, str]:
    """Return the known groups by key; nothing unless that of each needed clip is known."""
    group_of = dict(zip(clips.keys, clips.groups, strict=True))
    if overlay and overlay.group_of:
        group_of = overlay.group_of
    if not all(group_of.get(key) for key in needed):
        return {}
    return {key: group for key, group in group_of.items() if group}
