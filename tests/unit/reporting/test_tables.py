"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re

import pytest

from dfer_dist.reporting.results import load_run
from dfer_dist.reporting.tables import (
    Cell,
    Section,
    Table,
    latex_document,
    latex_form,
    latex_text,
    markdown,
    markdown_text,
    render_template,
    slug,
)
from dfer_dist.runs.layout import RunDir
from tests.helpers.made_runs import make_run_with_gaps, write_summary


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run_with_gaps(tmp_path_factory.mktemp("runs"))
    write_summary(load_run(run))
    return run


def test_latex_is_well_formed(holes: RunDir) -> None:
    lines = [
        re.sub(r"\\shortstack\[.\]{(.*?)}", r"\1", line).replace(r" \\ ", " ")
        for line in holes.latex.read_text().splitlines()
    ]
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
    for rule in (r"\toprule", r"\bottomrule"):
        assert lines.count(rule) == 6
    for form in ("begin", "end"):
        assert [lines.count(rf"\{form}{{{name}}}") for name in ("table", "table*")] == [0, 6]
    assert latex_text("[x] 5 ± 1 %") == r"{[}x] 5 $\pm$ 1 \%"
    assert latex_text("1--2 – a---b") == "1-{}-2 -- a-{}-{}-b"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<script>a</script> <b>", r"\<script>a\</script> \<b>"),
        ("p < 0.05 & x_1, R&D", "p < 0.05 & x_1, R&D"),
        ("&lt; &#60;", r"\&lt; \&#60;"),
        ("*a* _b_ `c` [d](e) ![f](g)", r"\*a\* \_b\_ \`c\` \[d](e) !\[f](g)"),
        ("a\\|b\n\n# c", r"a\\\|b # c"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert markdown_text(text) == escaped
    table = Table("t", text, [text, text], [[text, text]], [text], [text])
    section = Section("s", text, [table], [text])
    values = {"title": text, "verdict": [text], "sections": [section]}
    lines = render_template("comparison.md", **values).splitlines()
    assert sum(line.count(escaped) for line in lines) == 11
    if escaped != text:
        assert not any(text in line for line in lines)


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
        [Cell(1, 1)],
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
        r"\smallskip",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Name & N \\",
        r"\midrule",
        r"a\textbar{}b & 1 \\",
        r"\midrule",
        r"c & \textbf{2} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def columns_of(table: Table) -> tuple[str, str, str]:
    """Return environment, size and column types of a table in LaTeX."""
    form = latex_form(table)
    return form.environment, form.size.partition("\\set")[0], form.columns


def test_wide_tables_span_both_columns_in_smaller_type() -> None:
    forms = []
    for count in (3, 8, 9, 11, 16):
        cells = ["12.34 ± 5"] * count
        forms.append(columns_of(Table("t", "t", [f"C{i}" for i in range(count)], [cells])))
    assert [form[0] for form in forms] == ["table"] + ["table*"] * 4
    assert [form[1] for form in forms] == ["", "", r"\small", r"\footnotesize", r"\scriptsize"]
    long = Table("t", "t", ["A", "B"], [["x" * 41, "1"]])
    assert columns_of(long) == ("table*", "", r"p{0.3\linewidth}r")
    assert latex_form(Table("t", "t", ["Clips / s per rank"], [["1"]])).header == [
        r"\shortstack[l]{Clips / s \\ per rank}"
    ]


def test_latex_says_what_other_scripts_need() -> None:
    for name, needed in (("Läufe", False), ("± − →", False), ("学习率", True)):
        text = latex_document([Table("t", name, ["A"], [["1"]])], "x", [])
        assert ("xeCJK" in text) is needed, name


def test_slugs_of_other_names_differ() -> None:
    names = ["a-b", "a&b", "a b", "日本", "中国", "a_b"]
    assert len({slug(name) for name in names}) == len(names)
    assert slug("a-b_2") == "a-b_2"
    assert all(slug(name).isascii() for name in names)
