"""Code of a run and its commit, with the processes that use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dfer_dist
from dfer_dist.runs import provenance
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import code_hash, collect, python_command, snapshot_code
from dfer_dist.runs.records import GitState
from launch.processes import rank_environment

PACKAGE = Path(dfer_dist.__file__).parent


def test_rank_imports_the_snapshot_and_not_the_checkout(tmp_path: Path) -> None:
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


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_collect_knows_commit_and_uncommitted_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dfer_dist"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_source_root", lambda: tmp_path)
    assert provenance.checkout() is None
    assert collect([]).git is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "m")
    assert collect([]).git == GitState(git(tmp_path, "rev-parse", "HEAD"), "")
    (package / "__init__.py").write_text("x = 2\n")
    changed = collect([]).git
    assert changed is not None and changed.diff is not None and "+x = 2" in changed.diff


def test_collect_describes_command_packages_and_machine() -> None:
    got = collect(["dfer", "crossval", "demo"])
    assert got.command == ["dfer", "crossval", "demo"]
    assert got.versions.keys() >= {
        "torch",
        "deepspeed",
        "open_clip_torch",
        "webdataset",
        "mlflow",
        "numpy",
    }
    assert got.python == sys.version.split()[0]
    assert got.code_hash == code_hash(PACKAGE, PACKAGE.parent / "launch")
    assert all(
        getattr(got, key) for key in ("time", "host", "user", "platform", "cpu_count", "dfer_dist")
    )
