"""Read any supported data set: DFEW, MAFW, FERV39k, the demo, or folders of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfer_dist.data.sources.dfer_clip_lists import count_unlisted, read_lists
from dfer_dist.data.sources.folder import read_folder
from dfer_dist.data.sources.official import read_official
from dfer_dist.data.sources.records import CLASSES, Listing
from dfer_dist.utils.errors import UserError


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
    frames: Path | None = None,
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
    frames : Path, optional
        Of the owner's lists: see :func:`~dfer_dist.data.sources.official.read_official`.

    Raises
    ------
    UserError
        From the readers, and for arguments that exclude each other.
    """
    options: dict[str, Any] = {"folds": folds, "seed": seed, "groups": groups, "group_by": group_by}
    given = {name: value for name, value in options.items() if value is not None}
    _check_arguments(dataset, lists, frames, given)
    if dataset == "folder":
        return read_folder(root, prefer_videos=prefer_videos, **given)
    if lists:
        records = read_lists(dataset, root, lists)
        unread = count_unlisted(root, [record.source for record in records])
        return Listing(dataset, CLASSES[dataset], records, (lists, root), unread)
    return read_official(dataset, root, prefer_videos, frames)


def _check_arguments(
    dataset: str, lists: Path | None, frames: Path | None, folds: Mapping[str, Any]
) -> None:
    """Check that no argument is given that another one excludes."""
    if dataset not in (*CLASSES, "folder"):
        names = ", ".join(CLASSES)
        raise UserError(f"unknown data set '{dataset}': choose one of {names} or folder")
    if dataset == "folder" and lists:
        raise UserError("--dataset folder has no lists: omit --lists")
    if dataset == "folder" and frames:
        raise UserError("--frames is for dfew, mafw and ferv39k: give --root of the folder")
    if dataset != "folder" and folds:
        option = next(iter(folds)).replace("_", "-")
        raise UserError(f"{dataset} has official folds: --{option} is for --dataset folder")
    if dataset == "mafw-compound" and lists:
        raise UserError(
            "--dataset mafw-compound reads MAFW's own lists, DFER-CLIP's authors released none: "
            "omit --lists"
        )
    if lists and frames:
        raise UserError("with --lists the clips are in --root: give --root instead of --frames")
    if dataset == "demo" and not lists:
        raise UserError("--dataset demo needs --lists, the folder of its lists")


def check_out(root: Path, out: Path) -> None:
    """Check that shards are not written into the data set that they are made of.

    Raises
    ------
    UserError
        If ``out`` is in ``root``.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"--out {out} is in --root {root}, where it would be taken for data: choose a folder "
            "next to it"
        )
