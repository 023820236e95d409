"""Import of ready-made captions, MAFW's or those of any table, as descriptions of a packed set.

::

    clip.mp4 <TAB> label <TAB> Chinese <TAB> English    MAFW's single/with_caption/set_K/train.txt
                                                        and test.txt; no header
    clip.mp4 , Chinese , English                        MAFW's descriptive_text.xlsx, saved as CSV;
                                                        no header
    clip , caption                                      a header with clip and caption, en or zh;
                                                        other columns are ignored
    {"clip": …, "caption": …}                           lines of JSON, with the same names

A caption's language is Chinese if it has a Chinese character, English otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dfer_dist.data.captions.store import Source, Writer, clip_hashes
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import VIDEO_SUFFIXES, read_text
from dfer_dist.utils.errors import UserError

_CAPTIONS = ("caption", "en", "zh")
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
# Columns of captions by the number of columns of a table without a header.
_NO_HEADER = {2: [1], 3: [1, 2], 4: [2, 3]}
_VIDEO = re.compile(rf"({'|'.join(map(re.escape, VIDEO_SUFFIXES))})$", re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_BREAK = re.compile(r"<br */?>", re.IGNORECASE)  # in the lists on MAFW's page
# Characters of a cell: csv's own limit is below what a missing quotation mark makes of one.
_MAX_CELL = 1 << 20


@dataclass(frozen=True)
class Imported:
    """Counts of the captions in one language.

    Attributes
    ----------
    source : Source
    new, same : int
        Captions that were added, and that were stored before.
    without : int
        Clips of the set that have no caption.
    unexpected : int
        Captions of clips that are not in the set.
    """

    source: Source
    new: int
    same: int
    without: int
    unexpected: int


class _Row(NamedTuple):
    line: int
    clip: str
    texts: list[str]


class _Caption(NamedTuple):
    where: str  # file and line
    clip: str
    language: str
    text: str


def import_captions(index: Index, files: list[Path], name: str = "captions") -> list[Imported]:
    """Add captions to the descriptions of a set, as a source of this name for each language.

    A caption that is stored already is not added again; one that has changed is, and replaces it.

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
        One for each language.

    Raises
    ------
    UserError
        For a file of another layout, two captions of one clip in one language, and files without a
        caption of a clip of the set.
    """
    assert isinstance(index.root, Path)
    hashes = clip_hashes(index)
    found, unexpected = _collect(files, hashes)
    if not found:
        raise _no_caption(index.root, files, unexpected)
    imported = []
    with Writer(index.root) as writer:
        for language, texts in sorted(found.items()):
            source = Source({"kind": "import", "name": name, "language": language})
            stored = writer.stored.of(source)
            new = {key: text for key, text in texts.items() if stored.get(hashes[key]) != text}
            if new:
                writer.add(source, [(key, hashes[key], text) for key, text in new.items()])
            imported.append(
                Imported(
                    source,
                    new=len(new),
                    same=len(texts) - len(new),
                    without=len(hashes.keys() - texts.keys()),
                    unexpected=len(unexpected.get(language, ())),
                )
            )
    return imported


def _collect(
    files: list[Path], keys: Collection[str]
) -> tuple[dict[str, dict[str, str]], dict[str, set[str]]]:
    """Return texts by language and key, and by language the clips that are not in the set."""
    found: dict[str, dict[str, str]] = {}
    unexpected: dict[str, set[str]] = {}
    for caption in (caption for file in files for caption in _read_captions(file)):
        key = _find_key(caption.clip, keys)
        if key is None:
            unexpected.setdefault(caption.language, set()).add(caption.clip)
            continue
        texts = found.setdefault(caption.language, {})
        if texts.setdefault(key, caption.text) != caption.text:
            raise UserError(f"{caption.where}: a second caption of clip {caption.clip}: leave one")
    return found, unexpected


def _no_caption(root: Path, files: list[Path], unexpected: dict[str, set[str]]) -> UserError:
    example = next((clip for clips in unexpected.values() for clip in sorted(clips)), None)
    reason = "they have no caption"
    if example:
        reason = f"no clip of {root} is among them; theirs are named as {example}"
    return UserError(f"{', '.join(map(str, files))}: {reason}")


def _read_captions(file: Path) -> Iterator[_Caption]:
    """Yield the captions of a file that are not empty."""
    rows = _json_rows(file) if file.suffix.lower() == ".jsonl" else _table_rows(file)
    for row in rows:
        for raw in row.texts:
            text = " ".join(_BREAK.sub(" ", raw).split())
            if text:
                language = "zh" if _CHINESE.search(text) else "en"
                yield _Caption(f"{file}:{row.line}", row.clip, language, text)


def _table_rows(file: Path) -> Iterator[_Row]:
    delimiter = _DELIMITERS.get(file.suffix.lower())
    if delimiter is None:
        raise UserError(
            f"{file}: captions are read from .csv, .tsv, .txt (with tabs) and .jsonl: save a "
            "spreadsheet as CSV (UTF-8)"
        )
    csv.field_size_limit(_MAX_CELL)
    text = io.StringIO(read_text(file))
    if delimiter == ",":
        reader = csv.reader(text)
    else:
        # without quoting: a quotation mark at the start of a caption belongs to it
        reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    clip_column, columns = 0, list[int]()
    for row in _checked(reader, file):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if not columns:
            header = [cell.lower() for cell in cells]
            columns = [i for i, name in enumerate(header) if name in _CAPTIONS]
            if "clip" in header and columns:
                clip_column = header.index("clip")
                continue
            columns = _columns_without_header(file, len(cells))
        if len(cells) <= max(clip_column, *columns) or not cells[clip_column]:
            raise UserError(
                f"{file}:{reader.line_num}: a row without a clip, or with {len(cells)} columns"
            )
        yield _Row(reader.line_num, cells[clip_column], [cells[i] for i in columns])


def _columns_without_header(file: Path, count: int) -> list[int]:
    if count not in _NO_HEADER:
        raise UserError(
            f"{file}: no header with clip and caption, and {count} columns: 'clip, caption' are "
            "needed"
        )
    return _NO_HEADER[count]


def _checked(reader: Any, file: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as e:
        raise UserError(f"{file}:{reader.line_num}: {e}") from e


def _json_rows(file: Path) -> Iterator[_Row]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = [row[name] for name in _CAPTIONS if name in row]
            if not texts or not all(isinstance(text, str) for text in (row["clip"], *texts)):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            raise UserError(
                f"{file}:{number}: no line such as "
                '{"clip": "00025", "caption": "The brows rise."}'
            ) from e
        yield _Row(number, row["clip"], texts)


def _find_key(clip: str, keys: Collection[str]) -> str | None:
    """Return the key of a clip by its name in a table.

    The suffix of a video is removed, / becomes _, and DFEW's 1 is 00001.
    """
    name = _VIDEO.sub("", clip).strip("/").replace("/", "_")
    return next((key for key in (name, name.zfill(5)) if key in keys), None)
