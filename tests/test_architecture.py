"""Who may import whom: read from the source, and tried with torch out of reach."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FREE = (
    "dfer_dist",
    "dfer_dist.utils",
    "dfer_dist.utils.errors",
    "dfer_dist.utils.files",
    "dfer_dist.utils.locks",
    "dfer_dist.utils.log",
    "dfer_dist.config",
    "dfer_dist.config.schema",
    "dfer_dist.config.load",
    "dfer_dist.runs",
    "dfer_dist.runs.layout",
    "dfer_dist.runs.provenance",
    "dfer_dist.distributed",
    "dfer_dist.distributed.preemption",
)
LIGHT = {"typer", "rich", "omegaconf", "submitit"}  # no torch behind them
MODULES = {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
    for room in ("dfer_dist", "launch")
    for f in sorted((ROOT / room).rglob("*.py"))
}


def imports(module: str, anywhere: bool = True) -> set[str]:
    """Full names that a module imports; those at its top level only, or inside functions and TYPE_CHECKING too."""
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in _nodes(ast.parse(file.read_text(encoding="utf-8")), anywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")
            base = ".".join(up[: len(up) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            found |= {f"{origin}.{alias.name}" for alias in node.names} | {origin}
    return found


def _nodes(node: ast.AST, anywhere: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if anywhere or not (later or checked):
            yield child
            yield from _nodes(child, anywhere)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def test_reader_of_imports_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "probe.py"
    file.write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nimport torch.nn\nfrom .data.loading import sampler\n"
        "if TYPE_CHECKING:\n    import a\nclass C:\n    import b\ndef f():\n    from launch import cli\n"
    )
    monkeypatch.setitem(MODULES, "dfer_dist.probe", file)
    top = imports("dfer_dist.probe", anywhere=False)
    assert {"torch.nn", "dfer_dist.data.loading", "dfer_dist.data.loading.sampler", "b"} <= top
    assert not {"a", "launch"} & top
    assert {"a", "launch", "launch.cli"} <= imports("dfer_dist.probe")


def test_dfer_dist_never_imports_launch() -> None:
    assert [
        m
        for m in MODULES
        if within(m, "dfer_dist") and any(within(i, "launch") for i in imports(m))
    ] == []


@pytest.mark.parametrize(
    ("room", "other"),
    [("dfer_dist.data", "dfer_dist.models"), ("dfer_dist.models", "dfer_dist.data")],
)
def test_data_and_model_do_not_know_each_other(room: str, other: str) -> None:
    assert [m for m in MODULES if within(m, room)] != []
    assert [
        m for m in MODULES if within(m, room) and any(within(i, other) for i in imports(m))
    ] == []


@pytest.mark.parametrize("module", FREE)
def test_torch_free_rooms_import_no_torch_at_any_level(module: str) -> None:
    outside = (
        {i.partition(".")[0] for i in imports(module)} - sys.stdlib_module_names - {"dfer_dist"}
    )
    assert outside <= {"omegaconf"}
    inside = {i for i in imports(module) if i in MODULES}
    assert inside <= set(FREE)


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "launch")])
def test_launch_imports_only_light_things_at_module_level(module: str) -> None:
    top = imports(module, anywhere=False)
    outside = {i.partition(".")[0] for i in top} - sys.stdlib_module_names
    assert outside <= LIGHT | {"dfer_dist", "launch"}
    assert {i for i in top if i in MODULES and within(i, "dfer_dist")} <= set(FREE)


def test_launch_and_the_free_rooms_import_without_torch() -> None:
    names = [m for m in MODULES if within(m, "launch") or m in FREE]
    code = (
        "import importlib, sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'deepspeed', 'open_clip', 'mlflow'):\n"
        "            raise ImportError(name + ' is out of reach')\n"
        "sys.meta_path.insert(0, Wall())\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "try:\n"
        "    import torch\n"
        "except ImportError:\n"
        "    print('whole')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "whole\n"
