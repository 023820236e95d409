"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re

import pytest

from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.tables import Table, latex_document, latex_text, markdown
from dfer_dist.runs.layout import RunDir
from tests.helpers.made_runs import make_run_with_gaps, write_summary


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run_with_gaps(tmp_path_factory.mktemp("runs"))
    write_summary(load_run(run))
    return run


def test_latex_is_well_formed(holes: RunDir) -> None:
    lines = holes.latex.read_text().splitlines()
    assert lines[0] == r"% for \input; needs \usepackage{booktabs}"
    columns = 0
    for line in lines:
        assert line.startswith("%") or not re.search(r"(?<!\\)[%#]|[<>|±≥−]", line), line
        if line.startswith(r"\begin{tabular}"):
            columns = len(line.rpartition("{")[2]) - 1
        elif line.endswith(r" \\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
        if not line.startswith("%"):
            assert len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line)), line
    for rule in (r"\toprule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert lines.count(rule) == 3
    assert latex_text("[x] 5 ± 1 %") == r"{[}x] 5 $\pm$ 1 \%"


def test_table_matches_handwritten_markdown_and_latex() -> None:
    table = Table(
        "t",
        "A title",
        ["Name", "N"],
        [["a|b", "1"], ["c", "2"]],
        ["Beware."],
        ["A note."],
        1,
        [1],
    )
    assert markdown(table).splitlines() == [
        "**Beware.**",
        "",
        "| Name | N |",
        "| :--- | ---: |",
        r"| a\|b | 1 |",
        "| c | 2 |",
        "",
        "A note.",
    ]
    assert latex_document([table], "x", ["A comment."]).splitlines() == [
        r"% for \input; needs \usepackage{booktabs}",
        "% A comment.",
        "",
        r"\begin{table}",
        r"\centering",
        r"\caption{A title. Beware. A note.}",
        r"\label{tab:x-t}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Name & N \\",
        r"\midrule",
        r"a\textbar{}b & 1 \\",
        r"\midrule",
        r"c & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
