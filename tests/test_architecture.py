"""The layout: who may import whom, what imports no torch, and how large things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.code_size import count, product_files
from tests.helpers.paths import ROOT

# A package imports only packages above it; launch imports all of them and nothing imports launch.
ORDER = (
    "dfer_dist.utils",
    "dfer_dist.config",
    "dfer_dist.runs",
    "dfer_dist.distributed",
    "dfer_dist.data.sources",
    "dfer_dist.data.video",
    "dfer_dist.data.shards",
    "dfer_dist.data.faces",
    "dfer_dist.data.packing",
    "dfer_dist.data.loading",
    "dfer_dist.data.folds",
    "dfer_dist.data.captions",
    "dfer_dist.data.verify",
    "dfer_dist.models",
    "dfer_dist.checkpoints",
    "dfer_dist.evaluation",
    "dfer_dist.tracking",
    "dfer_dist.reporting",
    "dfer_dist.training",
    "dfer_dist.inference",
    "dfer_dist.planning",
    "dfer_dist.demo",
    "dfer_dist.bench",
    "dfer_dist.train",
    "launch",
)
# A login node answers without torch, and a rank installs its signal handler before torch is imported.
TORCH_FREE = (
    "dfer_dist.utils.errors",
    "dfer_dist.utils.files",
    "dfer_dist.utils.hardware",
    "dfer_dist.utils.hosts",
    "dfer_dist.utils.locks",
    "dfer_dist.utils.log",
    "dfer_dist.utils.records",
    "dfer_dist.utils.version",
    "dfer_dist.config",
    "dfer_dist.runs",
    "dfer_dist.distributed.preemption",
)
LIGHT = {"typer", "click", "rich", "omegaconf", "yaml", "submitit", "psutil", "filelock"}
HEAVY = ("torch", "torchvision", "deepspeed", "open_clip", "mlflow")

MAX_CODE = 34_400
MAX_CONDITIONALS = 15  # conditional expressions per 1,000 lines of code
MAX_ENTRIES = 16  # tracked files and folders of a folder
MAX_FILE = 400  # lines
MAX_FUNCTION = 50  # lines
MAX_COLUMNS = 100

MODULES = {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
    for f in product_files()
}


@cache
def imports(module: str, anywhere: bool = True) -> frozenset[str]:
    """Return what a module imports, ``TYPE_CHECKING`` blocks aside.

    With ``anywhere`` the imports inside functions count too.
    """
    found: set[str] = set()
    for node in _nodes(ast.parse(MODULES[module].read_text(encoding="utf-8")), anywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            origin = node.module or ""
            names = (f"{origin}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else origin for name in names}
    return frozenset(found)


def _nodes(node: ast.AST, anywhere: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        inside_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith(
            "TYPE_CHECKING"
        )
        if typing_only:
            continue
        if anywhere or not inside_function:
            yield child
            yield from _nodes(child, anywhere)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(module: str) -> int | None:
    """Return a module's place in ``ORDER``; None for the packages that only hold others."""
    for place, package in enumerate(ORDER):
        if within(module, package):
            return place
    assert module in {"dfer_dist", "dfer_dist.data"}, f"{module} has no place in ORDER"
    return None


def test_imports_reads_every_kind_of_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "probe.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\n"
        "from dfer_dist.data.loading import sampler\nfrom dfer_dist.utils.files import read_json\n"
        "if TYPE_CHECKING:\n    import a\nclass C:\n    import b\n"
        "def f():\n    from launch import cli\n"
    )
    monkeypatch.setitem(MODULES, "dfer_dist.probe", file)
    top = imports("dfer_dist.probe", anywhere=False)
    assert top == {
        "typing",
        "torch.nn",
        "dfer_dist.data.loading.sampler",
        "dfer_dist.utils.files",
        "b",
    }
    assert imports("dfer_dist.probe") == top | {"launch.cli"}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_packages_above_it(module: str) -> None:
    own = layer(module)
    others = {i: layer(i) for i in imports(module) if i in MODULES}
    upward = {
        i for i, place in others.items() if place is not None and own is not None and place > own
    }
    assert not upward


def test_modules_have_no_import_cycle() -> None:
    graph = {m: {i for i in imports(m) if i in MODULES} for m in MODULES}
    while leaves := [m for m, found in graph.items() if not found & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"these modules import each other: {sorted(graph)}"


@pytest.mark.parametrize("module", [m for m in MODULES if any(within(m, f) for f in TORCH_FREE)])
def test_torch_free_module_imports_nothing_heavy(module: str) -> None:
    outside = {i.partition(".")[0] for i in imports(module)} - sys.stdlib_module_names
    assert outside - {"dfer_dist"} <= LIGHT
    inside = {i for i in imports(module) if i in MODULES}
    assert all(any(within(i, f) for f in TORCH_FREE) for i in inside)


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "launch")])
def test_launch_module_imports_light_at_top_level(module: str) -> None:
    top = imports(module, anywhere=False)
    outside = {i.partition(".")[0] for i in top} - sys.stdlib_module_names
    assert outside <= LIGHT | {"dfer_dist", "launch"}
    own = {i for i in top if i in MODULES and within(i, "dfer_dist")}
    assert all(any(within(i, f) for f in TORCH_FREE) for i in own)


def test_launch_and_torch_free_modules_import_without_torch() -> None:
    names = [m for m in MODULES if within(m, "launch") or any(within(m, f) for f in TORCH_FREE)]
    code = (
        "import importlib, sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {HEAVY!r}:\n"
        "            raise ImportError(name + ' is out of reach')\n"
        "sys.meta_path.insert(0, Wall())\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "try:\n"
        "    import torch\n"
        "except ImportError:\n"
        "    print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_no_module_shadows_the_standard_library() -> None:
    # A file that runs as a script has its folder on sys.path, so inner names count too.
    shadows = {m for m in MODULES if m.rpartition(".")[2] in sys.stdlib_module_names}
    assert not shadows


def test_init_files_hold_a_docstring_only() -> None:
    for file in MODULES.values():
        if file.name == "__init__.py":
            body = ast.parse(file.read_text(encoding="utf-8")).body
            assert len(body) == 1, file
            assert isinstance(body[0], ast.Expr), file


def test_product_keeps_its_budget_of_code() -> None:
    size = count(product_files())
    assert size.code <= MAX_CODE
    assert size.conditionals_per_1000 <= MAX_CONDITIONALS


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= MAX_FILE
    assert max(map(len, lines), default=0) <= MAX_COLUMNS
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("module", MODULES)
def test_conditional_expressions_are_not_nested(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.IfExp):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.IfExp)]
            assert len(inner) == 1, f"{module}:{node.lineno}"


def test_folders_have_few_entries() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "dfer_dist", "launch", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    entries: dict[Path, set[str]] = {}
    for name in filter(None, listed.split("\0")):
        parts = Path(name).parts
        for depth in range(1, len(parts)):
            entries.setdefault(Path(*parts[:depth]), set()).add(parts[depth])
    ignored = {"__init__.py", "py.typed"}
    sizes = Counter({folder: len(found - ignored) for folder, found in entries.items()})
    sizes[Path("dfer_dist")] -= "configs" in entries[Path("dfer_dist")]
    assert not {str(folder): n for folder, n in sizes.items() if n > MAX_ENTRIES}
