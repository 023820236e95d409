from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dfer_dist
from dfer_dist.runs import provenance
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import code_hash, collect, python_command, snapshot_code
from dfer_dist.utils.files import sha256_file
from launch.processes import rank_environment

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


def test_snapshot_leaves_compiled_files_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("dfer_dist", "launch"):
        (tmp_path / "from" / room / "__pycache__").mkdir(parents=True)
        (tmp_path / "from" / room / "__pycache__" / "a.pyc").write_text("x")
        (tmp_path / "from" / room / "__init__.py").write_text("")
    monkeypatch.setattr(dfer_dist, "__file__", str(tmp_path / "from" / "dfer_dist" / "__init__.py"))
    snapshot_code(tmp_path / "code")
    assert files(tmp_path / "code").keys() == {"dfer_dist/__init__.py", "launch/__init__.py"}
    assert not list((tmp_path / "code").rglob("__pycache__"))


def test_snapshot_once_made_is_left_alone(tmp_path: Path) -> None:
    snapshot_code(tmp_path / "code")
    marked = tmp_path / "code" / "dfer_dist" / "__init__.py"
    marked.write_text("# mine\n")
    snapshot_code(tmp_path / "code")
    assert marked.read_text() == "# mine\n"


def test_half_a_snapshot_is_not_taken_for_a_whole_one(
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


def test_ranks_run_the_snapshot_and_not_the_checkout(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    snapshot_code(run.code)
    command = [
        *python_command(),
        "-c",
        "import dfer_dist, launch; print(dfer_dist.__file__, launch.__file__)",
    ]
    for folder in (
        PACKAGE.parent,
        tmp_path,
    ):  # started from a checkout, which must not win, and from elsewhere
        done = subprocess.run(
            command,
            env=rank_environment(run, 0, 1, 1),
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [
            str(run.code / "dfer_dist" / "__init__.py"),
            str(run.code / "launch" / "__init__.py"),
        ]


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


def test_code_hash_cannot_be_fooled_by_moving_bytes_between_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"1")
    (tmp_path / "b.py").write_bytes(b"2")
    before = code_hash(tmp_path)
    (tmp_path / "b.py").unlink()
    (tmp_path / "a.py").write_bytes(b"1b.py\x002")
    assert code_hash(tmp_path) != before


def test_code_hash_ignores_what_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "a.pyc").write_text("x")
    assert code_hash(tmp_path) == before


def test_collect() -> None:
    got = collect(["dfer", "crossval", "demo"])
    assert got["command"] == ["dfer", "crossval", "demo"]
    assert got["versions"].keys() >= {
        "torch",
        "deepspeed",
        "open_clip_torch",
        "webdataset",
        "mlflow",
        "numpy",
    }
    assert got["python"] == sys.version.split()[0]
    assert got["code_hash"] == code_hash(PACKAGE)
    assert all(got[key] for key in ("time", "host", "user", "platform", "cpu_count", "dfer_dist"))


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_collect_knows_the_commit_and_what_was_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dfer_dist"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(dfer_dist, "__file__", str(package / "__init__.py"))
    assert provenance.checkout() is None
    assert collect([])["git"] is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "m")
    assert collect([])["git"] == {"sha": git(tmp_path, "rev-parse", "HEAD"), "diff": ""}
    (package / "__init__.py").write_text("x = 2\n")
    assert "+x = 2" in collect([])["git"]["diff"]


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        sha256_file(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
