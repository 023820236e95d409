"""Write sets of clips as general lists and corpora have them.

Each clip is a link to one of a few clips of a pool, so that hundreds are made in a moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dfer_dist.data.sources.records import SEVEN
from tests.helpers.data.clips import write_clip
from tests.helpers.data.videos import encode

CODECS = {".flv": "flv", ".mp4": "libx264", ".avi": "mpeg4"}
LETTERS = "abcdefghijkl"


@dataclass(frozen=True)
class Made:
    """A clip that was made; ``split`` is empty where folds are to be made.

    ``second`` is another class of the clip.
    """

    source: str
    class_name: str
    split: str = ""
    group: str = ""
    votes: tuple[int, ...] = ()
    second: str = ""


@dataclass(frozen=True)
class Form:
    """A data set in some form: how to read it, and what was made."""

    dataset: str
    root: Path
    clips: list[Made]
    options: dict[str, object] = field(default_factory=dict)

    def counts(self) -> Counter[tuple[str, str]]:
        """Return numbers of clips by split and class."""
        return Counter((clip.split, clip.class_name) for clip in self.clips)


def write_pool(pool: Path) -> Path:
    """Write a folder of frames, an image, and a video of each suffix, three frames each."""
    write_clip(pool / "frames", 3, seed=0, width=16, height=16)
    (pool / "image.jpg").write_bytes((pool / "frames" / "00000.jpg").read_bytes())
    for suffix, codec in CODECS.items():
        frames = (np.full((16, 16, 3), 60 * t, np.uint8) for t in range(3))
        encode(pool / f"video{suffix}", frames, codec=codec)
    return pool


def link(clip: Path, pool: Path) -> None:
    """Make a clip: a video or image if its path has such a suffix, else a folder of frames."""
    clip.parent.mkdir(parents=True, exist_ok=True)
    name = "frames"
    if clip.suffix:
        name = "image.jpg" if clip.suffix == ".jpg" else f"video{clip.suffix}"
    clip.symlink_to(pool.resolve() / name, target_is_directory=name == "frames")


def write_lines(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def _clips(count: int, splits: Sequence[str], groups: int = 0) -> list[Made]:
    return [
        Made(
            f"clips/{i:04d}",
            SEVEN[i * 5 % 7],
            splits[i % len(splits)],
            f"actor {LETTERS[i // 3 % groups]}" if groups else "",
        )
        for i in range(count)
    ]


def csv_with_header(root: Path, pool: Path, count: int) -> Form:
    """A CSV file with columns of a split and of groups, in an order of its own."""
    clips = _clips(count, ("train", "val", "test"), 12)
    for clip in clips:
        link(root / clip.source, pool)
    rows = (f"{c.class_name.title()},{c.split},{c.group},{c.source},3,x" for c in clips)
    write_lines(root / "list.csv", ["Label,Split,Group,Path,frames,note", *rows])
    return Form("list", root, clips, {"lists": [root / "list.csv"]})


def tsv_of_folds(root: Path, pool: Path, count: int) -> Form:
    """A TSV file whose folds are numbered from 0."""
    clips = _clips(count, [f"fold{k}" for k in range(1, 6)])
    for clip in clips:
        link(root / clip.source, pool)
    rows = (f"{c.source}\t{c.class_name}\t{int(c.split[4:]) - 1}" for c in clips)
    write_lines(root / "list.tsv", ["file\temotion\tfold", *rows])
    return Form("list", root, clips, {"lists": [root / "list.tsv"]})


def csv_of_groups(root: Path, pool: Path, count: int) -> Form:
    """A CSV file with groups, of which folds are made, in a column with another name."""
    clips = _clips(count, [""], 12)
    for clip in clips:
        link(root / clip.source, pool)
    rows = (f"{c.source},{c.class_name},{c.group}" for c in clips)
    write_lines(root / "list.csv", ["clip,class,person", *rows])
    return Form("list", root, clips, {"lists": [root / "list.csv"], "group_by": "person"})


def plain_text(root: Path, pool: Path, count: int) -> Form:
    """Text without a header, of ``path frames label`` with blanks in the paths."""
    clips = [Made(f"my {clip.source}", clip.class_name) for clip in _clips(count, [""])]
    for clip in clips:
        link(root / clip.source, pool)
    write_lines(root / "list.txt", (f"{c.source} 3 {SEVEN.index(c.class_name)}" for c in clips))
    return Form("list", root, clips, {"lists": [root / "list.txt"], "classes": SEVEN})


def videomae(root: Path, pool: Path, count: int) -> Form:
    """Folders of folds with train, test and, as in MAE-DFER, val equal to test; absolute paths."""
    clips = _clips(count, [f"fold{k}" for k in range(1, 6)])
    for clip in clips:
        link(root / clip.source, pool)
    for fold in range(1, 6):
        for part in ("train", "val", "test"):
            rows = (
                f"/data/DFEW/Clip/jpg_256/{c.source} {SEVEN.index(c.class_name)}"
                for c in clips
                if (c.split != f"fold{fold}") == (part == "train")
            )
            write_lines(root.parent / f"org/split0{fold}/{part}.csv", rows)
    return Form("list", root, clips, {"lists": [root.parent / "org"], "classes": SEVEN})


def votes_and_parts(root: Path, pool: Path, count: int) -> Form:
    """A CSV file of votes for parts of videos, of which every tenth has no majority."""
    clips = []
    lines = ["path,start,end,votes_anger,votes_fear,votes_joy"]
    names = ("anger", "fear", "joy")
    for i in range(count):
        votes = [1, 1, 1]
        votes[i % 3] += 4
        if i % 10 == 0:
            votes = [3, 3, 0]
        start = 0.04 * (i % 2)
        split = "ambiguous" if i % 10 == 0 else ""
        name = names[votes.index(max(votes))]
        part = f"#t={start:g},{start + 0.08:g}"
        clips.append(Made(f"v/{i // 2}{part}", name, split, f"v/{i // 2}", tuple(votes)))
        lines.append(f"v/{i // 2}.mp4,{start:g},{start + 0.08:g},{','.join(map(str, votes))}")
    for i in range(-(-count // 2)):
        link(root / f"v/{i}.mp4", pool)
    write_lines(root / "list.csv", lines)
    return Form("list", root, clips, {"lists": [root / "list.csv"], "classes": names})


def several_labels(root: Path, pool: Path, count: int) -> Form:
    """A TSV file of images with one or two classes each."""
    clips = [
        Made(
            f"img/{i}",
            SEVEN[i % 7],
            ("train", "test")[i % 2],
            second=SEVEN[(i + 2) % 7] if i % 3 == 0 else "",
        )
        for i in range(count)
    ]
    for clip in clips:
        link(root / f"{clip.source}.jpg", pool)
    lines = []
    for clip in clips:
        label = "+".join(name for name in (clip.class_name, clip.second) if name)
        lines.append(f"{clip.source}.jpg\t{label}\t{clip.split}")
    write_lines(root / "list.tsv", ["image\tlabels\tsplit", *lines])
    return Form("list", root, clips, {"lists": [root / "list.tsv"]})


def crema_d(root: Path, pool: Path, count: int) -> Form:
    """Flash videos, and sounds of the same names."""
    codes = {"ANG": "anger", "DIS": "disgust", "FEA": "fear"}
    codes |= {"HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
    clips = []
    for i in range(count):
        code = tuple(codes)[i % 6]
        actor = 1001 + i // 6 % 15
        sentence = "".join(LETTERS[i // 90 + k] for k in (0, 1, 2)).upper()
        name = f"{actor}_{sentence}_{code}_XX"
        clips.append(Made(name, codes[code], group=str(actor)))
        link(root / f"VideoFlash/{name}.flv", pool)
    write_lines(root / f"AudioWAV/{clips[0].source}.wav", ["sound"])
    return Form("crema-d", root, clips)


def ravdess(root: Path, pool: Path, count: int) -> Form:
    """Videos with and without sound, and songs."""
    names = (*("neutral", "calm", "happiness", "sadness", "anger"), "fear", "disgust", "surprise")
    clips = []
    for i in range(count):
        actor = i // 8 % 24 + 1
        name = f"01-01-0{i % 8 + 1}-01-0{i // 192 + 1}-01-{actor:02d}"
        clips.append(Made(name, names[i % 8], group=f"{actor:02d}"))
        link(root / f"Actor_{actor:02d}/{name}.mp4", pool)
    link(root / f"Actor_01/02{clips[0].source[2:]}.mp4", pool)
    link(root / "Actor_01/01-02-03-01-01-01-01.mp4", pool)
    return Form("ravdess", root, clips)


def enterface(root: Path, pool: Path, count: int) -> Form:
    names = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
    clips = []
    for i in range(count):
        subject, sentence, name = i // 30 + 1, i // 6 % 5 + 1, names[i % 6]
        stem = f"s{subject}_{name[:2]}_{sentence}"
        source = f"subject {subject}/{name}/sentence {sentence}/{stem}"
        clips.append(Made(source, name, group=str(subject)))
        link(root / f"{source}.avi", pool)
    write_lines(root / "subject 1/anger/Thumbs.db", ["x"])
    return Form("enterface", root, clips)


def afew(root: Path, pool: Path, count: int) -> Form:
    folders = {"Angry": "anger", "Disgust": "disgust", "Fear": "fear", "Happy": "happiness"}
    folders |= {"Neutral": "neutral", "Sad": "sadness", "Surprise": "surprise"}
    clips = []
    for i in range(count):
        folder = tuple(folders)[i % 7]
        part, split = (("Train_AFEW", "train"), ("Val_AFEW", "test"))[i % 3 == 0]
        source = f"{part}/{folder}/{i:05d}4280"
        clips.append(Made(source, folders[folder], split))
        link(root / f"{source}.avi", pool)
    link(root / "Test_AFEW/000000001.avi", pool)
    return Form("afew", root, clips)


def raf_db(root: Path, pool: Path, count: int) -> Form:
    names = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    clips, lines = [], []
    for i in range(count):
        split = ("train", "train", "test")[i % 3]
        clips.append(Made(f"{split}_{i:05d}", names[i % 7], split))
        lines.append(f"{split}_{i:05d}.jpg {i % 7 + 1}")
        link(root / f"basic/Image/aligned/{split}_{i:05d}_aligned.jpg", pool)
    write_lines(root / "basic/EmoLabel/list_patition_label.txt", lines)
    return Form("raf-db", root, clips)


def folder_of_images(root: Path, pool: Path, count: int) -> Form:
    """Folders of classes of images, as AffectNet is often unpacked."""
    clips = []
    for i in range(count):
        split = ("train", "val")[i % 4 == 0]
        source = f"{split}/{SEVEN[i % 7].title()}/image{i:07d}"
        clips.append(Made(source, SEVEN[i % 7], "test" if split == "val" else split))
        link(root / f"{source}.jpg", pool)
    return Form("folder", root, clips, {"images": True})


FORMS: tuple[Callable[[Path, Path, int], Form], ...] = (
    csv_with_header,
    tsv_of_folds,
    csv_of_groups,
    plain_text,
    videomae,
    votes_and_parts,
    several_labels,
    crema_d,
    ravdess,
    enterface,
    afew,
    raf_db,
    folder_of_images,
)
