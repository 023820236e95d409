"""Read any supported data set: official sets, general lists, corpora, or folders of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfer_dist.data.sources.corpora import CORPORA, read_corpus
from dfer_dist.data.sources.dfer_clip_lists import count_unlisted, read_lists
from dfer_dist.data.sources.folder import read_folder
from dfer_dist.data.sources.lists.reader import FoldRequest, read_general_lists
from dfer_dist.data.sources.official import read_official
from dfer_dist.data.sources.records import CLASSES, Listing
from dfer_dist.data.sources.votes import add_votes, read_votes
from dfer_dist.utils.errors import UserError

# value of --votes that leaves those of the data set unread
NO_VOTES = "none"
_OFFICIAL = ("dfew", "mafw", "mafw-compound", "ferv39k")
# the data sets that an option is for
_OPTIONS = {
    "lists": ("demo", "dfew", "mafw", "ferv39k", "list"),
    "frames": _OFFICIAL,
    "classes": ("list", "folder"),
    "images": ("folder",),
    "folds": ("folder", "list", *CORPORA),
    "seed": ("folder", "list", *CORPORA),
    "groups": ("folder", "list"),
    "group_by": ("folder", "list"),
}


@dataclass(frozen=True)
class ReadOptions(FoldRequest):
    """Options of :func:`read_dataset`.

    Attributes
    ----------
    folds, seed, groups, group_by : optional
        See :func:`~dfer_dist.data.sources.folds.make_folds`.
    prefer_videos : bool
        Use the video of a clip that has both a video and a folder of frames.
    frames : Path, optional
        Of the owner's lists: see :func:`~dfer_dist.data.sources.official.read_official`.
    classes : sequence of str, optional
        Of ``list`` and ``folder``: names in the order of the labels.
    votes : str, optional
        File of votes (see :func:`~dfer_dist.data.sources.votes.read_votes`), or ``none``. By
        default DFEW's annotation file is read if it is below the root.
    images : bool
        Of ``folder``: each image in a folder of a class is a clip of one frame.
    """

    prefer_videos: bool = False
    frames: Path | None = None
    classes: Sequence[str] | None = None
    votes: str | None = None
    images: bool = False


def read_dataset(
    dataset: str, root: Path, lists: Path | Sequence[Path] | None = None, **options: Any
) -> Listing:
    """Return the clips and classes of a data set.

    Parameters
    ----------
    dataset : str
        ``dfew``, ``mafw``, ``ferv39k``, ``demo``, ``list``, ``folder`` for folders of classes, or
        a name of :data:`~dfer_dist.data.sources.corpora.CORPORA`.
    root : Path
    lists : Path or sequence of Path, optional
        Folder of DFER-CLIP's lists; by default the owner's lists are searched below ``root``. Of
        ``list``: see :func:`~dfer_dist.data.sources.lists.reader.read_general_lists`.
    **options
        Attributes of :class:`ReadOptions`.

    Raises
    ------
    UserError
        From the readers, and for arguments that exclude each other.
    """
    given = [lists] if isinstance(lists, Path) else list(lists or [])
    o = ReadOptions(**options)
    _check_options(dataset, given, o)
    table = None if o.votes in (None, NO_VOTES) else Path(str(o.votes))
    if dataset == "list":
        listing = read_general_lists(root, given, o.classes, o)
    elif dataset == "folder":
        making = (o.folds, o.seed, o.groups, o.group_by)
        listing = read_folder(root, *making, o.prefer_videos, o.images, o.classes)
    elif dataset in CORPORA:
        listing = read_corpus(dataset, root, o.folds, o.seed, o.prefer_videos)
    elif given:
        records = read_lists(dataset, root, given[0])
        unread = count_unlisted(root, [record.source for record in records])
        listing = Listing(dataset, CLASSES[dataset], records, (given[0], root), unread)
    else:
        search = o.votes != NO_VOTES
        return read_official(dataset, root, o.prefer_videos, o.frames, table, search)
    return _add_votes(listing, table) if table else listing


def _add_votes(listing: Listing, file: Path) -> Listing:
    found = read_votes(file, listing.classes)
    records, notes = add_votes(listing.records, found, listing.classes, file)
    return replace(listing, records=records, notes=(*listing.notes, *notes))


def _check_options(dataset: str, lists: Sequence[Path], options: ReadOptions) -> None:
    """Check that each option is for this data set, and that it has the lists that it needs."""
    names = (*CLASSES, "list", "folder", *CORPORA)
    if dataset not in names:
        known = ", ".join(names[:-1])
        raise UserError(f"unknown data set '{dataset}': choose one of {known} or {names[-1]}")
    values = {**vars(options), "lists": lists or None}
    given = {name for name, value in values.items() if value is not None and value is not False}
    for option, datasets in _OPTIONS.items():
        if option in given and dataset not in datasets:
            known, name = ", ".join(datasets), option.replace("_", "-")
            raise UserError(f"--{name} is for --dataset {known}: omit --{name} for {dataset}")
    if lists and options.frames:
        raise UserError("with --lists the clips are in --root: give --root instead of --frames")
    if dataset == "demo" and not lists:
        raise UserError("--dataset demo needs --lists, the folder of its lists")
    if dataset == "list" and not lists:
        raise UserError("--dataset list needs --lists, one or more lists of clips")
    if dataset != "list" and len(lists) > 1:
        raise UserError(f"{dataset} has one folder of lists: give --lists once")


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
