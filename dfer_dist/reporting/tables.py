"""One table, written four ways: for the terminal, as Markdown, as LaTeX (booktabs), and as rows for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # one after a row's end would be its option
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
    """Cells as text. The first ``left`` columns stand to the left, the others to the right.

    ``warnings`` are what forbids taking the numbers at face value, such as missing folds; ``notes`` are what a reader must know
    and the cells do not say. Both go wherever the table goes. A rule is drawn above each of the rows ``rules``; ``alert`` rows stand out.
    """

    name: str  # a plain word, for labels and anchors
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    left: int = 1
    rules: frozenset[int] = field(default_factory=frozenset)
    alert: frozenset[int] = field(default_factory=frozenset)


def terminal(table: Table) -> RichTable:
    """For the terminal."""
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


def markdown(table: Table) -> list[str]:
    """Lines of Markdown: the warnings, the cells, the notes."""
    rules = [":---" if i < table.left else "---:" for i in range(len(table.header))]
    lines = [
        _markdown_row(table.header),
        f"| {' | '.join(rules)} |",
        *map(_markdown_row, table.rows),
    ]
    above = [line for text in table.warnings for line in (f"**{text}**", "")]
    return [*above, *lines, *(line for text in table.notes for line in ("", text))]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def latex(table: Table, label: str) -> list[str]:
    """Lines of a LaTeX float that wants the package booktabs; warnings and notes stand in its caption."""
    caption = " ".join([_sentence(table.title), *table.warnings, *table.notes])
    columns = "".join("l" if i < table.left else "r" for i in range(len(table.header)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{label}-{table.name}}}",
    ]
    lines += [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(table.header),
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        lines += [r"\midrule"] * (i in table.rules) + [_latex_row(row)]
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def latex_text(text: str) -> str:
    """``text`` so that LaTeX prints it as it stands."""
    return "".join(_LATEX.get(c, c) for c in text)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def slug(name: str) -> str:
    """A name as part of a label or a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)
