"""Where a result comes from: code, packages, command and machine; and a copy of the code."""

from __future__ import annotations

import compileall
import errno
import getpass
import hashlib
import json
import marshal
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from importlib.util import cache_from_source
from pathlib import Path

from dfer_dist.runs.records import GitState, Provenance
from dfer_dist.utils.version import installed_version, package_version

_PACKAGES = ("dfer_dist", "launch")
#: Suffixes of the files that decide what a run does.
_CODE = frozenset({".py", ".sh", ".html", ".css", ".j2", ".md", ".tex", ".txt"})
# Bytes of a compiled file before the code (PEP 552).
_PYC_HEADER = 16
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


def collect(command: list[str]) -> Provenance:
    """Return the provenance of a run that starts now, without its data set.

    Parameters
    ----------
    command : list of str
        The command line of this process.
    """
    root = checkout()
    versions = {name: installed_version(name) for name in _WATCHED}
    return Provenance(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        command=command,
        host=socket.gethostname(),
        user=_user_name(),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
        dfer_dist=package_version(),
        versions={name: version for name, version in versions.items() if version},
        git=GitState(_git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD")) if root else None,
        code_hash=code_hash(*_packages(_source_root())),
        python_path=os.environ.get("PYTHONPATH", ""),
    )


def _user_name() -> str:
    """Return the name of this process's user, or the number if it has none."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


def environment_lock() -> str:
    """Return all installed distributions as pip requirements, a line each, sorted by name.

    The first line is Python's version.
    """
    lines = [requirement for _, requirement in sorted(_installed().items())]
    return "\n".join([f"# python {platform.python_version()}", *lines]) + "\n"


def other_packages(lock: str) -> list[str]:
    """Return how this machine differs from an :func:`environment_lock` made elsewhere.

    Returns
    -------
    list of str
        Such as ``torch==2.9.1, not torch==2.8.0``.
    """
    here, there = set(environment_lock().splitlines()), set(lock.splitlines())
    new = {_name(line): line for line in here - there}
    old = {_name(line): line for line in there - here}
    changes = []
    for name in sorted(new | old):
        if name not in new:
            changes.append(f"no {old[name]}")
        elif name in old:
            changes.append(f"{new[name]}, not {old[name]}")
        else:
            changes.append(new[name])
    return [change.replace("# ", "") for change in changes]


def _installed() -> dict[str, str]:
    """Return requirements by normalized name; of two distributions the imported one."""
    found: dict[str, str] = {}
    # PKG-INFO is what a build left in a checkout on the path, not an installation.
    for file in ("METADATA", "PKG-INFO"):
        for distribution in distributions():
            # Parsing the metadata of all packages takes ten times as long as searching their head.
            head = (distribution.read_text(file) or "")[:2000]
            fields = dict(re.findall(r"^(Name|Version): *(\S+)", head, re.MULTILINE)[:2])
            # A distribution that was removed in part has none.
            if len(fields) == 2:
                # The first one on the path is imported.
                key = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
                found.setdefault(key, _requirement(distribution, fields["Name"], fields["Version"]))
    return found


def _requirement(distribution: Distribution, name: str, version: str) -> str:
    """Return ``name==version``, or the URL with commit or sha256 and the version after it."""
    pinned, text = f"{name}=={version}", distribution.read_text("direct_url.json")
    if not text:
        return pinned
    # PEP 610: no index provided this distribution.
    origin = json.loads(text)
    url, vcs = origin["url"], origin.get("vcs_info")
    if origin.get("dir_info", {}).get("editable"):
        return f"-e {url} # {pinned}"
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    sha256 = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    parts = {"subdirectory": origin.get("subdirectory"), "sha256": sha256}
    fragment = "&".join(f"{key}={value}" for key, value in parts.items() if value)
    if fragment:
        url = f"{url}#{fragment}"
    return f"{name} @ {url} # {pinned}"


def _name(line: str) -> str:
    return re.split("==| ", line.rpartition("# ")[2])[0].lower()


def checkout() -> Path | None:
    """Return the git checkout this package is imported from, or None for an installed copy."""
    root = _source_root()
    return root if (root / ".git").exists() and shutil.which("git") else None


def code_hash(*packages: Path) -> str:
    """Return the first 16 hex digits of a sha256 over the names and bytes of code files.

    Parameters
    ----------
    *packages : Path
        Folders of packages. Python files, shell scripts and templates count.
    """
    digest = hashlib.sha256()
    for name, file in sorted(_code_files(*packages).items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def changed_files(snapshot: Path) -> list[str]:
    """Return the code files that differ between a run's copy and the code that runs now.

    Returns
    -------
    list of str
        Paths such as ``launch/slurm/job.sh``, sorted.
    """
    then = _code_files(*_packages(snapshot))
    now = _code_files(*_packages(_source_root()))
    changed = then.keys() ^ now.keys()
    changed |= {n for n in then.keys() & now.keys() if then[n].read_bytes() != now[n].read_bytes()}
    return sorted(changed)


def snapshot_code(target: Path) -> None:
    """Copy the packages that run to ``target``, so that later edits do not change a run.

    The folder takes its name only when it is complete. An existing one is left as it is. Its
    modules are compiled, so that no job writes into it: if one did so while the disk is full, no
    later job could import the module. Python before 3.12.8 and 3.13.1 keeps a compiled file that
    was cut short (CPython issue 126606).

    Raises
    ------
    OSError
        If the disk is full.
    """
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    for package in _packages(_source_root()):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, temporary / package.name, ignore=ignore, dirs_exist_ok=True)
        _copy_compiled(package, temporary / package.name)
    # what is missing or of another source
    compileall.compile_dir(temporary, quiet=2)
    for file in temporary.rglob("*.pyc"):
        if not _is_whole(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    temporary.rename(target)


def _copy_compiled(package: Path, copy: Path) -> None:
    """Compile the modules of a package where it is, and copy what is compiled and whole.

    Compiling them anew for each run would take a twentieth of the time to its first step.
    """
    if os.access(package, os.W_OK) and not sys.dont_write_bytecode:
        compileall.compile_dir(package, quiet=2)
    for module in copy.rglob("*.py"):
        source = Path(cache_from_source(package / module.relative_to(copy)))
        compiled = Path(cache_from_source(module))
        if source.exists() and _is_whole(source):
            compiled.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, compiled)


def _is_whole(compiled: Path) -> bool:
    """Return whether a compiled module was not cut short."""
    try:
        marshal.loads(compiled.read_bytes()[_PYC_HEADER:])
    except (EOFError, ValueError, TypeError):
        return False
    return True


def python_command() -> list[str]:
    """Return the command that starts this interpreter without the current folder on its path.

    A checkout in the current folder would be imported instead of a run's copy of the code.
    """
    return [sys.executable, "-P"]


def resolved_python_command() -> list[str]:
    """Return :func:`python_command` by the real path of this environment, for a rank.

    One environment may have several names (a symbolic link, a home folder under automount), and
    DeepSpeed's extension is built again whenever the name differs from that of the last build.
    """
    prefix, (python, *options) = Path(sys.prefix), python_command()
    if Path(python).is_relative_to(prefix):
        python = str(prefix.resolve() / Path(python).relative_to(prefix))
    return [python, *options]


def _source_root() -> Path:
    """Return the folder that holds the packages that run now."""
    return Path(__file__).resolve().parents[2]


def _packages(root: Path) -> list[Path]:
    return [root / name for name in _PACKAGES]


def _code_files(*packages: Path) -> dict[str, Path]:
    """Return the path of each code file by its name relative to the folder of its package."""
    return {
        file.relative_to(package.parent).as_posix(): file
        for package in packages
        for file in package.rglob("*")
        if file.suffix in _CODE and file.is_file()
    }


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
