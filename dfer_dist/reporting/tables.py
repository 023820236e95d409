"""One table in four forms: for the terminal, as Markdown, as LaTeX (booktabs) and for the page."""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table as RichTable

# In LaTeX, characters of a line of a head, unless cells are longer, and of a cell.
_MAX_HEAD = 12
_MAX_CELL = 40
_OTHER_SCRIPTS = (
    r"The names need XeLaTeX or LuaLaTeX with a font that has them, such as \usepackage{xeCJK} "
    r"\setCJKmainfont{Noto Sans CJK SC}; pdfLaTeX leaves them out."
)
# All that pdfLaTeX prints without more packages, with what _LATEX replaces.
_LATIN = 0x17F
_LATEX = {
    **{c: f"\\{c}" for c in "{}&%$#_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # A bracket after the end of a row would be read as its option.
    "[": "{[}",
    '"': "''",
    "±": r"$\pm$",
    "−": r"$-$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "…": r"\dots{}",
    "–": "--",
    "“": "``",
    "”": "''",
    "\0": "{}",
    "²": r"\textsuperscript{2}",
}

# What begins a tag of HTML, emphasis, code, a link, an entity or a cell. Underscores in names do
# not begin emphasis.
_MARKDOWN = re.compile(r"[\\|*`\[]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")


class LatexSize(NamedTuple):
    """An environment and a size of the font: characters in a line, and those between columns."""

    environment: str
    command: str
    fits: int
    gap: float


# Of a page with a text of 6.875 in and two columns, as at CVPR.
_SIZES = (
    LatexSize("table", "", 45, 2.4),
    LatexSize("table*", "", 98, 2.4),
    LatexSize("table*", r"\small\setlength{\tabcolsep}{4pt}", 108, 1.7),
    LatexSize("table*", r"\footnotesize\setlength{\tabcolsep}{3pt}", 120, 1.4),
    LatexSize("table*", r"\scriptsize\setlength{\tabcolsep}{2pt}", 136, 1.1),
)


class Cell(NamedTuple):
    """A place in the body of a table."""

    row: int
    column: int


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes
    ----------
    name : str
        A plain word for labels and anchors.
    title : str
    header : sequence of str
    rows : sequence of sequences of str
    warnings : sequence of str
        What forbids taking the numbers at face value, such as missing folds.
    notes : sequence of str
        What a reader must know and the cells do not say.
    left : int
        Number of leading columns that are aligned left; the others are aligned right.
    rules : sequence of int
        Rows with a rule above them.
    bold : sequence of Cell
        The best values, whose number is bold.
    caption : str
        What it shows, of which run, on which data: the caption in LaTeX, instead of the title.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    left: int = 1
    rules: Sequence[int] = ()
    bold: Sequence[Cell] = ()
    caption: str = ""

    @property
    def alert(self) -> list[int]:
        """The highlighted rows: those of missing folds."""
        return [i for i, row in enumerate(self.rows) if row[1] == "missing"]


@dataclass(frozen=True)
class Picture:
    """A figure of the page, at most ``width`` pixels wide.

    ``small`` ones are shown together after a click.
    """

    uri: str
    alt: str
    caption: str = ""
    warnings: Sequence[str] = ()
    width: int = 1100
    small: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, tables, and on the page pictures.

    ``files`` are names of CSV files next to the report that belong to it.
    """

    key: str
    title: str
    tables: Sequence[Table] = ()
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    files: Sequence[str] = ()


def terminal(table: Table) -> RichTable:
    """Return the table for the terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    caption = "\n".join([*table.warnings, *table.notes])
    out = RichTable(title=Text(table.title), caption=Text(caption), caption_justify="left")
    for i, name in enumerate(table.header):
        out.add_column(Text(name), justify="left" if i < table.left else "right")
    for i, row in enumerate(table.rows):
        style = "yellow" if i in table.alert else None
        out.add_row(*map(Text, row), style=style, end_section=i + 1 in table.rules)
    return out


def markdown(table: Table) -> str:
    """Return Markdown: the warnings, the cells, the notes."""
    return render_template("table.md", table=table)


def latex_document(tables: Sequence[Table], label: str, comments: Sequence[str]) -> str:
    """Return LaTeX floats for the package booktabs, with ``comments`` on top.

    Their captions hold warnings and notes.
    """
    texts = "".join(t.title + "".join(sum(map(list, t.rows), [*t.header])) for t in tables)
    comments = list(comments)
    if any(ord(c) > _LATIN and c not in _LATEX for c in texts):
        comments.append(_OTHER_SCRIPTS)
    return render_template("tables.tex", tables=tables, label=label, comments=comments)


@dataclass(frozen=True)
class LatexForm:
    r"""How a table is set: ``table`` or ``table*``, its size, column types, head and rows."""

    environment: str
    size: str
    columns: str
    header: list[str]
    rows: list[list[str]]


def latex_form(table: Table) -> LatexForm:
    """Return the largest form in which a table fits a page of two columns."""
    heads, widths = [], []
    for i, head in enumerate(table.header):
        cells = max((len(row[i]) for row in table.rows), default=0)
        lines = textwrap.wrap(head, max(cells, _MAX_HEAD)) or [""]
        heads.append(lines)
        widths.append(min(max([cells, *map(len, lines)]), _MAX_CELL + 1))
    for size in _SIZES:
        if sum(widths) + size.gap * len(widths) <= size.fits:
            break
    columns, header = "", []
    for i, (lines, width) in enumerate(zip(heads, widths, strict=True)):
        side = "l" if i < table.left else "r"
        columns += r"p{0.3\linewidth}" if width > _MAX_CELL else side
        head = r" \\ ".join(map(latex_text, lines))
        header.append(rf"\shortstack[{side}]{{{head}}}" if len(lines) > 1 else head)
    rows = [[latex_text(cell) for cell in row] for row in table.rows]
    for cell in table.bold:
        number, space, more = rows[cell.row][cell.column].partition(" ")
        rows[cell.row][cell.column] = rf"\textbf{{{number}}}{space}{more}"
    return LatexForm(size.environment, size.command, columns, header, rows)


def latex_text(text: str) -> str:
    """Escape ``text`` so that LaTeX prints it as it is."""
    # two hyphens would become a dash
    separate = re.sub("-(?=-)", "-\0", text)
    return "".join(_LATEX.get(c, c) for c in separate)


def markdown_text(text: str) -> str:
    """Escape ``text`` so that Markdown prints it as it is, on one line."""
    return _MARKDOWN.sub(r"\\\g<0>", re.sub(r"\s*\n\s*", " ", text))


def slug(name: str) -> str:
    """Return ``name`` as part of a label or of a file's name; other names give other parts."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if plain == name:
        return name
    return f"{plain}-{zlib.crc32(name.encode()):08x}"


def render_template(name: str, **values: Any) -> str:
    """Fill a file of ``templates/``; values are escaped in HTML."""
    return _environment().get_template(name).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
    )
    environment.filters["tex"] = latex_text
    environment.filters["md"] = markdown_text
    environment.filters["latex_form"] = latex_form
    return environment
