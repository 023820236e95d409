"""Where a result comes from: code, installed packages, command, machine; and a copy of the code to run again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distributions, version
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
        "git": {"sha": _git(root, "rev-parse", "HEAD"), "diff": _git(root, "diff", "HEAD")}
        if root
        else None,
        "code_hash": code_hash(Path(dfer_dist.__file__).parent),
    }


def environment_lock() -> str:
    """All distributions that Python finds here, a line each in pip's words for a requirement, sorted, and Python's version above them."""
    lines = _installed()
    return (
        "\n".join(
            [f"# python {platform.python_version()}", *(lines[name] for name in sorted(lines))]
        )
        + "\n"
    )


def other_packages(lock: str) -> list[str]:
    """Where this machine differs from what :func:`environment_lock` found elsewhere: words such as ``torch==2.9.1, not torch==2.8.0``."""
    here, there = (set(text.splitlines()) for text in (environment_lock(), lock))
    new, old = ({_name(line): line for line in lines} for lines in (here - there, there - here))
    changed = [
        f"{new[n]}, not {old[n]}" if n in new and n in old else new.get(n) or f"no {old[n]}"
        for n in sorted(new | old)
    ]
    return [words.replace("# ", "") for words in changed]


def _installed() -> dict[str, str]:
    """Requirements by name. Only the head of each file is looked at: parsing all of them takes ten times as long."""
    found: dict[str, str] = {}
    built = set[
        str
    ]()  # of a checkout that is on the path: what a build of it left, not what pip installed
    for one in distributions():
        metadata = one.read_text("METADATA")
        head = (metadata or one.read_text("PKG-INFO") or "")[:2000]
        about = dict(re.findall(r"^(Name|Version): *(\S+)", head, re.MULTILINE)[:2])
        if len(about) < 2:  # the rest of one that was removed
            continue
        key = re.sub(r"[-_.]+", "-", about["Name"]).lower()
        if key not in found or (key in built and metadata):  # the first is imported
            found[key] = _requirement(
                about["Name"], about["Version"], one.read_text("direct_url.json")
            )
            (built.discard if metadata else built.add)(key)
    return found


def _requirement(name: str, version: str, direct_url: str | None) -> str:
    """``name==version``, or where it was not taken from an index, the place (PEP 610) with its commit or sha256, and the version behind it."""
    if direct_url is None:
        return f"{name}=={version}"
    origin = json.loads(direct_url)
    url, vcs = origin["url"], origin.get("vcs_info")
    if origin.get("dir_info", {}).get("editable"):
        return f"-e {url} # {name}=={version}"
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    sha256 = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    parts = [f"subdirectory={origin['subdirectory']}"] if "subdirectory" in origin else []
    parts += [f"sha256={sha256}"] if sha256 else []
    return f"{name} @ {url}{'#' if parts else ''}{'&'.join(parts)} # {name}=={version}"


def _name(line: str) -> str:
    return re.split("==| ", line.rpartition("# ")[2])[0].lower()


def checkout() -> Path | None:
    """The git checkout this package is imported from, or None for an installed copy."""
    root = Path(dfer_dist.__file__).resolve().parent.parent
    return root if (root / ".git").exists() and shutil.which("git") else None


def code_hash(package: Path) -> str:
    """First 16 hex digits of a sha256 over the names and bytes of a package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(
            file.relative_to(package).as_posix().encode()
            + b"\0"
            + hashlib.sha256(file.read_bytes()).digest()
        )
    return digest.hexdigest()[:16]


def changed_files(snapshot: Path) -> list[str]:
    """Python files of ``dfer_dist`` that differ between a run's copy and the code that runs now, by their paths."""
    here = Path(dfer_dist.__file__).resolve().parent.parent
    sides = [
        {f.relative_to(root): f for f in (root / "dfer_dist").rglob("*.py")}
        for root in (snapshot, here)
    ]
    names = sorted(sides[0].keys() | sides[1].keys())
    return [
        str(n) for n in names if len({s[n].read_bytes() if n in s else None for s in sides}) > 1
    ]


def snapshot_code(target: Path) -> None:
    """Copy the packages that run (``dfer_dist`` and ``launch``) to ``target``, so that later edits do not reach a run.

    A copy that was cut short is made again: the folder takes its name only when whole.
    """
    if target.exists():
        return
    source = Path(dfer_dist.__file__).resolve().parent.parent
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    for package in ("dfer_dist", "launch"):
        shutil.copytree(
            source / package,
            temporary / package,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    temporary.rename(target)


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
