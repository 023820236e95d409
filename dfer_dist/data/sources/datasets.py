"""Any data set that can be packed, from where it lies to its clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfer_dist.data.sources.folder import FOLDS, read_folder
from dfer_dist.data.sources.layouts import CLASSES, ClipRecord, read_lists
from dfer_dist.data.sources.official import read_official
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class Listing:
    """A data set before packing: its name, its classes in label order, its clips, and the folders that these were found in."""

    name: str
    classes: tuple[str, ...]
    records: list[ClipRecord]
    found: tuple[Path, ...]


def read_dataset(
    dataset: str,
    root: Path,
    lists: Path | None = None,
    *,
    folds: int | None = None,
    seed: int | None = None,
    groups: Path | None = None,
    group_by: str | None = None,
    videos: bool = False,
) -> Listing:
    """Read what is to be packed.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw``, ``ferv39k``, ``demo`` or ``folder``, which takes the name of its folder.
    root : Path
        The folder below which the data lie.
    lists : Path, optional
        Folder of DFER-CLIP's lists (:func:`~dfer_dist.data.sources.layouts.read_lists`), whose paths start at ``root``. Without it the
        owner's lists are looked for below ``root`` (:func:`~dfer_dist.data.sources.official.read_official`).
    folds, seed, groups, group_by : optional
        For ``folder`` only: see :func:`~dfer_dist.data.sources.folder.read_folder`.
    films : bool
        Where a clip has both a film and a folder of frames, take the film.

    Raises
    ------
    UserError
        Of the readers, and for arguments that do not go together.
    """
    if dataset == "folder":
        if lists:
            raise UserError("--dataset folder has no lists: leave --lists away")
        records, classes = read_folder(
            root, FOLDS if folds is None else folds, seed or 0, groups, group_by, videos
        )
        return Listing(root.resolve().name, classes, records, (root,))
    if dataset not in CLASSES:
        raise UserError(f"unknown data set '{dataset}': one of {', '.join(CLASSES)} or folder")
    given = {"--folds": folds, "--seed": seed, "--groups": groups, "--group-by": group_by}
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise UserError(f"{dataset} has folds of its own: {wrong[0]} is for --dataset folder")
    if lists:
        return Listing(dataset, CLASSES[dataset], read_lists(dataset, root, lists), (lists, root))
    if dataset == "demo":
        raise UserError("--dataset demo needs --lists, the folder of its lists")
    records, found = read_official(dataset, root, videos)
    return Listing(dataset, CLASSES[dataset], records, found)
