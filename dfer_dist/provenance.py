"""Where a result comes from: code, versions, command, machine; and a copy of the code to run again."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dfer_dist

_WATCHED = (
    "torch",
    "deepspeed",
    "open_clip_torch",
    "einops",
    "webdataset",
    "fsspec",
    "mlflow",
    "submitit",
    "scikit-learn",
    "numpy",
    "simplejpeg",
)


def collect(command: list[str]) -> dict[str, Any]:
    """Everything about this moment that a reader of the result may ask for.

    Parameters
    ----------
    command : list of str
        The words the person typed.
    """
    root = checkout()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "host": socket.gethostname(),
        "user": os.environ.get("USER") or str(os.getuid()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "dfer_dist": dfer_dist.__version__,
        "versions": {name: found for name in _WATCHED if (found := _version(name))},
        "git": {"sha": _git(root, "rev-parse", "HEAD"), "diff": _git(root, "diff", "HEAD")} if root else None,
        "code_hash": code_hash(Path(dfer_dist.__file__).parent),
    }


def checkout() -> Path | None:
    """The git checkout this package is imported from, or None for an installed copy."""
    root = Path(dfer_dist.__file__).resolve().parent.parent
    return root if (root / ".git").exists() and shutil.which("git") else None


def code_hash(package: Path) -> str:
    """First 16 hex digits of a sha256 over the names and bytes of a package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def changed_files(snapshot: Path) -> list[str]:
    """Python files of ``dfer_dist`` that differ between a run's copy and the code that runs now, by their paths."""
    here = Path(dfer_dist.__file__).resolve().parent.parent
    sides = [{f.relative_to(root): f for f in (root / "dfer_dist").rglob("*.py")} for root in (snapshot, here)]
    names = sorted(sides[0].keys() | sides[1].keys())
    return [str(n) for n in names if len({s[n].read_bytes() if n in s else None for s in sides}) > 1]


def snapshot_code(target: Path) -> None:
    """Copy the packages that run (``dfer_dist`` and ``launch``) to ``target``, so that later edits do not reach a run.

    A copy that was cut short is made again: the folder takes its name only when whole.
    """
    if target.exists():
        return
    source = Path(dfer_dist.__file__).resolve().parent.parent
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    for package in ("dfer_dist", "launch"):
        shutil.copytree(source / package, temporary / package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    temporary.rename(target)


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def python_command() -> list[str]:
    """How to start this interpreter without the current folder on its path (a checkout there would win over a snapshot)."""
    return [sys.executable, "-P"]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(root: Path, *words: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
