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

from dfer_dist.data.captions.store import Source, clip_hashes, open_writer
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.names import possible_keys
from dfer_dist.data.sources.records import VIDEO_SUFFIXES
from dfer_dist.data.sources.text_lists import find_delimiter, read_text
from dfer_dist.utils.errors import UserError

_CAPTIONS = ("caption", "en", "zh")
# Without quoting: a quotation mark at the start of a caption belongs to it.
_TABS: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
_FORMATS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": _TABS, ".txt": _TABS}
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
    """A clip and its captions; ``where`` is file and line."""

    where: str
    clip: str
    texts: list[str]


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
    hashes = clip_hashes(index)
    found, unexpected = _collect(files, hashes)
    imported = []
    with open_writer(index) as writer:
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
    for row in (row for file in files for row in _read_rows(file)):
        key = _find_key(row.clip, keys)
        texts = (" ".join(_BREAK.sub(" ", raw).split()) for raw in row.texts)
        for text in filter(None, texts):
            language = "zh" if _CHINESE.search(text) else "en"
            if key is None:
                unexpected.setdefault(language, set()).add(row.clip)
            elif found.setdefault(language, {}).setdefault(key, text) != text:
                raise UserError(f"{row.where}: a second caption of clip {row.clip}: leave one")
    if not found:
        example = min(set().union(*unexpected.values()), default=None)
        reason = "they have no caption"
        if example:
            reason = f"no clip of these shards is among them; theirs are named as {example}"
        raise UserError(f"{', '.join(map(str, files))}: {reason}")
    return found, unexpected


def _read_rows(file: Path) -> Iterator[_Row]:
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        return _json_rows(file)
    if suffix in _FORMATS:
        text, options = read_text(file), _FORMATS[suffix]
        reader = csv.reader(io.StringIO(text), **{"delimiter": find_delimiter(text), **options})
        return _table_rows(file, reader)
    raise UserError(
        f"{file}: captions are read from .csv, .tsv, .txt (with tabs) and .jsonl: save a "
        "spreadsheet as CSV (UTF-8)"
    )


def _table_rows(file: Path, reader: Any) -> Iterator[_Row]:
    csv.field_size_limit(_MAX_CELL)
    clip_column, columns = 0, list[int]()
    try:
        for row in reader:
            where, cells = f"{file}:{reader.line_num}", [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not columns:
                header = [cell.lower() for cell in cells]
                columns = [i for i, name in enumerate(header) if name in _CAPTIONS]
                if "clip" in header and columns:
                    clip_column = header.index("clip")
                    continue
                columns = _NO_HEADER.get(len(cells), [])
            if not columns:
                raise UserError(
                    f"{file}: no header with clip and caption, and {len(cells)} columns"
                )
            if len(cells) <= max(clip_column, *columns) or not cells[clip_column]:
                raise UserError(f"{where}: a row without a clip, or with {len(cells)} columns")
            yield _Row(where, cells[clip_column], [cells[i] for i in columns])
    except csv.Error as e:
        raise UserError(f"{file}:{reader.line_num}: {e}") from e


def _json_rows(file: Path) -> Iterator[_Row]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
            texts = [row[name] for name in _CAPTIONS if name in row]
            if not texts or not all(isinstance(text, str) for text in (row["clip"], *texts)):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            example = '{"clip": "00025", "caption": "The brows rise."}'
            raise UserError(f"{where}: no line such as {example}") from e
        yield _Row(where, row["clip"], texts)


def _find_key(clip: str, keys: Collection[str]) -> str | None:
    """Return the key of a clip by its name in a table.

    The suffix of a video is removed, / becomes _, and DFEW's 1 is 00001.
    """
    name = _VIDEO.sub("", clip)
    candidates = (*possible_keys(name), name.zfill(5))
    return next((key for key in candidates if key in keys), None)
