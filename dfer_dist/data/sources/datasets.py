"""Read any supported data set: DFEW, MAFW, FERV39k, the demo, or folders of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.sources.folder import read_folder
from dfer_dist.data.sources.official import read_official
from dfer_dist.data.sources.records import CLASSES, ClipRecord
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class Listing:
    """A data set before packing.

    Attributes
    ----------
    name : str
    classes : tuple of str
        In label order.
    records : list of ClipRecord
    folders : tuple of Path
        Where lists and clips were found.
    """

    name: str
    classes: tuple[str, ...]
    records: list[ClipRecord]
    folders: tuple[Path, ...]


def read_dataset(
    dataset: str,
    root: Path,
    lists: Path | None = None,
    *,
    folds: int | None = None,
    seed: int | None = None,
    groups: Path | None = None,
    group_by: str | None = None,
    prefer_videos: bool = False,
) -> Listing:
    """Return the clips and classes of a data set.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw``, ``ferv39k``, ``demo``, or ``folder`` for folders of classes.
    root : Path
    lists : Path, optional
        Folder of DFER-CLIP's lists; by default the owner's lists are searched below ``root``.
    folds, seed, groups, group_by : optional
        Of ``folder``: see :func:`~dfer_dist.data.sources.folder.read_folder`.
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.

    Raises
    ------
    UserError
        From the readers, and for arguments that exclude each other.
    """
    options: dict[str, Any] = {"folds": folds, "seed": seed, "groups": groups, "group_by": group_by}
    given = {name: value for name, value in options.items() if value is not None}
    if dataset == "folder":
        if lists:
            raise UserError("--dataset folder has no lists: omit --lists")
        records, classes = read_folder(root, prefer_videos=prefer_videos, **given)
        return Listing(root.resolve().name, classes, records, (root,))
    if dataset not in CLASSES:
        names = ", ".join(CLASSES)
        raise UserError(f"unknown data set '{dataset}': choose one of {names} or folder")
    if given:
        option = next(iter(given)).replace("_", "-")
        raise UserError(f"{dataset} has official folds: --{option} is for --dataset folder")
    if lists:
        return Listing(dataset, CLASSES[dataset], read_lists(dataset, root, lists), (lists, root))
    if dataset == "demo":
        raise UserError("--dataset demo needs --lists, the folder of its lists")
    records, folders = read_official(dataset, root, prefer_videos)
    return Listing(dataset, CLASSES[dataset], records, folders)
