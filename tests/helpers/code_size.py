"""Count the product's lines of code and conditional expressions.

Run it as ``python -m tests.helpers.code_size``. Blank lines, comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

PACKAGES = ("dfer_dist", "launch")
_SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Size:
    """Counts over some Python files.

    Attributes
    ----------
    code : int
        Lines that hold code: neither blank nor only a comment or a docstring.
    conditionals : int
        Conditional expressions (``a if b else c``).
    """

    code: int
    conditionals: int

    @property
    def conditionals_per_1000(self) -> float:
        """Conditional expressions per 1,000 lines of code."""
        return 1000 * self.conditionals / max(1, self.code)


def product_files(root: Path = ROOT) -> list[Path]:
    """Return the product's Python files, sorted."""
    return sorted(f for package in PACKAGES for f in (root / package).rglob("*.py"))


def count(files: list[Path]) -> Size:
    """Count the lines of code and the conditional expressions of ``files``."""
    code = conditionals = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        docstrings = set(_docstring_lines(tree))
        code += len(set(_code_lines(text)) - docstrings)
        conditionals += sum(isinstance(node, ast.IfExp) for node in ast.walk(tree))
    return Size(code, conditionals)


def _code_lines(text: str) -> Iterator[int]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SKIPPED:
            yield from range(token.start[0], token.end[0] + 1)


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield from range(first.lineno, (first.end_lineno or first.lineno) + 1)


def main() -> None:
    """Print the counts of each package and of the whole product."""
    for package in PACKAGES:
        for folder in sorted(p for p in (ROOT / package).iterdir() if p.is_dir()):
            size = count(sorted(folder.rglob("*.py")))
            name = folder.relative_to(ROOT)
            if size.code:
                print(f"{name!s:28} {size.code:6d}  {size.conditionals_per_1000:5.1f}")
    size = count(product_files())
    print(f"{'product':28} {size.code:6d}  {size.conditionals_per_1000:5.1f}")


if __name__ == "__main__":
    main()
