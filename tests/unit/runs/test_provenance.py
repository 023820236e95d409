from __future__ import annotations

import compileall
import os
import pwd
import py_compile
import shutil
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path

import pytest

import dfer_dist
from dfer_dist.runs import provenance
from dfer_dist.runs.provenance import (
    code_hash,
    collect,
    resolved_python_command,
    snapshot_code,
)
from dfer_dist.runs.records import Provenance

PACKAGE = Path(dfer_dist.__file__).parent


def files(root: Path) -> dict[str, bytes]:
    return {
        f.relative_to(root).as_posix(): f.read_bytes()
        for folder in (
            root,
            root / "configs",
        )  # a link in the checkout, which rglob does not follow
        for f in folder.rglob("*")
        if f.is_file() and f.suffix != ".pyc"
    }


def test_snapshot_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    snapshot_code(tmp_path / "code")
    assert sorted(os.listdir(tmp_path)) == ["code"]
    assert sorted(os.listdir(tmp_path / "code")) == ["dfer_dist", "launch"]
    assert files(tmp_path / "code" / "dfer_dist") == files(PACKAGE)
    assert files(tmp_path / "code" / "launch") == files(PACKAGE.parent / "launch")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages of one module each; returns their folder."""
    for package in ("dfer_dist", "launch"):
        (tmp_path / "from" / package).mkdir(parents=True)
        (tmp_path / "from" / package / "__init__.py").write_text("a = 1")
    monkeypatch.setattr(provenance, "_source_root", lambda: tmp_path / "from")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return tmp_path / "from"


def value_of(module: Path) -> int:
    """Return ``a`` of a module that Python imports without compiling it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceFileLoader, "source_to_code", lambda *_, **__: pytest.fail("compiled"))
        code = SourceFileLoader("module", str(module)).get_code("module")
    values: dict[str, int] = {}
    exec(code, values)
    return values["a"]


def test_modules_are_compiled_once_for_all_runs(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_code(tmp_path / "first")
    monkeypatch.setattr(py_compile, "compile", lambda *_, **__: pytest.fail("compiled"))
    snapshot_code(tmp_path / "code")
    assert files(tmp_path / "code").keys() == {"dfer_dist/__init__.py", "launch/__init__.py"}
    for module in (tmp_path / "code").rglob("*.py"):
        assert value_of(module) == 1


@pytest.mark.parametrize("damage", ["other source", "cut short", "folder is read only"])
def test_compiled_module_that_is_not_the_source_is_not_copied(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    compileall.compile_dir(sources, quiet=2)
    module = sources / "launch" / "__init__.py"
    compiled = Path(cache_from_source(module))
    if damage == "cut short":
        os.truncate(compiled, 20)
    else:
        module.write_text("a = 2")
        os.utime(module, (1, 1))
    if damage == "folder is read only":
        monkeypatch.setattr(os, "access", lambda *_: False)
    (sources / "launch" / "__pycache__" / "gone.pyc").write_text("x")
    snapshot_code(tmp_path / "code")
    expected = 1 if damage == "cut short" else 2
    assert value_of(tmp_path / "code" / "launch" / "__init__.py") == expected
    assert len(set((tmp_path / "code").rglob("*.pyc"))) == 2


def test_job_compiles_no_module_of_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python before 3.12.8 would keep what it writes on a full disk, and import it never again."""
    written: list[str] = []
    monkeypatch.setattr(
        SourceFileLoader, "set_data", lambda _, path, *__, **___: written.append(path)
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    snapshot_code(tmp_path / "code")
    modules = list((tmp_path / "code").rglob("*.py"))
    assert all(SourceFileLoader("module", str(module)).get_code("module") for module in modules)
    assert len(modules) > 100 and written == []


def test_compiled_file_cut_short_by_a_full_disk_is_no_snapshot(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(folder: Path, **options: object) -> None:
        for module in folder.rglob("*.py"):
            compileall.compile_file(module, quiet=2)
            os.truncate(cache_from_source(module), 20)

    monkeypatch.setattr(compileall, "compile_dir", cut_short)
    with pytest.raises(OSError, match="No space left on device"):
        snapshot_code(tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_existing_snapshot_is_left_as_it_is(tmp_path: Path) -> None:
    snapshot_code(tmp_path / "code")
    marked = tmp_path / "code" / "dfer_dist" / "__init__.py"
    marked.write_text("# mine\n")
    snapshot_code(tmp_path / "code")
    assert marked.read_text() == "# mine\n"


def test_interrupted_snapshot_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(source: Path, target: Path, **options: object) -> None:
        target.mkdir(parents=True)
        shutil.copy(source / "__init__.py", target)
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copytree", cut_short)
    with pytest.raises(OSError, match="disk full"):
        snapshot_code(tmp_path / "code")
    assert not (tmp_path / "code").exists()
    monkeypatch.undo()
    snapshot_code(tmp_path / "code")
    assert files(tmp_path / "code" / "dfer_dist") == files(PACKAGE)


def test_code_hash_covers_scripts_and_templates(tmp_path: Path) -> None:
    for name in ("job.sh", "page.html"):
        before = code_hash(tmp_path)
        (tmp_path / name).write_text("x")
        assert code_hash(tmp_path) != before


def test_changed_files_cover_batch_script_and_templates(tmp_path: Path) -> None:
    snapshot_code(tmp_path / "code")
    assert provenance.changed_files(tmp_path / "code") == []
    changed = ["dfer_dist/reporting/templates/page.html", "launch/slurm/job.sh"]
    for name in changed:
        (tmp_path / "code" / name).write_text("x")
    assert provenance.changed_files(tmp_path / "code") == changed
    shutil.rmtree(tmp_path / "code" / "launch")
    assert "launch/cli.py" in provenance.changed_files(tmp_path / "code")


@pytest.mark.parametrize("change", ["byte", "name", "new file", "gone"])
def test_code_hash_sees_every_change(tmp_path: Path, change: str) -> None:
    for name in ("a.py", "sub/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = code_hash(tmp_path)
    assert before == code_hash(tmp_path)
    if change == "byte":
        (tmp_path / "sub" / "b.py").write_text("x = 2\n")
    elif change == "name":
        (tmp_path / "sub" / "b.py").rename(tmp_path / "sub" / "c.py")
    elif change == "new file":
        (tmp_path / "c.py").write_text("")
    else:
        (tmp_path / "a.py").unlink()
    assert code_hash(tmp_path) != before


def test_code_hash_sees_bytes_moved_between_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"1")
    (tmp_path / "b.py").write_bytes(b"2")
    before = code_hash(tmp_path)
    (tmp_path / "b.py").unlink()
    (tmp_path / "a.py").write_bytes(b"1b.py\x002")
    assert code_hash(tmp_path) != before


def test_code_hash_ignores_compiled_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "a.pyc").write_text("x")
    assert code_hash(tmp_path) == before


def test_search_path_of_the_command_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    monkeypatch.setattr(provenance.platform, "platform", lambda: "Linux")
    monkeypatch.setenv("PYTHONPATH", "/opt/packages")
    assert collect([]).python_path == "/opt/packages"
    # as earlier versions stored it
    assert Provenance.from_json({"version": 1}, "old").python_path == ""


def test_ranks_run_by_the_real_path_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to the environment, and one to a folder above it; its ``python`` is a link too."""
    real = tmp_path / "real" / "venv"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "home").symlink_to(tmp_path / "real")
    for prefix in (real, tmp_path / "link", tmp_path / "home" / "venv"):
        monkeypatch.setattr(sys, "prefix", str(prefix))
        monkeypatch.setattr(sys, "executable", str(prefix / "bin" / "python"))
        assert resolved_python_command() == [str(real / "bin" / "python"), "-P"]
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert resolved_python_command() == ["/usr/bin/python3", "-P"]


def test_user_has_a_name_where_no_variable_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "checkout", lambda: None)
    # it starts uname
    monkeypatch.setattr(provenance.platform, "platform", lambda: "Linux")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert collect([]).user == pwd.getpwuid(os.getuid()).pw_name
    # as in a container
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert collect([]).user == "4000000000"
