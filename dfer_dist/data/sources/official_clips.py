"""Find the clips of DFEW, MAFW and FERV39k below the folder of a download."""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfer_dist.data.sources.names import is_system
from dfer_dist.data.sources.probe import is_video
from dfer_dist.data.sources.records import unlisted_kind
from dfer_dist.utils.errors import UserError, first_of

_MAX_DEPTH = 7

# such as clip_224x224_16f, jpg_224_16, faces-16-frames, clips16f, TI16 and resampled: made
# of fewer frames, or of more, than the clip has
_INTERPOLATED = re.compile(
    r"(?<![0-9a-z])[0-9]+[ _-]?f(rames?)?(?![a-z])|"
    r"(?<![0-9])(8|16|32|64)[ _-]?f(rames?)?(?![a-z])|"
    r"(?<![a-z])(f(rames?)?|ti)[ _(-]?(8|16|32|64)(?![0-9a-z])|"
    r"(?<=[0-9])[ _-](8|16|32|64)(?=/|$)|"
    r"interp|uniform|sampled|(re|up|sub|down)-?sampl",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FoundClips:
    """The clips of a list.

    Attributes
    ----------
    media : mapping of str to Path
        The path of each clip; a missing clip has its expected path.
    home : Path
        The folder of all.
    choice : str
        Which folder it is, and which others hold listed clips.
    unread : Counter of str
        What its folders hold that is in no list, by kind.
    """

    media: Mapping[str, Path]
    home: Path
    choice: str
    unread: Counter[str]


@dataclass
class _Candidate:
    """A folder that holds listed clips, as videos or as folders of frames."""

    path: Path
    are_videos: bool
    name: str
    clips: dict[str, Path] = field(default_factory=dict)

    @property
    def is_interpolated(self) -> bool:
        return bool(_INTERPOLATED.search(self.name)) and not self.are_videos

    def __str__(self) -> str:
        kind = "videos" if self.are_videos else "folders of frames"
        note = ", interpolated" * self.is_interpolated
        return f"{self.name} ({len(self.clips)} {kind}{note})"


def find_clips(
    root: Path,
    sources: Sequence[str],
    usual: tuple[str, str],
    prefer_videos: bool,
    frames: Path | None,
) -> FoundClips:
    """Find the folder of the clips of a list.

    Clips of FERV39k are nested folders, of which the topmost one is searched for.

    Parameters
    ----------
    root : Path
    sources : sequence of str
        Names of the clips.
    usual : tuple of str
        Usual names of the folders of all frames and of all videos.
    prefer_videos : bool
    frames : Path, optional
        The folder to take, below ``root``.

    Raises
    ------
    UserError
        If there is none, several fit, or the only ones hold interpolated frames, which are taken
        only as ``frames``.
    """
    names = {source.partition("/")[0] for source in sources}
    found, others = _find_candidates(root, names)
    if not found:
        raise UserError(
            f"no folder below {root} holds the listed clips, such as {sources[0]}/ or "
            f"{sources[0]}.mp4"
        )
    if frames is not None:
        home, chosen = _take_given(root, found, frames, prefer_videos)
    else:
        are_videos = prefer_videos == any(folder.are_videos == prefer_videos for folder in found)
        alike = [folder for folder in found if folder.are_videos == are_videos]
        home, chosen = _choose(root, alike, usual[are_videos])
    paths = {name: path for folder in reversed(chosen) for name, path in folder.clips.items()}
    media = {}
    for source in sources:
        name, _, rest = source.partition("/")
        media[source] = paths[name] / rest if name in paths else chosen[0].path / source
    unread = sum((others[folder.path] for folder in chosen), Counter())
    return FoundClips(media, home, _describe_choice(found, chosen), unread)


def _describe_choice(found: Sequence[_Candidate], chosen: Sequence[_Candidate]) -> str:
    text = f"clips are read from {first_of(chosen, 3)}"
    left = ", ".join(str(folder) for folder in found if folder not in chosen)
    if left:
        text += f"; not from {left} (--frames DIR takes another)"
    return text


def _take_given(
    root: Path, found: Sequence[_Candidate], frames: Path, prefer_videos: bool
) -> tuple[Path, list[_Candidate]]:
    """Return the folder that the user gave with the clip folders in it."""
    home = next((f for f in (root / frames, frames) if f.is_dir()), frames)
    inside = [f for f in found if f.path.resolve().is_relative_to(home.resolve())]
    if not inside:
        raise UserError(
            f"--frames {frames} holds no listed clip: choose one of {', '.join(map(str, found))}"
        )
    are_videos = prefer_videos and any(folder.are_videos for folder in inside)
    return home, [f for f in inside if f.are_videos == are_videos] or inside


def _choose(root: Path, found: Sequence[_Candidate], usual: str) -> tuple[Path, list[_Candidate]]:
    """Return the folder of the usual name with all clip folders in it, else the only one that fits.

    A folder with half as many listed clips as the fullest one fits.
    """
    original = [folder for folder in found if not folder.is_interpolated]
    if not original:
        raise UserError(
            f"below {root} there are only interpolated frames, {', '.join(map(str, found))}: take "
            f"them with --frames {found[0].name}, or unpack those of the full clips"
        )
    named = [f for f in original if usual in (root.name, *f.path.relative_to(root).parts)]
    if named:
        # a download in several parts has several folders in the usual one
        parts = named[0].path.relative_to(root).parts
        home = root.joinpath(*parts[: parts.index(usual) + 1]) if usual in parts else root
        return home, [folder for folder in named if folder.path.is_relative_to(home)]
    fullest = max(original, key=lambda folder: len(folder.clips))
    fitting = [f for f in original if 2 * len(f.clips) >= len(fullest.clips)]
    if len(fitting) > 1:
        raise UserError(
            f"the listed clips are in {' and in '.join(map(str, fitting))}: choose one with "
            f"--frames {fitting[0].name}"
        )
    return fullest.path, [fullest]


def _find_candidates(
    root: Path, names: set[str]
) -> tuple[list[_Candidate], Mapping[Path, Counter[str]]]:
    """Return the folders that hold listed clips, and what else is in each of them by kind.

    Below a folder of frames no other is searched for.
    """
    found: dict[tuple[Path, bool], _Candidate] = {}
    others: dict[Path, Counter[str]] = {}
    for folder, entries in walk(root, lambda folder, _: (folder, False) not in found):
        unread: Counter[str] = Counter()
        for entry in entries:
            videos = not entry.is_dir()
            name = _match_clip(entry.name, names, videos)
            if name is None or (videos and not is_video(Path(entry.path))):
                unread[unlisted_kind(entry)] += not is_system(entry.name)
                continue
            candidate = _Candidate(folder, videos, folder.relative_to(root).as_posix())
            found.setdefault((folder, videos), candidate).clips[name] = Path(entry.path)
        if {(folder, False), (folder, True)} & found.keys():
            others[folder] = +unread
    return list(found.values()), others


def _match_clip(entry: str, names: set[str], videos: bool) -> str | None:
    """Return which clip a file or folder is by its name, or None."""
    name = os.path.splitext(entry)[0] if videos else entry
    # DFEW's videos have names such as 1.mp4
    return next((n for n in (name, name.zfill(5)) if n in names), None)


def walk(
    root: Path, descend: Callable[[Path, int], bool]
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield folders with their entries, from the root down, by depth.

    ``descend`` decides from a folder and its number of subfolders whether these come later. It is
    called after the folder was used.
    """
    folders = deque([(root, 0)])
    while folders:
        folder, depth = folders.popleft()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        yield folder, entries
        visible = [entry for entry in entries if not is_system(entry.name)]
        subfolders = [Path(entry.path) for entry in visible if entry.is_dir()]
        if depth < _MAX_DEPTH and descend(folder, len(subfolders)):
            folders.extend((subfolder, depth + 1) for subfolder in subfolders)
