"""The LaTeX tables, set by a real LaTeX on a page of two columns."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dfer_dist.data.sources.records import ELEVEN
from dfer_dist.reporting.comparison.paired import compare, load_runs
from dfer_dist.reporting.comparison.published import read_published
from dfer_dist.reporting.files import comparison_latex, comparison_report, run_latex, run_report
from dfer_dist.reporting.results import load_run
from tests.helpers.made_runs import make_run, make_run_with_gaps

ENGINES = ("pdflatex", "lualatex", "xelatex")
# the text block of the papers of CVPR
DOCUMENT = r"""
\documentclass[10pt,twocolumn]{{article}}
\usepackage{{booktabs}}
\setlength{{\textwidth}}{{6.875in}}
\setlength{{\textheight}}{{8.875in}}
\setlength{{\columnsep}}{{0.3125in}}
\setlength{{\oddsidemargin}}{{-0.2in}}
\setlength{{\topmargin}}{{-0.6in}}
\begin{{document}}
{inputs}
\end{{document}}
"""


def typeset(texts: Sequence[str], folder: Path) -> str:
    """Set the texts as one document, ``folder``/paper.pdf; return LaTeX's log."""
    engine = next(filter(None, map(shutil.which, ENGINES)), None)
    found = shutil.which("kpsewhich") and subprocess.run(
        ["kpsewhich", "booktabs.sty"], capture_output=True, check=False
    )
    if engine is None or not found or found.returncode:
        pytest.skip("no LaTeX with booktabs: make system installs texlive-latex-recommended")
    folder.mkdir()
    inputs = []
    for i, text in enumerate(texts):
        (folder / f"tables{i}.tex").write_text(text, encoding="utf-8")
        inputs.append(rf"\input{{tables{i}}}\clearpage")
    (folder / "paper.tex").write_text(DOCUMENT.format(inputs="\n".join(inputs)), encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    log = (folder / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    return log


def test_tables_of_runs_and_comparisons_fit_a_page_of_two_columns(tmp_path: Path) -> None:
    published = read_published("published")
    with_gaps = load_run(make_run_with_gaps(tmp_path / "gaps"))
    how = {"dataset": "MAFW", "classes": list(ELEVEN), "history": False, "shuffled": True}
    names = ("full", "lora_r4 100 % #1--2 {~^\\} <$>", "läuft & \"so\" [x] 'a'")
    runs = load_runs(
        [
            make_run(tmp_path / n, range(1, 6), 5, sure=s, **how)
            for n, s in zip(names, (2, 3, 1), strict=True)
        ]
    )
    comparisons = [compare(runs[0], other) for other in runs[1:]]
    texts = [run_latex(with_gaps, run_report(with_gaps))]
    # a run of the same name on other data
    elsewhere = load_run(make_run(tmp_path / "dfew" / "full", (1,), 1, history=False))
    texts += [run_latex(run, run_report(run, published)) for run in (*runs, elsewhere)]
    texts.append(comparison_latex(runs, comparison_report(runs, comparisons, published)))
    log = typeset(texts, tmp_path / "paper")
    assert not re.findall(r"Overfull \\hbox.*", log)
    assert "multiply" not in log  # labels
    assert not re.findall("LaTeX Warning: (?!Label|There were|Reference).*", log)
    labels = re.findall(r"\\label{(.*)}", "".join(texts))
    assert len(labels) > 20
    assert len(set(labels)) == len(labels)
