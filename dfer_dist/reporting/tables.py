"""One table in four forms: for the terminal, as Markdown, as LaTeX (booktabs) and for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table as RichTable

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
    "±": r"$\pm$",
    "−": r"$-$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "…": r"\dots{}",
    "–": "--",
    "“": "``",
    "”": "''",
    "²": r"\textsuperscript{2}",
}


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
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    left: int = 1
    rules: Sequence[int] = ()

    @property
    def alert(self) -> list[int]:
        """The highlighted rows: those of missing folds."""
        return [i for i, row in enumerate(self.rows) if row[1] == "missing"]


@dataclass(frozen=True)
class Picture:
    """A figure of the page; several ``small`` ones share a row if they fit."""

    uri: str
    alt: str
    caption: str = ""
    warnings: Sequence[str] = ()
    small: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, tables, and on the page pictures."""

    key: str
    title: str
    tables: Sequence[Table] = ()
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


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
    return render_template("tables.tex", tables=tables, label=label, comments=comments)


def latex_text(text: str) -> str:
    """Escape ``text`` so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(c, c) for c in text)


def slug(name: str) -> str:
    """Return ``name`` as part of a label or of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)


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
    return environment
