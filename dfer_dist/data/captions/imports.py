"""Ready-made captions: MAFW's, or those of any table, as descriptions beside the shards.

::

    clip.mp4 <TAB> label <TAB> Chinese <TAB> English     MAFW's single/with_caption/set_K/train.txt and test.txt; no header
    clip.mp4 , Chinese , English                         MAFW's descriptive_text.xlsx, saved as CSV; no header
    clip , caption                                       a header with clip and caption, en or zh, other columns left alone
    {"clip": …, "caption": …}                            a line of JSON, with the same names

A caption's language is Chinese if it has a Chinese character, English otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_dist.data.captions.store import Source, Writer, clip_hashes
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import VIDEO_SUFFIXES, read_text
from dfer_dist.utils.errors import UserError

_CAPTIONS = ("caption", "en", "zh")
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_VIDEO = re.compile(rf"({'|'.join(map(re.escape, VIDEO_SUFFIXES))})$", re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_BREAK = re.compile(r"<br */?>", re.IGNORECASE)  # in the lists that MAFW's page shows
_MOST = (
    1 << 20
)  # characters of a cell; csv's own bound is smaller than a careless quotation mark makes one


@dataclass(frozen=True)
class Imported:
    """What became of the captions in one language: new ones, ones that were there, clips left without, and captions of no clip."""

    source: Source
    new: int
    same: int
    without: int
    unexpected: int


def import_captions(index: Index, files: list[Path], name: str = "captions") -> list[Imported]:
    """Add captions to the descriptions of a set in a folder: of each language a source of that name.

    A caption that is there already is not added again; one that has changed is, and counts from then on.

    Parameters
    ----------
    index : Index
        In a local folder.
    files : list of Path
        ``.csv``, ``.tsv``, ``.txt`` (tabs) or ``.jsonl``; see the top of this module.
    name : str
        Of the sources.

    Returns
    -------
    list of Imported
        A line a language.

    Raises
    ------
    UserError
        For a file of another layout, two captions of one clip in one language, and captions of which none is of a clip of the set.
    """
    assert isinstance(index.root, Path)
    hashes = clip_hashes(index)
    found: dict[str, dict[str, str]] = {}
    unexpected: dict[str, set[str]] = {}
    for file in files:
        for where, clip, language, text in _captions(file):
            key = _key(clip, hashes)
            if key is None:
                unexpected.setdefault(language, set()).add(clip)
            elif found.setdefault(language, {}).setdefault(key, text) != text:
                raise UserError(f"{where}: a second caption of clip {clip}: leave one")
    if not found:
        example = next((clip for clips in unexpected.values() for clip in sorted(clips)), None)
        words = (
            f"no clip of {index.root} is among them; theirs are named as {example}"
            if example
            else "they have no caption"
        )
        raise UserError(f"{', '.join(map(str, files))}: {words}")
    done = []
    with Writer(index.root) as writer:
        for language, texts in sorted(found.items()):
            source = Source({"kind": "import", "name": name, "language": language})
            held = writer.held.of(source)
            new = {key: text for key, text in texts.items() if held.get(hashes[key]) != text}
            if new:
                writer.add(source, [(key, hashes[key], text) for key, text in new.items()])
            left = len(hashes.keys() - texts.keys())
            done.append(
                Imported(
                    source, len(new), len(texts) - len(new), left, len(unexpected.get(language, ()))
                )
            )
    return done


def _captions(file: Path) -> Iterator[tuple[str, str, str, str]]:
    """Place, clip, language and text of each caption that is not empty."""
    for number, clip, texts in (
        _json_rows(file) if file.suffix.lower() == ".jsonl" else _table_rows(file)
    ):
        for text in texts:
            text = " ".join(_BREAK.sub(" ", text).split())
            if text:
                yield f"{file}:{number}", clip, "zh" if _CHINESE.search(text) else "en", text


def _table_rows(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    delimiter = _DELIMITERS.get(file.suffix.lower())
    if delimiter is None:
        raise UserError(
            f"{file}: captions are read from .csv, .tsv, .txt (with tabs) and .jsonl: save a spreadsheet as CSV (UTF-8)"
        )
    csv.field_size_limit(_MOST)
    text = io.StringIO(read_text(file))
    # a list with tabs knows no quotation marks: one at the beginning of a caption is a letter like any other
    reader = (
        csv.reader(text)
        if delimiter == ","
        else csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    )
    columns: list[int] | None = None
    first = 0
    for row in _rows(reader, file):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if columns is None:
            header = [cell.lower() for cell in cells]
            named = [i for i, name in enumerate(header) if name in _CAPTIONS]
            if "clip" in header and named:
                first, columns = header.index("clip"), named
                continue
            columns = {2: [1], 3: [1, 2], 4: [2, 3]}.get(len(cells))
            if columns is None:
                raise UserError(
                    f"{file}: no header with clip and caption, and {len(cells)} columns: 'clip, caption' are needed"
                )
        if len(cells) <= max(first, *columns) or not cells[first]:
            raise UserError(
                f"{file}:{reader.line_num}: a row without a clip, or with {len(cells)} columns"
            )
        yield reader.line_num, cells[first], [cells[i] for i in columns]


def _rows(reader: Any, file: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as e:
        raise UserError(f"{file}:{reader.line_num}: {e}") from e


def _json_rows(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                texts = [row[name] for name in _CAPTIONS if name in row]
                if not (
                    texts
                    and isinstance(row["clip"], str)
                    and all(isinstance(text, str) for text in texts)
                ):
                    raise TypeError
            except (ValueError, LookupError, TypeError, RecursionError) as e:
                raise UserError(
                    f'{file}:{number}: no line such as {{"clip": "00025", "caption": "The brows rise."}}'
                ) from e
            yield number, row["clip"], texts


def _key(clip: str, keys: dict[str, str]) -> str | None:
    """The key of a clip by its name in a table: a film's suffix is cut off, / becomes _, and DFEW's 1 is 00001."""
    name = _VIDEO.sub("", clip).strip("/").replace("/", "_")
    return next((key for key in (name, name.zfill(5)) if key in keys), None)
